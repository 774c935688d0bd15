"""What every task shares: the network, the default loss and metrics, data of any kind, saving and loading."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kerasllm.compression.mixin import Quantizable
from kerasllm.config import TransformerConfig
from kerasllm.graph_frames import short_frames
from kerasllm.layers.inner import inner
from kerasllm.locks import only_writer
from kerasllm.losses import check_loss_options, cross_entropy, linear_cross_entropy
from kerasllm.metrics import TokenMetrics
from kerasllm.models.doors import Doors
from kerasllm.models.finite import warn_if_not_finite
from kerasllm.models.id_range import IdRange
from kerasllm.models.inputs import check_row_shapes, is_token_ids, model_inputs, single
from kerasllm.models.keras_files import KerasFiles
from kerasllm.models.shapes import Shapes
from kerasllm.models.summary import with_inner_layers
from kerasllm.models.trace import Trace
from kerasllm.models.transformer import EncoderDecoder, Transformer
from kerasllm.targets import counted_targets, marked, tells_padding
from kerasllm.tokenizers import Tokenizer
from kerasllm.training.accumulation import token_weighted
from kerasllm.tuning.mixin import Adaptable

# What a subclass of the user's may do anew so that the default loss has to be of the logits that the model returns.
LOGITS_PATH = ("call", "logits", "compute_loss", "compute_metrics")


class LanguageModel(Doors, Quantizable, Adaptable, KerasFiles, keras.Model):
    """A Transformer with a task. Not used by itself: see `CausalLM`, `MaskedLM`, `Seq2SeqLM`.

    A task says which inputs it reads (`input_keys`), how it reads texts and arrays (`as_inputs`, `row_data`) and,
    where it is not the token embedding, what its head is (`pool`, `head_input`, `head_kernel`, `logits`).

    Compiled without a loss, a model trains on the summed token cross-entropy of its head, divided once by the
    tokens, without ever holding all logits (`kerasllm.losses`), and reports `TokenMetrics`. Compiled with a
    loss, it is a Keras model like any other, whose output are the logits.

    Attributes:
        cache_dtype: what keys and values are kept in while Keras makes tokens: "float32", "bfloat16", "float16" or
            "int8" (a scale a head and token, a quarter of the memory); as the model computes, when `None`. Engines of
            other libraries (`use_engine`) keep them in their own way.
        generation_config: what generation_config.json says of how the model writes, a dict with transformers' names:
            the defaults of `generate`; see `kerasllm.generation.defaults`.
    """

    cache_dtype: str | None = None
    _programs = None  # compiled functions that make tokens; see `kerasllm.generation.programs`
    predicts_tokens = True  # through the token embedding, or the head beside it
    loss_reads_logits = True  # The default loss can also be computed from what `model(x)` returns.
    target_axes = 2  # Targets are (batch, length); 1 where there is one a row.

    def __init__(self, config, tokenizer=None, generation_config=None, **kwargs):
        super().__init__(**kwargs)
        self.generation_config = dict(generation_config or {})
        self.config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        self.tokenizer = Tokenizer.from_config(tokenizer) if isinstance(tokenizer, dict) else tokenizer
        if tokenizer is not None and self.tokenizer.vocabulary_size > self.config.vocabulary_size:
            raise ValueError(
                f"The tokenizer has more tokens than the model. Received: {self.tokenizer.vocabulary_size} tokens, "
                f"config.vocabulary_size={self.config.vocabulary_size}"
            )
        if self.config.num_encoder_layers and "encoder_token_ids" not in self.input_keys:
            raise ValueError(
                f"A {type(self).__name__} reads with one stack: it needs a config without an encoder, or use a "
                f"Seq2SeqLM. Received: num_encoder_layers={self.config.num_encoder_layers}"
            )
        network = EncoderDecoder if self.config.num_encoder_layers else Transformer
        self.transformer = network(self.config, dtype=self.dtype_policy, name="transformer")
        self.transformer.build((None, None))
        # Weights that the task does not use would only decay.
        if self.config.pooler and not self.config.num_encoder_layers:
            self.transformer.pooler.trainable = False  # A task that uses it sets this.
        if not self.predicts_tokens and not self.config.tie_embeddings:
            self.transformer.embedding.tokens.reverse_embeddings.trainable = False
        self.built = True
        # The data and callbacks of the latest `fit`, for callbacks that save and resume them.
        self.train_data, self.fit_callbacks = None, []
        self._stage = _Stage()
        self._default_loss = self._loss_of_hidden = False
        self._static_batch = None
        self._batches_drawn = 0
        # Bytes that a token stands for, which bits per byte are counted with.
        self._token_bytes = None
        if tokenizer is not None:
            # The vocabulary may be padded beyond the tokenizer's, to a size that the hardware likes.
            padding = self.config.vocabulary_size - self.tokenizer.vocabulary_size
            self._token_bytes = np.pad(np.asarray(self.tokenizer.byte_lengths, "float32"), (0, padding))

    # Forward -------------------------------------------------------------------------------------------------

    def call(self, inputs, training=None):
        inputs = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
        if self._stage.now is None:
            self.check_inputs(inputs)
        hidden = self.pool(inner(self.transformer, training=training, **inputs), inputs, training)
        if self._stage.now != "loss":
            return self.logits(hidden)
        # Metrics of the user's see logits; made here, because JAX has no weights outside of `call`.
        return HeadInput(hidden, () if self._compile_metrics is None else self.logits(hidden))

    def pool(self, hidden, inputs, training=None):
        """The last hidden states (batch, length, hidden_dim) to what `logits` reads: all of them, or one a row."""
        return hidden

    def head_input(self, hidden):
        """(…, hidden_dim) → (…, width): what the head's kernel multiplies."""
        return self.transformer.embedding.head_input(hidden)

    def head_kernel(self):
        """(width, vocabulary_size)."""
        return self.transformer.embedding.head_kernel()

    def head_rows(self):
        """(vocabulary_size, width), if the head is a table of such; else `None`."""
        return self.transformer.embedding.head_rows()

    def trains_head(self) -> bool:
        """Whether anything that `head_kernel` is made of is trained."""
        return any(v.trainable for v in self.transformer.embedding.tokens.variables)

    def logits(self, hidden):
        """What `pool` made of the last hidden states to what the task answers."""
        return self.transformer.embedding.logits(hidden)

    def check_inputs(self, inputs: dict) -> None:
        """Refuses inputs this model does not read and, outside compiled code, ids out of range.

        Raises:
            ValueError: names the key or the id.
        """
        for key in inputs:
            if key not in self.input_keys:
                raise ValueError(f"Unknown model input {key!r}. Inputs: {', '.join(self.input_keys)}")
        for key, ids in inputs.items():
            if is_token_ids([key]) and _is_concrete(ids):
                self.check_token_ids(ops.convert_to_numpy(ids))
        check_row_shapes(inputs)
        segments = inputs.get("segment_ids")
        if segments is not None and _is_concrete(segments):
            IdRange("Segment id", "num_segments", self.config.num_segments).check(ops.convert_to_numpy(segments))
        positions = inputs.get("positions")
        if positions is not None and _is_concrete(positions):
            largest = int(ops.convert_to_numpy(positions).max())
            if largest >= self.config.max_sequence_length:
                raise ValueError(
                    f"Position out of range: {largest}. The model's max_sequence_length is "
                    f"{self.config.max_sequence_length}."
                )

    def check_token_ids(self, ids) -> None:
        """Raises a ValueError that names the first id outside [0, vocabulary_size), or a type that is no id."""
        self.token_range.check(ids)

    def check_target_keys(self, y) -> None:
        """Refuses targets of another structure than the task's."""
        if isinstance(y, dict | tuple | list):
            raise ValueError(f"Targets must be one array. Received: {type(y).__name__}")

    def check_targets(self, y) -> None:
        """Raises a ValueError that names the first target out of range."""
        self.target_range.check(y)

    @property
    def token_range(self) -> IdRange:
        """The ids that the model reads."""
        return IdRange("Token id", "vocabulary_size", self.config.vocabulary_size)

    @property
    def target_range(self) -> IdRange:
        """The ids that it predicts."""
        return dataclasses.replace(self.token_range, ignores=True)

    @property
    def uses_default_loss(self) -> bool:
        """Whether the model was compiled without a loss of the user's."""
        return self._default_loss

    # Training ------------------------------------------------------------------------------------------------

    def compile(self, optimizer="adamw", loss=None, jit_compile="auto", label_smoothing=0.0, z_loss=0.0, **kwargs):
        """As in Keras; without `loss` the default loss and metrics are used.

        `label_smoothing` and `z_loss` are options of the default loss over tokens, as in
        `kerasllm.losses.linear_cross_entropy`. They belong to training, and to the `loss` that it reports. Perplexity,
        bits per byte and accuracy are always of the plain likelihood, and so is all of `evaluate`, `val_loss` too.

        `jit_compile="auto"` is XLA on TensorFlow, also on a CPU, where Keras would leave it out and take half as
        long again. On PyTorch it stays eager, as in Keras: `True` compiles (a minute) and then is the fastest.

        `gradient_accumulation_steps` of the optimizer is made token-weighted under the default loss.

        Raises:
            ValueError: an option of the loss is out of range, or given for another loss than that over tokens.
        """
        check_loss_options(label_smoothing, z_loss)
        if (label_smoothing or z_loss) and (loss is not None or not self.predicts_tokens):
            raise ValueError(
                f"`label_smoothing` and `z_loss` are options of the default loss over tokens, not of this "
                f"{type(self).__name__}'s loss. "
                f"Received: loss={loss!r}, label_smoothing={label_smoothing}, z_loss={z_loss}"
            )
        self.label_smoothing, self.z_loss, self._jit_compile_given = label_smoothing, z_loss, jit_compile
        optimizer = keras.optimizers.get(optimizer)
        self._default_loss = loss is None
        self._tracker.unlock()  # Keras's `quantize` leaves it locked, and metrics are to be added.
        is_plain = self.loss_reads_logits and overridden(self, *LOGITS_PATH)
        self._loss_of_hidden = self._default_loss and not is_plain
        if self._default_loss and optimizer is not None:
            optimizer = token_weighted(optimizer)
            self.token_metrics = self.default_metrics()
            self.token_metrics.reports_loss = not overridden(self, *LOGITS_PATH, "train_step", "test_step")
        if jit_compile == "auto" and keras.backend.backend() == "tensorflow":
            jit_compile = not kwargs.get("run_eagerly", False)
        self._shapes = Shapes()
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)

    def default_metrics(self):
        """What is reported beside the default loss."""
        metrics = TokenMetrics(with_bytes=self._token_bytes is not None)
        metrics.token_bytes = self._token_bytes
        return metrics

    def _prepare_torch_compile(self):
        """Forward, gradients and update as one graph; and what Keras would note down in the first step, which
        would make the second compile again."""
        import torch

        if hasattr(torch._dynamo.config, "trace_autograd_ops"):
            torch._dynamo.config.trace_autograd_ops = True
        with torch.no_grad():
            self(np.zeros((1, 1), "int32"))
        for variable in self.trainable_variables:
            self.optimizer._use_weight_decay(variable)

    def train_step(self, *arguments):
        # (data) on TensorFlow and PyTorch, (state, data) on JAX.
        *state, data = arguments
        data = self._with_static_shapes(data)
        if keras.backend.backend() != "torch" and self.jit_compile:
            self._shapes.note(data)
        if self._default_loss:
            self._tell_optimizer_tokens(data)
        self._stage.now = "loss" if self._loss_of_hidden else "logits"
        step = self._torch_step if keras.backend.backend() == "torch" else super().train_step
        with short_frames():
            result = step(*state, data)
        self._stage.now = None
        return result

    def _torch_step(self, data):
        """Keras's step, but for `grad` in place of `backward`: torch.compile makes one graph of all of it."""
        import torch

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=True)
        loss = self._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
        self._loss_tracker.update_state(loss, sample_weight=keras.tree.flatten(x)[0].shape[0])
        loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables[:]
        gradients = torch.autograd.grad(loss, [v.value for v in variables], allow_unused=True)
        with torch.no_grad():
            self.optimizer.apply(gradients, variables)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def test_step(self, *arguments):
        *state, data = arguments
        self._stage.now = "loss" if self._loss_of_hidden else "logits"
        with short_frames():
            result = super().test_step(*state, self._with_static_shapes(data))
        self._stage.now = None
        return result

    def predict_step(self, *arguments):
        self._stage.now = "logits"
        with short_frames():
            result = super().predict_step(*arguments)
        self._stage.now = None
        return result

    def _with_static_shapes(self, data):
        """TensorFlow forgets the batch size of a PyDataset, which the chunked loss wants to know."""
        if keras.backend.backend() != "tensorflow" or self._static_batch is None:
            return data
        import tensorflow as tf

        def fix(x):
            return x if x.shape[0] else tf.ensure_shape(x, (self._static_batch, *x.shape[1:]))

        return keras.tree.map_structure(fix, data)

    def _set_static_batch(self, size):
        if keras.backend.backend() == "tensorflow" and size != self._static_batch:
            self.train_function = self.test_function = None  # They were compiled for the other size.
        self._static_batch = size

    def _tell_optimizer_tokens(self, data):
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if optimizer.gradient_accumulation_steps:
            x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
            optimizer.batch_tokens = _total(counted_targets(x, y, weights)[1])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not self._default_loss:
            return super().compute_loss(x, *self._only_counted(x, y, y_pred, sample_weight), training)
        targets, weights = counted_targets(x, y, sample_weight)
        if isinstance(y_pred, HeadInput):
            return self.token_loss(y_pred.hidden, targets, weights, training)
        self.check_logits()
        loss = cross_entropy(y_pred, targets, weights, **self._loss_options(training))[0] / _total(weights)
        return self._with_other_losses(loss)

    def _only_counted(self, x, y, y_pred, sample_weight):
        """(targets, predictions, weights) for losses and metrics of Keras: what does not count is masked.

        Without weights, a function of the user's is given its targets as they are: its values need not be one a target.
        """
        if y is None or (sample_weight is None and not self.ignores_labels and not tells_padding(x, y)):
            return y, y_pred, sample_weight
        y, weights = counted_targets(x, y, sample_weight)
        return y, marked(y_pred, weights), None if sample_weight is None else weights

    def check_logits(self) -> None:
        """Refuses to compute the default loss from what `model(x)` returns, where that does not have it all."""
        if not self.loss_reads_logits:
            raise ValueError(
                f"The default loss of a {type(self).__name__} needs more than what `model(x)` returns, so that a "
                "`train_step`, `test_step` or `call` of your own cannot use it. Compute the loss there yourself, or "
                "compile with a loss."
            )

    def _loss_options(self, training):
        return {
            "label_smoothing": self.label_smoothing if training else 0.0,
            "z_loss": self.z_loss if training else 0.0,
        }

    def _with_other_losses(self, loss):
        """With what layers and regularizers add."""
        for extra in self.losses:
            loss = loss + ops.sum(ops.cast(extra, "float32"))
        return loss

    def token_loss(self, hidden, targets, weights, training=True, other_loss=0.0):
        """The mean cross-entropy of the head's tokens, with whatever is added to it; keeps the token metrics.

        Args:
            hidden: (batch, length, hidden_dim), what the head reads.
            targets: (batch, length), the tokens.
            weights: (batch, length); a token counts this much.
            training: whether options of the loss apply.
            other_loss: scalar, what the model is trained on besides.
        """
        hidden = self.head_input(ops.reshape(hidden, (-1, self.config.hidden_dim)))
        targets, weights = ops.reshape(targets, (-1,)), ops.reshape(weights, (-1,))
        frozen = not self.trains_head()
        rows = self.head_rows() if frozen else None
        loss, nll, correct = linear_cross_entropy(
            hidden,
            self.head_kernel() if rows is None else rows,
            targets,
            weights,
            **self._loss_options(training),
            frozen_kernel=frozen,
            frozen_rows=rows is not None,
        )
        tokens = _total(weights)
        loss = self._with_other_losses(loss / tokens + other_loss)
        self.token_metrics.add(loss * tokens, nll, correct, tokens, self.token_metrics.count_bytes(targets, weights))
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if isinstance(y_pred, HeadInput):
            y_pred = y_pred.logits
        elif self._default_loss and self.loss_reads_logits:
            targets, weights = counted_targets(x, y, sample_weight)
            self.token_metrics.update_state(targets, y_pred, weights)
        if self._compile_metrics is None:
            return self.get_metrics_result()
        return super().compute_metrics(x, *self._only_counted(x, y, y_pred, sample_weight))

    @property
    def ignores_labels(self) -> bool:
        """Whether targets of -100 are left out: by the default loss and by Keras's, but not by a user's function."""
        return self._default_loss or is_of_keras(self.loss)

    def sync_weights(self) -> None:
        """Makes the weights of this moment those of the variables: on JAX a running `fit` keeps them to itself."""
        if keras.backend.backend() == "jax":
            self.jax_state_sync()

    # Data of any kind ----------------------------------------------------------------------------------------

    def as_inputs(self, x) -> dict:
        """Texts, lists or arrays as the dict of arrays that the model reads."""
        return model_inputs(self, x)

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        """Texts or arrays, with what is known of their targets, as batches to train on."""
        raise NotImplementedError

    one_text = staticmethod(single)  # or an error, where it is several

    def trace(self, text) -> Trace:
        """Runs a text (or token ids) through the explicit attention path and returns a `Trace`."""
        self.sync_weights()
        inputs = self.as_inputs([self.one_text(text)])
        ids = [int(i) for i in inputs["token_ids"][0]]
        tokens = [self.tokenizer.id_to_token(i) if self.tokenizer else str(i) for i in ids]
        with no_gradient():
            hidden, states, attentions = self.transformer(training=False, trace=True, **inputs)
            logits = self.logits(self.pool(hidden, inputs))
        convert = ops.convert_to_numpy
        logits = keras.tree.map_structure(convert, logits)
        return Trace(tokens, [convert(a) for a in attentions], [convert(s) for s in states], logits, self)

    def summary(self, *arguments, expand_nested=False, **options):
        """Keras's `summary`; with `expand_nested` the blocks too, and what they are made of."""
        with with_inner_layers(self) if expand_nested else contextlib.nullcontext():
            return super().summary(*arguments, expand_nested=expand_nested, **options)

    # Files ---------------------------------------------------------------------------------------------------

    def get_config(self):
        from kerasllm.interop.structure import describe

        return {
            **super().get_config(),
            "config": self.transformer.config.to_dict(),  # Prompts leave less room in the model's own.
            "tokenizer": self.tokenizer and self.tokenizer.get_config(),
            "generation_config": dict(self.generation_config),
            "structure": describe(self),
        }

    def save_to_preset(self, directory, max_shard_bytes: int = 5_000_000_000) -> None:
        """Writes a Hugging Face directory: config.json, model.safetensors, tokenizer files; whole or not at all.

        What is opened again answers as the model does now, with its options and tokenizer. What belongs to training is
        in `save`'s .keras files: the optimizer, what is frozen, masks of pruning. LoRAs of Keras's own are added to the
        weights, and so are adapters by `merge`.

        Args:
            directory: where to; it is made if it is not there.
            max_shard_bytes: weights larger than this are written to several files, with an index.

        Raises:
            ValueError: a file is in the way, or another process writes into the directory; an adapter is active beside
                the weights (see `save_adapter`), or they are rounded in training for quantization.
            OSError: it cannot be written.
        """
        from kerasllm.interop.presets import save_to_preset

        warn_if_not_finite(self)
        with only_writer(directory), self.whole_config():
            save_to_preset(self, directory, max_shard_bytes)
        if self._adapters is None or self._adapters.originals is None:  # Merged weights are not an adapter's base.
            self._preset = directory

    @classmethod
    def from_preset(cls, directory, dtype=None, **options):
        """Reads a directory that `save_to_preset` or transformers saved.

        What the task has and the directory lacks, such as the classifier of a BERT that was only pretrained, starts
        new, with a warning.

        Args:
            directory: with a config.json, safetensors and, for models of text, a tokenizer.
            dtype: a Keras dtype policy; when left out, "bfloat16" or "float16" if all weights in the files are, else
                Keras's own.
            options: more arguments of the task, such as `labels`; when left out, as saved.

        Raises:
            FileNotFoundError, ValueError: what is missing or wrong, by name, before anything is allocated.
        """
        from kerasllm.interop.presets import load_preset

        model = load_preset(cls, directory, dtype, **options)
        model._preset = directory
        return model

    def export(self, directory, format="tf_saved_model", overwrite=False, **options):
        """Writes the model for other programs: "tf_saved_model", "onnx", "openvino", "litert", "gguf" or "huggingface".

        See `kerasllm.serving.export.export`.

        Example:
        ```python
        model.export("saved_models/mine/export", format="tf_saved_model")
        ```
        """
        from kerasllm.serving.export import export

        return export(self, directory, format, overwrite, **options)


