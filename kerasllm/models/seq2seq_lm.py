"""Seq2SeqLM: an encoder reads a source, and a decoder writes a target."""

import keras
import numpy as np
from keras import ops

from kerasllm.losses import token_log_likelihoods
from kerasllm.models.inputs import array_data, check_next_tokens, is_text, pad_token_id, single, tokenizer_of
from kerasllm.models.language_model import LanguageModel, no_gradient
from kerasllm.models.trace import Seq2SeqTrace
from kerasllm.objectives.seq2seq import seq2seq_batch


@keras.saving.register_keras_serializable("kerasllm")
class Seq2SeqLM(LanguageModel):
    """T5 or the 2017 Transformer: reads a source text and writes a target text.

    Args:
        config: a `TransformerConfig` (or its dict) with `num_encoder_layers`.
        tokenizer: a `Tokenizer`, for models that read and write text; left out for token ids only. Its end token
            follows each source and each target.
        start_token_id: what the decoder begins with; the tokenizer's padding token, as in T5, or 0.
        dtype: a Keras dtype policy, such as "mixed_bfloat16".

    Data, in `fit` and `evaluate`:
        sources and targets, two lists of strings: `fit(sources, targets)`; or one list of (source, target) pairs;
        a dict of `encoder_token_ids`, `decoder_token_ids` and, where needed, their `…_padding_mask`, alone (each
        next decoder token is a target) or with `y` (batch, length) and `sample_weight`;
        any `PyDataset` or `tf.data.Dataset` of such batches.

    `predict` takes pairs or dicts, and returns logits, (batch, length, vocabulary_size).

    Raises:
        ValueError: a token id out of range, an unknown input, a source or target longer than the model reads.

    Example:
    ```python
    model = kerasllm.Seq2SeqLM(kerasllm.TransformerConfig.from_name("t5_tiny", vocabulary_size=256))
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    x = {name: numpy.random.randint(0, 256, (8, 12)) for name in ("encoder_token_ids", "decoder_token_ids")}
    model.fit(x, epochs=1)
    ```

    Reference: Raffel et al. (2019), "Exploring the Limits of Transfer Learning"; Vaswani et al. (2017).
    """

    input_keys = ("encoder_token_ids", "decoder_token_ids", "encoder_padding_mask", "decoder_padding_mask")

    def __init__(self, config, tokenizer=None, start_token_id=None, **kwargs):
        super().__init__(config, tokenizer, **kwargs)
        if not self.config.num_encoder_layers:
            raise ValueError("A Seq2SeqLM needs a config with an encoder. Received: num_encoder_layers=0")
        self.start_token_id = pad_token_id(self) if start_token_id is None else start_token_id
        self.check_token_ids([self.start_token_id])

    # Data ----------------------------------------------------------------------------------------------------

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        if _is_pairs(x) and y is None:
            x, y = zip(*x)
        if is_text(x):
            x, y, weights = self._text_arrays(x, y)
            sample_weight = weights if sample_weight is None else weights * np.asarray(sample_weight)
        else:
            inputs = self.as_inputs(x)
            if y is not None:
                check_next_tokens(inputs["decoder_token_ids"], y, "decoder_token_ids")
            x, y, sample_weight = self._shifted(inputs, y, sample_weight)
        return array_data(self, x, y, sample_weight, batch_size, shuffle)

    def as_inputs(self, x):
        """Pairs of texts, or dicts of arrays, as the dict of arrays that the model reads."""
        if _is_pairs(x):
            x = self._text_arrays(*zip(*x))[0]
        if not isinstance(x, dict):
            raise ValueError(
                "A Seq2SeqLM reads (source, target) pairs of texts, or a dict with "
                f"{' and '.join(map(repr, self.input_keys[:2]))}. Received: {type(x).__name__}"
            )
        inputs = {key: ops.convert_to_numpy(value) for key, value in x.items() if value is not None}
        for key in self.input_keys[:2]:
            if key not in inputs:
                raise ValueError(f"The inputs lack {key!r}. Received keys: {', '.join(map(repr, inputs))}")
        self.check_inputs(inputs)
        limit = self.config.max_sequence_length
        for key, values in inputs.items():
            if values.ndim != 2:
                raise ValueError(f"`{key}` must be (batch, length). Received: shape={values.shape}")
            if values.shape[1] > limit + key.startswith("decoder"):  # One more: the last one can be a target.
                raise ValueError(f"`{key}` has {values.shape[1]} tokens, and the model reads {limit}.")
        return inputs

    def encode_source(self, text: str) -> list[int]:
        """The token ids of a source, its end token included."""
        end = tokenizer_of(self).end_token_id
        return self.tokenizer.encode(text) + ([] if end is None else [end])

    def _text_arrays(self, sources, targets):
        if targets is None:
            raise ValueError("Sources need targets: give `y`, or a list of (source, target) pairs. Received: y=None")
        encoded = [self.encode_source(text) for text in sources]
        end = self.tokenizer.end_token_id
        if end is None:
            raise ValueError("The tokenizer has no end token, so no target could ever end. Train it with one: </s>.")
        written = self.tokenizer.encode(list(targets))
        limit = self.config.max_sequence_length
        return seq2seq_batch(
            encoded,
            written,
            encoder_length=min(limit, max(map(len, encoded), default=1)),
            decoder_length=min(limit, max(map(len, written), default=1) + 1),
            start_token_id=self.start_token_id,
            end_token_id=end,
            pad_token_id=pad_token_id(self),
        )

    @staticmethod
    def _shifted(x, y, sample_weight):
        """Without targets, they are the decoder's tokens, one to the left; padding counts nothing."""
        if y is not None:
            return x, y, sample_weight
        y = x["decoder_token_ids"][:, 1:]
        if y.shape[1] == 0:
            raise ValueError("A target of one token has no next token to predict. Give at least two.")
        if sample_weight is not None:
            sample_weight = np.asarray(sample_weight)[:, 1:]
        if "decoder_padding_mask" in x:
            counts = x["decoder_padding_mask"][:, 1:].astype("float32")
            sample_weight = counts if sample_weight is None else counts * sample_weight
        return {k: v[:, :-1] if k.startswith("decoder") else v for k, v in x.items()}, y, sample_weight

    # Text ----------------------------------------------------------------------------------------------------

    def score(self, sources, targets):
        """Log-likelihood, in nats, of each token of each target (its end included), given its source.

        Args:
            sources, targets: lists of strings, of the same length.

        Returns:
            a list of float32 arrays.
        """
        self.sync_weights()
        x, y, weights = self._text_arrays(sources, targets)
        with no_gradient():
            hidden = self.transformer(training=False, **x)
            flat = self.head_input(ops.reshape(hidden, (-1, self.config.hidden_dim)))
            scores = token_log_likelihoods(flat, self.head_kernel(), ops.convert_to_tensor(y.reshape(-1)))
        scores = ops.convert_to_numpy(scores).reshape(y.shape)
        return [row[: int(size)] for row, size in zip(scores, weights.sum(axis=1))]

    def trace(self, source, target=None):
        """Runs a source and a target (what the model writes, when left out) through the explicit attention path.

        Args:
            source, target: strings, or lists of token ids.

        Returns:
            a `Seq2SeqTrace`.
        """
        self.sync_weights()
        if target is None:
            target = self.generate(single(source))
        source = self.encode_source(source) if isinstance(source, str) else list(single(source))
        target = self.tokenizer.encode(target) if isinstance(target, str) else list(single(target))
        written = [self.start_token_id, *target]
        inputs = {"encoder_token_ids": np.array([source], "int32"), "decoder_token_ids": np.array([written], "int32")}
        self.as_inputs(inputs)
        with no_gradient():
            hidden, encoder, decoder = self.transformer(training=False, trace=True, **inputs)
            logits = self.logits(hidden)

        def numpy(arrays):
            return [ops.convert_to_numpy(array) for array in arrays]

        def tokens(ids):
            return [self.tokenizer.id_to_token(i) if self.tokenizer else str(i) for i in ids]

        return Seq2SeqTrace(
            tokens(source),
            tokens(written),
            encoder_attentions=numpy(encoder[2]),
            attentions=numpy(decoder[2]),
            cross_attentions=numpy(decoder[3]),
            encoder_hidden_states=numpy(encoder[1]),
            hidden_states=numpy(decoder[1]),
            logits=ops.convert_to_numpy(logits),
            model=self,
        )

    def generate(self, sources, max_new_tokens=None, **options):
        """Writes a target for each source.

        Args:
            sources: a string, a list of strings, a list of token ids, or a list of such lists.
            max_new_tokens: tokens to make at the most; 100, within the context, when left out.
            options: as in `CausalLM.generate`; `truncation` is of the source, to its beginning.

        Returns:
            the targets alone: str for str, list for list, token ids for token ids.

        Raises:
            ValueError: an empty source or one longer than the encoder reads, or a setting out of range.

        Example:
        ```python
        model.generate("3rd of May 2021")
        ```
        """
        from kerasllm.generation.text import generate

        return generate(self, sources, max_new_tokens, **options)

    def get_config(self):
        return {**super().get_config(), "start_token_id": self.start_token_id}


def _is_pairs(x) -> bool:
    return isinstance(x, list | tuple) and len(x) > 0 and all(isinstance(p, tuple | list) and is_text(p) for p in x)
