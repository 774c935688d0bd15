"""`Distiller`: a student is trained to answer as its teacher does, with Keras's `fit`."""

import contextlib
from collections.abc import Mapping

import keras
from keras import ops

from kerasllm.compression.divergence import DIVERGENCES, linear_distillation
from kerasllm.compression.students import evenly
from kerasllm.layers.inner import inner
from kerasllm.layers.projection import Projection
from kerasllm.models.language_model import HeadInput, LanguageModel
from kerasllm.targets import counted_targets


@keras.saving.register_keras_serializable("kerasllm")
class Distiller(LanguageModel):
    """A student and its teacher. What is trained is the student itself, which is as ever afterwards.

    The loss is hard · (cross-entropy of the true tokens) + (1 − hard) · T² · (divergence from the teacher), and what is
    added for hidden states and attention. Neither's logits are ever all held. `evaluate`, and `val_loss`, are of the
    student alone, as if it had been trained by itself. The teacher is frozen while `fit` runs.

    Args:
        student: a `CausalLM`, a `MaskedLM` or a `Seq2SeqLM`; see `student_from`.
        teacher: a larger one of the same task and vocabulary.
        divergence: "forward_kl", "reverse_kl" or "jensen_shannon"; see
            `kerasllm.compression.divergence.linear_distillation`.
        temperature: T, what both's logits are divided by.
        hard: share of the true tokens in the loss, in [0, 1]. 0 where they are not true, but the student's own.
        beta: of "jensen_shannon", in (0, 1).
        hidden: what the mean squared difference of hidden states counts. Where the widths differ, a projection of the
            student's is trained with it.
        attention: what the mean squared difference of attention weights counts; for as many heads as the teacher has.
        layer_map: student's block → teacher's block, for the two above; evenly spread when left out. With an encoder,
            the map is of the decoder.

    Data, in `fit` and `evaluate`: as for the student.

    Raises:
        ValueError: another vocabulary or task than the teacher's, or a setting out of range.

    Example:
    ```python
    student = student_from(teacher, num_layers=3)
    distiller = Distiller(student, teacher, temperature=2.0)
    distiller.compile(keras.optimizers.AdamW(1e-3))
    distiller.fit(texts)
    student.save_to_preset("saved_models/student")
    ```

    References: Hinton et al. (2015), "Distilling the Knowledge in a Neural Network"; Sanh et al. (2019), "DistilBERT";
    Jiao et al. (2019), "TinyBERT", for hidden states and attention.
    """

    loss_reads_logits = False

    def __init__(
        self,
        student,
        teacher,
        divergence: str = "forward_kl",
        temperature: float = 2.0,
        hard: float = 0.5,
        beta: float = 0.5,
        hidden: float = 0.0,
        attention: float = 0.0,
        layer_map: Mapping[int, int] | None = None,
    ):
        _check_settings(divergence, temperature, hard, beta, hidden, attention)
        check_teacher(student, teacher)
        if attention and student.config.num_heads != teacher.config.num_heads:
            raise ValueError(
                "Attention can only be matched head by head. Received: a student of "
                f"{student.config.num_heads} heads, a teacher of {teacher.config.num_heads}"
            )
        keras.Model.__init__(self, name="distiller", dtype=student.dtype_policy)  # It has no network of its own.
        self.config, self.tokenizer = student.config, student.tokenizer
        self.student, self.teacher = student, teacher
        self.settings = {"divergence": divergence, "temperature": temperature, "beta": beta, "hard": hard}
        self.hidden, self.attention = hidden, attention
        self.pairs = _pairs(student.config, teacher.config, layer_map)
        if hidden and student.config.hidden_dim != teacher.config.hidden_dim:
            self.bridge = Projection(teacher.config.hidden_dim, use_bias=False, name="bridge")
            self.bridge.build((None, student.config.hidden_dim))
        self.input_keys = student.input_keys
        self.train_data, self.fit_callbacks = None, []
        self._stage, self._static_batch, self._batches_drawn = type(student._stage)(), None, 0
        self._default_loss = self._loss_of_hidden = False
        self._token_bytes = student._token_bytes
        self.built = True

    @property
    def transformer(self):
        """The network that is trained."""
        return self.student.transformer

    def as_inputs(self, x):
        return self.student.as_inputs(x)

    def as_data(self, *arguments, **options):
        return self.student.as_data(*arguments, **options)

    def row_data(self, *arguments):
        return self.student.row_data(*arguments)

    def default_metrics(self):
        return self.student.default_metrics()

    def head_input(self, hidden):
        return self.student.head_input(hidden)

    def head_kernel(self):
        return self.student.head_kernel()

    def logits(self, hidden):
        return self.student.logits(hidden)

    def compile(self, optimizer="adamw", **options):
        """As in Keras; the loss is the distiller's own."""
        if options.get("loss") is not None:
            raise ValueError(f"A Distiller has a loss of its own. Received: loss={options['loss']!r}")
        super().compile(optimizer, **options)

    def call(self, inputs, training=None):
        inputs = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
        if not (training and self._stage.now == "loss"):
            hidden = inner(self.student.transformer, training=training, **inputs)
            return HeadInput(hidden) if self._stage.now == "loss" else self.logits(hidden)
        matching = bool(self.hidden or self.attention)
        mine = inner(self.student.transformer, training=True, trace=matching, **inputs)
        its = inner(self.teacher.transformer, training=False, trace=matching, **inputs)
        if not matching:
            return mine, ops.stop_gradient(its), ops.zeros((), "float32")
        return mine[0], ops.stop_gradient(its[0]), self._mismatch(_stacks(mine), _stacks(its))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        targets, weights = counted_targets(x, y, sample_weight)
        if not isinstance(y_pred, HeadInput if not training else tuple):
            self.check_logits()
        if not training:
            return self.token_loss(y_pred.hidden, targets, weights, training=False)
        mine, its, mismatch = y_pred
        targets, weights = ops.reshape(targets, (-1,)), ops.reshape(weights, (-1,))
        sums = linear_distillation(
            self.student.head_input(_flat(mine)),
            self.student.head_kernel(),
            self.teacher.head_input(_flat(its)),
            self.teacher.head_kernel(),
            targets,
            weights,
            **self.settings,
        )
        tokens = ops.maximum(ops.sum(weights), 1e-9)
        loss = sums[0] / tokens + mismatch
        num_bytes = self.token_metrics.count_bytes(targets, weights)
        self.token_metrics.add(loss * tokens, sums[1], sums[2], tokens, num_bytes)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return self.get_metrics_result()

    @contextlib.contextmanager
    def door(self, name):
        """The teacher is frozen in all of them: each of them may be the first to build the optimizer."""
        trained = [variable for variable in self.teacher.variables if variable.trainable]
        for variable in trained:
            variable.trainable = False
        try:
            with super().door(name):
                yield
        finally:
            for variable in trained:
                variable.trainable = True

    def get_config(self):
        models = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("student", "teacher")}
        matched = {"hidden": self.hidden, "attention": self.attention, "layer_map": self.pairs[-1]}
        return {**models, **self.settings, **matched}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        read = keras.saving.deserialize_keras_object
        models = {name: read(config[name], custom_objects) for name in ("student", "teacher")}
        return cls(**{**config, **models, "layer_map": dict(config["layer_map"])})

    def _mismatch(self, mine, its):
        """What hidden states and attention weights differ by, stack by stack."""
        total = ops.zeros((), "float32")
        for (states, weights), (wanted, wanted_weights), pairs in zip(mine, its, self.pairs):
            for here, there in pairs:
                if self.hidden:
                    state = states[here + 1]
                    state = inner(self.bridge, state) if hasattr(self, "bridge") else state
                    total += self.hidden / len(pairs) * _squares(state, wanted[there + 1])
                if self.attention:
                    total += self.attention / len(pairs) * _squares(weights[here], wanted_weights[there])
        return total


