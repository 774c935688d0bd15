"""TextEmbedder: a Transformer that turns texts into vectors, near ones for texts that belong together."""

import keras
import numpy as np
from keras import ops

from kerasllm.data.arrays import ArrayDataset
from kerasllm.layers.inner import inner
from kerasllm.layers.pooling import check_pooling, pool
from kerasllm.models.inputs import is_text, model_inputs
from kerasllm.models.language_model import LanguageModel
from kerasllm.models.marked_text import marked_inputs

SIDES = ("anchor", "positive", "negative")


@keras.saving.register_keras_serializable("kerasllm")
class TextEmbedder(LanguageModel):
    """Gives each text a vector, and learns that what belongs together is near and all else of a batch is far.

    Args:
        config: a `TransformerConfig` (or its dict) of one stack.
        tokenizer: a `Tokenizer`, for models that read text; left out for token ids only.
        pooling: "mean" of the tokens' states, the "first" or the "last" token's, or the config's "pooler".
        normalize: whether vectors have length 1.
        temperature: what cosine similarities are divided by in the loss.
        truncation: cut texts that are longer than the model reads, instead of raising.
        max_length: tokens that a text has at the most, special ones included; as many as the model reads when left
            out.
        prompts: dict of texts to put before others, by name, such as `{"query": "query: "}`.
        default_prompt: the name of the prompt that is put before each text; none when left out.
        add_special_tokens: put texts between the special tokens of the tokenizer's own template, as transformers
            does, and not between its start and its end token.
        dtype: a Keras dtype policy, such as "mixed_bfloat16".

    Data, in `fit` and `evaluate`, without `y`:
        a list of (anchor, positive) or (anchor, positive, hard negative) tuples of strings;
        a list of strings (SimCSE): each is its own positive, and dropout makes the two vectors differ. `evaluate`
        has no dropout, so there only the distance to other texts counts;
        an integer array (batch, length) or a dict of `token_ids`, `padding_mask`, `segment_ids`, as SimCSE; or
        `{"anchor": …, "positive": …}`, perhaps with "negative", of such dicts (`kerasllm.objectives.pair_rows`);
        any `PyDataset` or `tf.data.Dataset` of such batches.

    Compiled without a loss, it trains on InfoNCE among the texts of a batch, and reports `accuracy`: the part of the
    anchors that are nearest to their own positive. `predict` returns vectors, (batch, hidden_dim), float32.

    Raises:
        ValueError: targets, tuples of other sizes, SimCSE without dropout, batches of one, a token id out of range,
            a text longer than the model reads.

    Example:
    ```python
    config = kerasllm.TransformerConfig.from_name("bert_tiny", vocabulary_size=tokenizer.vocabulary_size)
    model = kerasllm.TextEmbedder(config, tokenizer)
    model.compile(keras.optimizers.AdamW(1e-3))
    model.fit([("how do I sort a list", "sorted"), ("how long is a list", "len")])
    model.similarity("sort a list", ["sorted", "len"])
    ```

    Reference: Reimers and Gurevych (2019), "Sentence-BERT"; Gao et al. (2021), "SimCSE".
    """

    input_keys = ("token_ids", "padding_mask", "segment_ids")
    predicts_tokens = loss_reads_logits = False

    def __init__(
        self,
        config,
        tokenizer=None,
        pooling="mean",
        normalize=True,
        temperature=0.05,
        truncation=False,
        max_length=None,
        prompts=None,
        default_prompt=None,
        add_special_tokens=False,
        **kwargs,
    ):
        super().__init__(config, tokenizer, **kwargs)
        if max_length is not None and (
            isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 3
        ):
            raise ValueError(f"`max_length` must be a whole number from 3 on. Received: max_length={max_length!r}")
        prompts = {} if prompts is None else prompts
        if not isinstance(prompts, dict) or not all(isinstance(x, str) for pair in prompts.items() for x in pair):
            raise ValueError(f"`prompts` must be a dict of texts by name. Received: prompts={str(prompts)[:80]}")
        if default_prompt is not None and default_prompt not in prompts:
            raise ValueError(
                f"`default_prompt` must be the name of one of the prompts ({', '.join(prompts) or 'there are none'}). "
                f"Received: default_prompt={default_prompt!r}"
            )
        self.max_length, self.prompts, self.default_prompt = max_length, dict(prompts), default_prompt
        self.add_special_tokens = add_special_tokens
        if not temperature > 0:
            raise ValueError(f"`temperature` must be positive. Received: temperature={temperature}")
        self.pooling = check_pooling(pooling, "mean", self.config.pooler)
        self.normalize, self.temperature, self.truncation = normalize, temperature, truncation
        if self.pooling == "pooler":
            self.transformer.pooler.trainable = True

    # Forward -------------------------------------------------------------------------------------------------

    def call(self, inputs, training=None):
        """Vectors (batch, hidden_dim); of anchors and what belongs to them, (batch, sides, hidden_dim)."""
        inputs = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
        if self._stage.now is None:
            self.check_inputs(inputs)
        if self._stage.now == "loss" and not _has_sides(inputs):
            if not self.config.dropout and not self.config.attention_dropout:
                raise ValueError(
                    "A text can be its own positive (SimCSE) only if dropout makes its two vectors differ. Give pairs, "
                    "or a config with dropout. Received: dropout=0, attention_dropout=0"
                )
            inputs = {"anchor": inputs, "positive": inputs}
        if not _has_sides(inputs):
            return self._embed(inputs, training)
        return ops.stack([self._embed(inputs[side], training) for side in SIDES if side in inputs], axis=1)

    def _embed(self, inputs, training):
        return self.pool(inner(self.transformer, training=training, **inputs), inputs)

    def pool(self, hidden, inputs, training=None):
        if self.pooling == "pooler":
            pooled = self.transformer.pooled(hidden)
        else:
            pooled = pool(hidden, inputs.get("padding_mask"), self.pooling)
        pooled = ops.cast(pooled, "float32")
        return ops.normalize(pooled, axis=-1) if self.normalize else pooled

    def logits(self, hidden):
        return hidden

    def check_inputs(self, inputs):
        if not _has_sides(inputs):
            return super().check_inputs(inputs)
        if not set(SIDES[:2]) <= set(inputs) <= set(SIDES):
            raise ValueError(
                f"Inputs in pairs are {', '.join(SIDES[:2])} and perhaps {SIDES[2]}. Received: {[*inputs]}"
            )
        for side in inputs.values():
            super().check_inputs(side)

    # Training ------------------------------------------------------------------------------------------------

    def default_metrics(self):
        return keras.metrics.Mean(name="accuracy")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not self.uses_default_loss:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        from kerasllm.objectives.contrastive import info_nce

        if len(y_pred.shape) != 3:
            self.check_logits()
        anchors, positives, *negatives = (y_pred[:, side] for side in range(y_pred.shape[1]))
        negatives = negatives[0] if negatives else None
        loss = ops.mean(info_nce(anchors, positives, self.temperature, negatives))
        loss = self._with_other_losses(loss)
        self.token_metrics.update_state(_is_nearest(anchors, positives, negatives))
        return loss

    def _tell_optimizer_tokens(self, data):
        """Under gradient accumulation each batch of pairs counts the same."""

    @property
    def target_range(self):
        return None

    def check_targets(self, y):
        raise ValueError("A TextEmbedder trains on texts that belong together, and has no targets. Received: y")

    def as_inputs(self, x):
        if is_text(x):
            prompt = self.prompts.get(self.default_prompt, "")
            texts = prompt + x if isinstance(x, str) else [prompt + text for text in x]
            return marked_inputs(self, texts, self.truncation)
        return model_inputs(self, x)

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        if y is not None or sample_weight is not None:
            self.check_targets(y)
        if batch_size < 2:
            raise ValueError(f"A batch needs other texts to tell an anchor from. Received: batch_size={batch_size}")
        if isinstance(x, list | tuple) and len(x) > 0 and all(isinstance(row, tuple) and is_text(row) for row in x):
            sizes = sorted({len(row) for row in x})
            if sizes not in ([2], [3]):
                raise ValueError(
                    "Texts that belong together come in twos (anchor, positive) or threes (with a hard negative). "
                    f"Received: tuples of {', '.join(map(str, sizes))}"
                )
            x = dict(zip(SIDES, (list(column) for column in zip(*x))))
        if isinstance(x, dict) and _has_sides(x):
            x = {side: self.as_inputs(rows) for side, rows in x.items()}
            self.check_inputs(x)
        else:
            x = self.as_inputs(x)
        # Rows to fill a batch up would be negatives of the others: the last batch is smaller.
        return ArrayDataset(x, batch_size=batch_size, shuffle=shuffle, fill_last=False)

    # Use -----------------------------------------------------------------------------------------------------

    def similarity(self, a, b, batch_size: int = 32):
        """Cosine similarity of texts.

        Args:
            a, b: a string, a list of strings, or arrays as `predict` takes them.
            batch_size: texts in a batch.

        Returns:
            float32, from −1 to 1: (rows of a, rows of b), without the axis of what is a single string.

        Example:
        ```python
        model.similarity("a cat", ["a dog", "a theorem"])  # (2,)
        ```
        """
        vectors = []
        for side in (a, b):
            vector = self.predict(side, batch_size=batch_size, verbose=0)
            vector = vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-12)
            vectors.append(vector[0] if isinstance(side, str) else vector)
        return np.inner(*vectors)

    def get_config(self):
        names = ("pooling", "normalize", "temperature", "truncation", "max_length", "prompts", "default_prompt")
        names += ("add_special_tokens",)
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _has_sides(inputs) -> bool:
    return any(side in inputs for side in SIDES)


def _is_nearest(anchors, positives, negatives):
    """float32 (batch,): 1 where no candidate is nearer to the anchor than its positive."""
    candidates = positives if negatives is None else ops.concatenate([positives, negatives], axis=0)
    similarities = ops.matmul(ops.normalize(anchors, axis=-1), ops.transpose(ops.normalize(candidates, axis=-1)))
    return ops.cast(ops.diagonal(similarities) >= ops.max(similarities, axis=-1), "float32")
