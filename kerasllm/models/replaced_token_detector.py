"""ReplacedTokenDetector: ELECTRA, which tells the tokens of a text from those that a small generator put in."""

from typing import NamedTuple

import keras
from keras import ops

from kerasllm.config import TransformerConfig
from kerasllm.layers.feed_forward import ACTIVATIONS
from kerasllm.layers.inner import inner
from kerasllm.layers.masked_head import MaskedHead
from kerasllm.layers.projection import Projection
from kerasllm.layers.stack import Stack, Visibility
from kerasllm.losses import linear_cross_entropy
from kerasllm.models.inputs import array_data, model_inputs, packed_data, tokenizer_of
from kerasllm.models.language_model import LanguageModel
from kerasllm.models.marked_text import is_text_rows, marked_inputs
from kerasllm.models.masked_lm import documents_of, with_bias, with_ones
from kerasllm.objectives.replaced_tokens import NUM_DRAWS
from kerasllm.targets import counted_targets

DETECTOR_WEIGHT = 50.0  # The detector's loss, which is small, against the generator's: the paper's.
DRAWN = ("masked_positions", "draws")  # What the objective adds to the inputs for the generator.


class Detected(NamedTuple):
    """A token of a text, and how probable it is that it is not the text's own."""

    token: str
    probability: float