def check_teacher(student, teacher) -> None:
    """Raises a ValueError unless a student can learn from a teacher."""
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, LanguageModel) or not model.predicts_tokens:
            raise ValueError(
                f"The {name} must be a CausalLM, a MaskedLM or a Seq2SeqLM. Received: a {type(model).__name__}"
            )
    if student is teacher:
        raise ValueError("The student is its own teacher. Make one with student_from(teacher, num_layers).")
    if student.input_keys != teacher.input_keys:
        raise ValueError(
            "Student and teacher must have the same task. "
            f"Received: a {type(student).__name__} and a {type(teacher).__name__}"
        )
    sizes = [model.config.vocabulary_size for model in (student, teacher)]
    prints = [model.tokenizer and model.tokenizer.fingerprint for model in (student, teacher)]
    if sizes[0] != sizes[1] or (None not in prints and prints[0] != prints[1]):
        raise ValueError(
            f"The teacher has another vocabulary than the student: {sizes[1]} and {sizes[0]} tokens"
            f"{', and other tokenizers' if sizes[0] == sizes[1] else ''}. A student learns from distributions over the "
            "same tokens: give it the teacher's tokenizer, or train it on texts that the teacher wrote."
        )


def _check_settings(divergence, temperature, hard, beta, hidden, attention) -> None:
    if divergence not in DIVERGENCES:
        raise ValueError(f"`divergence` must be one of {', '.join(DIVERGENCES)}. Received: divergence={divergence!r}")
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive. Received: temperature={temperature!r}")
    if not 0 <= hard <= 1:
        raise ValueError(f"`hard` must be in [0, 1]. Received: hard={hard!r}")
    if not 0 < beta < 1:
        raise ValueError(f"`beta` must be in (0, 1). Received: beta={beta!r}")
    for name, value in (("hidden", hidden), ("attention", attention)):
        if not value >= 0:
            raise ValueError(f"`{name}` must not be negative. Received: {name}={value!r}")


def _pairs(student, teacher, layer_map) -> list[list[tuple[int, int]]]:
    """(student's block, teacher's block), of the encoder, if there is one, and of the other stack."""
    even = list(enumerate(_after_each(student.num_layers, teacher.num_layers)))
    pairs = even if layer_map is None else sorted(layer_map.items())
    for here, there in pairs:
        if not (0 <= here < student.num_layers and 0 <= there < teacher.num_layers):
            raise ValueError(
                f"`layer_map` goes from the student's {student.num_layers} blocks to the teacher's "
                f"{teacher.num_layers}, counted from 0. Received: layer_map={dict(layer_map)!r}"
            )
    encoder = list(enumerate(_after_each(student.num_encoder_layers, teacher.num_encoder_layers)))
    return [encoder, pairs] if encoder else [pairs]


def _after_each(few: int, many: int) -> list[int]:
    """The teacher's blocks that are as far through it as each of the student's."""
    return [round((i + 1) * many / few) - 1 if many >= few else evenly(few, many)[i] for i in range(few)]


def _stacks(traced) -> list[tuple[list, list]]:
    """(hidden states, attention weights) of each stack of what a network returns with `trace`."""
    if isinstance(traced[1], tuple):
        return [(stack[1], stack[2]) for stack in traced[1:]]
    return [(traced[1], traced[2])]


def _flat(hidden):
    return ops.reshape(hidden, (-1, hidden.shape[-1]))


def _squares(x, wanted):
    return ops.mean(ops.square(ops.cast(x, "float32") - ops.cast(ops.stop_gradient(wanted), "float32")))