class HeadInput(NamedTuple):
    """What `call` returns in a step whose loss is computed from hidden states: they, and logits if metrics want them.

    A type of its own, so that the loss never takes logits for hidden states.
    """

    hidden: Any
    logits: Any = ()


class _Stage:
    """What a forward pass is part of: "loss" (return hidden states), "logits", or `None` outside of steps.

    An object of its own, set and reset in plain statements: torch.compile breaks its graph inside of context
    managers and at attributes of a Keras model.
    """

    now = None


def overridden(model, *names) -> bool:
    """Whether a class of the user's, below those of kerasllm, has one of these methods of its own."""
    for cls in type(model).__mro__:
        if cls.__module__.split(".")[0] == "kerasllm":
            return False
        if any(name in vars(cls) for name in names):
            return True
    return False


def is_of_keras(loss) -> bool:
    """Whether a compiled loss is Keras's own, by name or as an object: it has a value for each target."""
    losses = [one for one in keras.tree.flatten(loss) if one is not None]
    return all(isinstance(one, str) or type(one).__module__.split(".")[0] == "keras" for one in losses)


def _total(weights):
    return ops.maximum(ops.sum(weights), 1e-9)


def no_gradient():
    """PyTorch alone records what it computes outside of training, unless told not to."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def _is_concrete(x) -> bool:
    """Whether an array has values: it is not a symbolic or traced one."""
    if isinstance(x, keras.KerasTensor):
        return False
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return not isinstance(x, jax.core.Tracer)
    if backend == "tensorflow":
        return not hasattr(x, "graph") and (isinstance(x, np.ndarray) or hasattr(x, "numpy"))
    return getattr(getattr(x, "device", None), "type", "cpu") != "meta"
