"""MaskedLM: a Transformer trained to fill in hidden tokens, from both sides."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from kerasllm.layers.masked_head import MaskedHead
from kerasllm.metrics import TokenMetrics
from kerasllm.models.inputs import array_data, is_text, model_inputs, packed_data, tokenizer_of
from kerasllm.models.language_model import LanguageModel, no_gradient
from kerasllm.models.marked_text import is_text_rows, marked_inputs, marks


class Filled(NamedTuple):
    """A token that may stand in the place of a mask, and how probable it is there."""

    token: str
    token_id: int
    probability: float


@keras.saving.register_keras_serializable("kerasllm")
class MaskedLM(LanguageModel):
    """A BERT: tells hidden tokens from those on both sides of them.

    Args:
        config: a `TransformerConfig` (or its dict) with `causal=False`.
        tokenizer: a `Tokenizer` with a mask token, for models that read text; left out for token ids only.
        dtype: a Keras dtype policy, such as "mixed_bfloat16".

    Data, in `fit` and `evaluate`:
        strings, or rows of token ids (a list, an array, a dict), without `y`: 15 % of the tokens are hidden, others
        in each epoch (`kerasllm.objectives.MaskedLM`);
        a dict of `token_ids` and, where needed, `padding_mask`, `segment_ids`, `document_ids`, `positions`, with `y`
        (batch, length), the true tokens, and `sample_weight` (batch, length), 1 where they count;
        a `kerasllm.data.TokenDataset` with the objective "masked", any `PyDataset`, or a `tf.data.Dataset` of such
        batches.

    `predict` also takes strings and pairs (tuples) of them, and returns logits, (batch, length, vocabulary_size).

    Raises:
        ValueError: a token id out of range, an unknown input, a text longer than the model reads, no mask token.

    Example:
    ```python
    config = kerasllm.TransformerConfig.from_name("bert_tiny", vocabulary_size=tokenizer.vocabulary_size)
    model = kerasllm.MaskedLM(config, tokenizer)
    model.compile(keras.optimizers.AdamW(1e-3))
    model.fit(["to be or not to be", "that is the question"])
    model.predict_masks("to be or not to [MASK]")
    ```

    Reference: Devlin et al. (2018), "BERT: Pre-training of Deep Bidirectional Transformers for Language
    Understanding".
    """

    input_keys = ("token_ids", "padding_mask", "segment_ids", "document_ids", "positions")

    def __init__(self, config, tokenizer=None, **kwargs):
        super().__init__(config, tokenizer, **kwargs)
        if self.config.causal:
            raise ValueError("A MaskedLM needs a config with causal=False. Received: causal=True")
        self.masked_head = MaskedHead(self.config, dtype=self.dtype_policy, name="masked_head")
        self.masked_head.build((None, None, self.config.hidden_dim))

    def head_input(self, hidden):
        return with_ones(super().head_input(self.masked_head(hidden)))

    def head_kernel(self):
        return with_bias(super().head_kernel(), self.masked_head.bias)

    def head_rows(self):
        return None

    def trains_head(self):
        return super().trains_head() or self.masked_head.bias.trainable

    def logits(self, hidden):
        return self.token_logits(hidden)

    def token_logits(self, hidden):
        """(…, hidden_dim) → (…, vocabulary_size)."""
        logits = super().logits(self.masked_head(hidden))
        return logits + ops.cast(self.masked_head.bias, logits.dtype)

    def default_metrics(self):
        return TokenMetrics()  # Bits per byte would be of the hidden bytes alone.

    def as_inputs(self, x):
        return marked_inputs(self, x) if is_text_rows(x) else model_inputs(self, x)

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        if y is not None:
            return array_data(self, self.as_inputs(x), y, sample_weight, batch_size, shuffle)
        from kerasllm.objectives.named import build

        return packed_data(self, documents_of(self, x), build("masked", tokenizer_of(self)), batch_size, shuffle)

    def predict_masks(self, texts, top_k: int = 5):
        """The likeliest tokens for each mask token of a text.

        Args:
            texts: a string, or a list of strings, each with at least one of the tokenizer's mask token (`[MASK]`).
            top_k: tokens for each mask.

        Returns:
            for each mask a list of `top_k` `Filled(token, token_id, probability)`, the likeliest first; for a list
            of strings, a list of that.

        Raises:
            ValueError: a text without a mask, a tokenizer without a mask token, or a text that is too long.

        Example:
        ```python
        [best, *others] = model.predict_masks("the [MASK] sat on the mat")[0]
        ```
        """
        tokenizer = tokenizer_of(self)
        if tokenizer.mask_token_id is None:
            raise ValueError(
                "The tokenizer has no mask token. Train it with "
                f'Tokenizer.train(..., special_tokens=[..., "[MASK]"]). Received: {tokenizer}'
            )
        if not 1 <= top_k <= tokenizer.vocabulary_size:
            raise ValueError(f"`top_k` must be in [1, {tokenizer.vocabulary_size}]. Received: top_k={top_k}")
        inputs = self.as_inputs(texts)
        places = inputs["token_ids"] == tokenizer.mask_token_id
        if not places.any(axis=1).all():
            text = texts if isinstance(texts, str) else texts[int(np.argmin(places.any(axis=1)))]
            mask = tokenizer.id_to_token(tokenizer.mask_token_id)
            raise ValueError(
                f"There is no {mask} in the text: write it where a token is to be found. Received: {text!r}"
            )
        with no_gradient():
            hidden = self.transformer(training=False, **inputs)
            hidden = ops.take(ops.reshape(hidden, (-1, self.config.hidden_dim)), np.flatnonzero(places), axis=0)
            # A vocabulary padded beyond the tokenizer's has ids that are no tokens.
            logits = ops.cast(self.token_logits(hidden)[:, : tokenizer.vocabulary_size], "float32")
            probabilities, ids = (ops.convert_to_numpy(x) for x in ops.top_k(ops.softmax(logits), top_k))
        filled = iter(
            [Filled(tokenizer.id_to_token(i), int(i), float(p)) for i, p in zip(*mask)]
            for mask in zip(ids, probabilities)
        )
        rows = [[next(filled) for _ in range(count)] for count in places.sum(axis=1)]
        return rows[0] if isinstance(texts, str) else rows


def documents_of(model, x, marked: bool = True) -> list[list[int]]:
    """Texts, or rows of token ids, as lists of ids without padding.

    Args:
        marked: whether texts are put between the tokenizer's special tokens.
    """
    if is_text(x):
        start, end = marks(tokenizer_of(model)) if marked else ([], [])
        return [start + ids + end for ids in tokenizer_of(model).encode([x] if isinstance(x, str) else list(x))]
    inputs = model_inputs(model, x)
    mask = inputs.get("padding_mask", np.ones(inputs["token_ids"].shape))
    return [row[real].tolist() for row, real in zip(inputs["token_ids"], mask.astype(bool))]


# The chunked loss knows of kernels only, and a masked language model's head has a bias: it is one more row of the
# kernel, which a column of ones multiplies.


def with_ones(hidden):
    """(…, width) → (…, width + 1)."""
    return ops.concatenate([hidden, ops.ones_like(hidden[..., :1])], axis=-1)


def with_bias(kernel, bias):
    """(width, vocabulary_size) → (width + 1, vocabulary_size)."""
    return ops.concatenate([kernel, ops.cast(bias, kernel.dtype)[None]], axis=0)