@keras.saving.register_keras_serializable("kerasllm")
class ReplacedTokenDetector(LanguageModel):
    """An ELECTRA: says of each token whether it is the text's own or was put in its place.

    In training a generator, a masked language model of a few layers on the same embedding, draws tokens for those that
    are hidden, and the detector learns from all of them. The detector is what is saved: a model that was read from a
    directory has a new generator.

    Args:
        config: a `TransformerConfig` (or its dict) with `causal=False`, of the detector; a `pooler` is left out.
        tokenizer: a `Tokenizer` with a mask token, for models that read text; left out for token ids only.
        generator_layers: blocks of the generator; a quarter of the detector's, at least 1, when left out.
        dtype: a Keras dtype policy, such as "mixed_bfloat16".

    Data, in `fit` and `evaluate`:
        strings, or rows of token ids (a list, an array, a dict), without `y`: 15 % of the tokens are hidden, others
        in each epoch (`kerasllm.objectives.GeneratedTokens`);
        a `kerasllm.data.TokenDataset` with the objective "generated";
        a dict of `token_ids`, `masked_positions`, `draws` and, where needed, `padding_mask`, `segment_ids`,
        `document_ids`, `positions`, with `y` (batch, length), the true tokens, and `sample_weight` (batch, length), 0
        for padding; any `PyDataset` or `tf.data.Dataset` of such batches.

    The loss is the generator's mean cross-entropy and 50 times the detector's. Beside it `generator_loss` and
    `generator_accuracy` are reported, `detector_loss` and `detector_accuracy`, and `constant_loss`: what the detector's
    would be if it knew only how many tokens were replaced.

    `predict` also takes strings and pairs (tuples) of them, and returns logits, (batch, length), above 0 where a token
    is more likely not the text's own.

    Raises:
        ValueError: a token id out of range, an unknown input, a text longer than the model reads, no mask token.

    Example:
    ```python
    config = kerasllm.TransformerConfig.from_name("bert_tiny", vocabulary_size=tokenizer.vocabulary_size)
    model = kerasllm.ReplacedTokenDetector(config, tokenizer)
    model.compile(keras.optimizers.AdamW(1e-3))
    model.fit(["to be or not to be", "that is the question"])
    model.detect("to be or not to question")
    ```

    Reference: Clark et al. (2020), "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators".
    """

    input_keys = ("token_ids", "padding_mask", "segment_ids", "document_ids", "positions", *DRAWN)

    loss_reads_logits = False

    def __init__(self, config, tokenizer=None, generator_layers=None, **kwargs):
        config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        super().__init__(config.replace(pooler=False), tokenizer, **kwargs)
        if self.config.causal:
            raise ValueError("A ReplacedTokenDetector needs a config with causal=False. Received: causal=True")
        if generator_layers is None:
            generator_layers = max(1, self.config.num_layers // 4)
        if isinstance(generator_layers, bool) or not isinstance(generator_layers, int) or generator_layers < 1:
            raise ValueError(
                f"`generator_layers` must be a whole number from 1 on. Received: generator_layers={generator_layers!r}"
            )
        self.generator_layers = generator_layers
        hidden_shape = (None, None, self.config.hidden_dim)
        self.generator = Stack(self.config, generator_layers, dtype=self.dtype_policy, name="generator")
        self.masked_head = MaskedHead(self.config, dtype=self.dtype_policy, name="masked_head")
        self.detector_dense = self._projection(self.config.hidden_dim, "detector_dense")
        self.detector_logit = self._projection(1, "detector_logit")
        for layer in (self.generator, self.masked_head, self.detector_dense, self.detector_logit):
            layer.build(hidden_shape)

    def _projection(self, units, name):
        initial = keras.initializers.RandomNormal(stddev=self.config.initializer_range)
        return Projection(units, kernel_initializer=initial, dtype=self.dtype_policy, name=name)

    # Forward -------------------------------------------------------------------------------------------------

    def call(self, inputs, training=None):
        if self._stage.now != "loss":
            plain = _without_drawn(inputs) if isinstance(inputs, dict) else inputs
            return super().call(plain, training)
        if not set(DRAWN) <= set(inputs):
            raise ValueError(
                'A ReplacedTokenDetector trains on batches of the objective "generated", or on texts or token ids '
                f"without targets. Received: inputs {', '.join(inputs)} without {' and '.join(DRAWN)}"
            )
        generated, corrupted = self._generate(inputs, training)
        plain = {**_without_drawn(inputs), "token_ids": corrupted}
        hidden = inner(self.transformer, training=training, **plain)
        return {"generated": generated, "corrupted": corrupted, "logits": self.logits(hidden)}

    def _generate(self, inputs, training):
        """The generator's hidden states where tokens are hidden, (batch, places, dim); and the text as it fills it
        in, (batch, length)."""
        ids, places, positions = inputs["token_ids"], inputs["masked_positions"], inputs.get("positions")
        x = inner(self.transformer.embedding, ids, positions, inputs.get("segment_ids"), training=training)
        visibility = Visibility(inputs.get("padding_mask"), inputs.get("document_ids"))
        hidden = inner(self.generator, x, visibility, positions=positions, training=training)
        hidden = ops.take_along_axis(hidden, _inside(places, ids)[:, :, None], axis=1)
        drawn = _draw(self._generator_logits(ops.stop_gradient(hidden)), inputs["draws"])
        is_place = places[:, :, None] == ops.arange(ids.shape[1], dtype="int32")
        filled = ops.sum(ops.where(is_place, drawn[:, :, None], 0), axis=1)
        return hidden, ops.where(ops.any(is_place, axis=1), filled, ops.cast(ids, "int32"))

    def _generator_logits(self, hidden):
        return ops.cast(ops.matmul(self.head_input(hidden), self.head_kernel()), "float32")

    def head_input(self, hidden):
        return with_ones(super().head_input(self.masked_head(hidden)))

    def head_kernel(self):
        return with_bias(super().head_kernel(), self.masked_head.bias)

    def logits(self, hidden):
        hidden = ACTIVATIONS[self.config.activation](inner(self.detector_dense, hidden))
        return ops.cast(inner(self.detector_logit, hidden), "float32")[..., 0]

    # Training ------------------------------------------------------------------------------------------------

    def default_metrics(self):
        return DetectionMetrics()

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not self.uses_default_loss:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if not isinstance(y_pred, dict):
            self.check_logits()
        targets, weights = counted_targets(x, ops.cast(y, "int32"), sample_weight)
        places, at = x["masked_positions"], _inside(x["masked_positions"], targets)
        hidden_weights = ops.take_along_axis(weights, at, axis=1) * ops.cast(places < targets.shape[1], "float32")
        generator_loss, _, correct = linear_cross_entropy(
            self.head_input(ops.reshape(y_pred["generated"], (-1, self.config.hidden_dim))),
            self.head_kernel(),
            ops.reshape(ops.take_along_axis(targets, at, axis=1), (-1,)),
            ops.reshape(hidden_weights, (-1,)),
            label_smoothing=self.label_smoothing if training else 0.0,
            z_loss=self.z_loss if training else 0.0,
        )
        logits, replaced = y_pred["logits"], ops.cast(y_pred["corrupted"] != targets, "float32")
        detector_loss = ops.sum(weights * (ops.softplus(logits) - replaced * logits))
        detected = ops.sum(weights * ops.cast((logits > 0) == (replaced > 0), "float32"))
        hidden, tokens = ops.sum(hidden_weights), ops.sum(weights)
        self.token_metrics.update_state(
            [generator_loss, correct, hidden, detector_loss, detected, ops.sum(weights * replaced), tokens]
        )
        loss = _mean(generator_loss, hidden) + DETECTOR_WEIGHT * _mean(detector_loss, tokens)
        return self._with_other_losses(loss)

    def as_inputs(self, x):
        return marked_inputs(self, x) if is_text_rows(x) else model_inputs(self, x)

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        if y is not None:
            return array_data(self, self.as_inputs(x), y, sample_weight, batch_size, shuffle)
        from kerasllm.objectives.named import build

        return packed_data(self, documents_of(self, x), build("generated", tokenizer_of(self)), batch_size, shuffle)

    # Use -----------------------------------------------------------------------------------------------------

    def detect(self, texts, batch_size: int = 32) -> list[Detected] | list[list[Detected]]:
        """The tokens of texts, special ones included, with how probable it is that they are not the text's own.

        Args:
            texts: a string, or a list of strings.
            batch_size: texts in a batch.

        Returns:
            a list of a `Detected(token, probability)` for each token; for a list of texts, a list of such lists.

        Example:
        ```python
        strangest = max(model.detect("the cat sat on the theorem"), key=lambda token: token.probability)
        ```
        """
        tokenizer, inputs = tokenizer_of(self), self.as_inputs(texts)
        probabilities = ops.convert_to_numpy(ops.sigmoid(self.predict(inputs, batch_size=batch_size, verbose=0)))
        rows = [
            [Detected(tokenizer.id_to_token(i), float(p)) for i, p in zip(ids[real], row[real])]
            for ids, real, row in zip(inputs["token_ids"], inputs["padding_mask"], probabilities)
        ]
        return rows[0] if isinstance(texts, str) else rows

    def get_config(self):
        return {**super().get_config(), "generator_layers": self.generator_layers}


@keras.saving.register_keras_serializable("kerasllm")
class DetectionMetrics(keras.metrics.Metric):
    """The figures of a `ReplacedTokenDetector`, summed over all batches and divided once."""

    reports_loss = True

    def __init__(self, name="tokens", **kwargs):
        super().__init__(name=name, **kwargs)
        self.sums = self.add_variable((7,), initializer="zeros", dtype="float32", name="sums")

    def update_state(self, sums):
        """Adds sums over a batch: the generator's loss, tokens it drew rightly, hidden tokens; the detector's loss,
        tokens it told rightly, replaced tokens, tokens."""
        self.sums.assign_add(ops.stop_gradient(ops.stack([ops.cast(v, "float32") for v in sums])))

    def result(self):
        generator_loss, correct, hidden, detector_loss, detected, replaced, tokens = (self.sums[i] for i in range(7))
        share = ops.clip(_mean(replaced, tokens), 1e-7, 1 - 1e-7)
        results = {
            "generator_loss": _mean(generator_loss, hidden),
            "generator_accuracy": _mean(correct, hidden),
            "detector_loss": _mean(detector_loss, tokens),
            "detector_accuracy": _mean(detected, tokens),
            "constant_loss": -share * ops.log(share) - (1 - share) * ops.log(1 - share),
        }
        loss = {"loss": results["generator_loss"] + DETECTOR_WEIGHT * results["detector_loss"]}
        return {**loss, **results} if self.reports_loss else results


def _draw(logits, draws):
    """A token for each row of logits (…, vocabulary): the cumulative distribution inverted at `draws` (…) / 2**24."""
    uniforms = ops.cast(draws, "float32") / NUM_DRAWS
    cumulative = ops.cumsum(ops.softmax(logits, axis=-1), axis=-1)
    below = ops.cast(cumulative <= uniforms[..., None] * cumulative[..., -1:], "int32")
    return ops.minimum(ops.sum(below, axis=-1), logits.shape[-1] - 1)


def _inside(places, ids):
    """Places that index the axis of `ids`, also those that only fill up."""
    return ops.minimum(ops.cast(places, "int32"), ids.shape[1] - 1)


def _mean(total, count):
    return total / ops.maximum(count, 1e-9)


def _without_drawn(inputs: dict) -> dict:
    return {key: value for key, value in inputs.items() if key not in DRAWN}
