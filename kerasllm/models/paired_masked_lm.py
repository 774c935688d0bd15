"""PairedMaskedLM: BERT's own pretraining, which fills in hidden tokens and tells whether one text continues another."""

import dataclasses
from typing import ClassVar

import keras
from keras import ops

from kerasllm.data.dataset import TokenDataset
from kerasllm.data.shards import TokenShards
from kerasllm.layers.projection import Projection
from kerasllm.metrics import TokenMetrics
from kerasllm.models.id_range import IdRange
from kerasllm.models.inputs import array_data, pad_token_id, tokenizer_of
from kerasllm.models.language_model import HeadInput
from kerasllm.models.masked_lm import MaskedLM, documents_of
from kerasllm.targets import counted_targets

TARGETS = ("masked_lm", "next_sentence")


@keras.saving.register_keras_serializable("kerasllm")
class PairedMaskedLM(MaskedLM):
    """A `MaskedLM` that reads pairs of texts, and also tells whether the second continues the first.

    Args:
        config: a `TransformerConfig` (or its dict) with `causal=False` and a `pooler`, which the answer is read from.
        tokenizer: a `Tokenizer` with `[CLS]`, `[SEP]` and `[MASK]`; left out for token ids only.
        dtype: a Keras dtype policy, such as "mixed_bfloat16".

    Data, in `fit` and `evaluate`:
        strings, or rows of token ids, without `y`: pairs are cut from them, one after the other, others in each epoch;
        a `kerasllm.data.TokenDataset` with the objective "next_sentence";
        the inputs of a `MaskedLM`, with two targets in a dict `y`, `"masked_lm"` (batch, length) and `"next_sentence"`
        (batch,), 0 where the second text continues the first and 1 where not, and a `sample_weight` for both;
        any `PyDataset` or `tf.data.Dataset` of such batches.

    The loss is the sum of both tasks' mean cross-entropy. `predict` takes what that of a `MaskedLM` takes, and returns
    logits for both: a dict of (batch, length, vocabulary_size) and (batch, 2).

    Raises:
        ValueError: as a `MaskedLM`; a config without a pooler; one of the two targets is missing.

    Example:
    ```python
    config = kerasllm.TransformerConfig.from_name("bert_tiny", vocabulary_size=tokenizer.vocabulary_size)
    model = kerasllm.PairedMaskedLM(config, tokenizer)
    model.compile(keras.optimizers.AdamW(1e-3))
    train, validation = kerasllm.data.from_text("builtin:pydoc", tokenizer, objective="next_sentence")
    model.fit(train, validation_data=validation)
    model.predict([("to be or not to be", "that is the question")])["next_sentence"]  # (1, 2)
    ```

    Reference: Devlin et al. (2018), "BERT", section 3.1.
    """

    loss_reads_logits = False
    target_axes_of: ClassVar = {"masked_lm": 2, "next_sentence": 1}

    def __init__(self, config, tokenizer=None, **kwargs):
        super().__init__(config, tokenizer, **kwargs)
        if not self.config.pooler:
            raise ValueError("A PairedMaskedLM needs a config with pooler=True. Received: pooler=False")
        self.transformer.pooler.trainable = True
        initial = keras.initializers.RandomNormal(stddev=self.config.initializer_range)
        self.next_sentence = Projection(2, kernel_initializer=initial, dtype=self.dtype_policy, name="next_sentence")
        self.next_sentence.build((None, self.config.hidden_dim))

    def logits(self, hidden):
        return {"masked_lm": self.token_logits(hidden), "next_sentence": self.next_sentence_logits(hidden)}

    def next_sentence_logits(self, hidden):
        """(batch, length, hidden_dim) → (batch, 2): that the second text continues the first, and that it does not."""
        return ops.cast(self.next_sentence(self.transformer.pooled(hidden)), "float32")

    # Training ------------------------------------------------------------------------------------------------

    def default_metrics(self):
        return PairMetrics()

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not self.uses_default_loss:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        _check_keys(y)
        if not isinstance(y_pred, HeadInput):
            self.check_logits()
        hidden = y_pred.hidden
        y, weights = counted_targets(x, y, sample_weight)
        labels = ops.cast(y["next_sentence"], "int32")
        log_p = ops.log_softmax(self.next_sentence_logits(hidden), axis=-1)
        counts = weights["next_sentence"]
        nll = -ops.sum(counts * ops.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0])
        correct = ops.sum(counts * ops.cast(ops.cast(ops.argmax(log_p, axis=-1), "int32") == labels, "float32"))
        pairs = ops.maximum(ops.sum(counts), 1e-9)
        self.token_metrics.update_pairs(nll, correct, pairs)
        return self.token_loss(hidden, y["masked_lm"], weights["masked_lm"], training, other_loss=nll / pairs)

    def _tell_optimizer_tokens(self, data):
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        super()._tell_optimizer_tokens((x, y["masked_lm"], (weights or {}).get("masked_lm")))

    @property
    def target_range(self):
        tokens = dataclasses.replace(self.token_range, ignores=True)
        return {"masked_lm": tokens, "next_sentence": IdRange("Label", "number of labels", 2, ignores=True)}

    def check_target_keys(self, y):
        _check_keys(y)

    def check_targets(self, y):
        _check_keys(y)
        for name, allowed in self.target_range.items():
            allowed.check(y[name])

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        if y is not None:
            _check_keys(y)
            return array_data(self, self.as_inputs(x), y, sample_weight, batch_size, shuffle)
        from kerasllm.objectives.named import build

        objective = build("next_sentence", tokenizer_of(self))
        documents = documents_of(self, x, marked=False)
        longest = min(objective.row_length(self.config.max_sequence_length), max(2, *map(len, documents)))
        return TokenDataset(
            TokenShards.from_arrays(documents, tokenizer_fingerprint=self.tokenizer.fingerprint),
            sequence_length=longest,
            batch_size=batch_size,
            objective=objective,
            shuffle=shuffle,
            drop_remainder=False,
            pad_token_id=pad_token_id(self),
        )


@keras.saving.register_keras_serializable("kerasllm")
class PairMetrics(TokenMetrics):
    """`TokenMetrics` of the hidden tokens, and the loss and accuracy over pairs of texts.

    `loss` is that of both tasks; perplexity and accuracy are of the tokens.
    """

    def __init__(self, name="tokens", **kwargs):
        super().__init__(name=name, **kwargs)
        self.pair_sums = self.add_variable((3,), initializer="zeros", dtype="float32", name="pair_sums")

    def update_pairs(self, nll, correct, pairs):
        """Adds sums over a batch: −log p in nats, pairs told rightly, pairs (or their weight)."""
        values = [ops.cast(v, "float32") for v in (nll, correct, pairs)]
        self.pair_sums.assign_add(ops.stop_gradient(ops.stack(values)))

    def result(self):
        nll, correct, pairs = (self.pair_sums[i] for i in range(3))
        pairs = ops.maximum(pairs, 1e-9)
        return {**super().result(), "next_sentence_loss": nll / pairs, "next_sentence_accuracy": correct / pairs}


def _check_keys(y) -> None:
    if not isinstance(y, dict) or set(y) != set(TARGETS):
        found = sorted(y) if isinstance(y, dict) else type(y).__name__
        raise ValueError(
            f"A PairedMaskedLM trains on a dict of two targets, {' and '.join(TARGETS)}: use the objective "
            f'"next_sentence", or NextSentence(..., masked=MaskedLM(...)). Received: {found}'
        )
