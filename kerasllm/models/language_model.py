"""What every task shares: the network, the default loss and metrics, data of any kind, saving and loading."""

import contextlib

import keras
import numpy as np
from keras import ops

from kerasllm.compression.mixin import Quantizable
from kerasllm.config import TransformerConfig
from kerasllm.graph_frames import short_frames
from kerasllm.layers.inner import inner
from kerasllm.losses import check_loss_options, linear_cross_entropy
from kerasllm.metrics import TokenMetrics
from kerasllm.models.id_range import IdRange
from kerasllm.models.inputs import is_token_ids, model_inputs, prediction_data, split_rows, task_data
from kerasllm.models.keras_files import KerasFiles
from kerasllm.models.trace import Trace
from kerasllm.models.transformer import EncoderDecoder, Transformer
from kerasllm.tokenizers import Tokenizer
from kerasllm.training.accumulation import token_weighted
from kerasllm.tuning.mixin import Adaptable


class LanguageModel(Quantizable, Adaptable, KerasFiles, keras.Model):
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
    """

    cache_dtype: str | None = None
    predicts_tokens = True  # through the token embedding, or the head beside it

    def __init__(self, config, tokenizer=None, **kwargs):
        super().__init__(**kwargs)
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
        self._default_loss = False
        self._static_batch = None
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
        return hidden if self._compile_metrics is None else (hidden, self.logits(hidden))

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
        return self.token_range

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
        if self._default_loss and optimizer is not None:
            optimizer = token_weighted(optimizer)
            self.token_metrics = self.default_metrics()
        if jit_compile == "auto" and keras.backend.backend() == "tensorflow":
            jit_compile = not kwargs.get("run_eagerly", False)
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)

    def default_metrics(self):
        """What is reported beside the default loss."""
        return TokenMetrics(with_bytes=self._token_bytes is not None)

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
        if self._default_loss:
            self._tell_optimizer_tokens(data)
        self._stage.now = "loss" if self._default_loss else "logits"
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
        self._stage.now = "loss" if self._default_loss else "logits"
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
            return tf.ensure_shape(x, (self._static_batch, *x.shape[1:]))

        return keras.tree.map_structure(fix, data)

    def _set_static_batch(self, size):
        if keras.backend.backend() == "tensorflow" and size != self._static_batch:
            self.train_function = self.test_function = None  # They were compiled for the other size.
        self._static_batch = size

    def _tell_optimizer_tokens(self, data):
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if optimizer.gradient_accumulation_steps:
            _, y, weights = keras.utils.unpack_x_y_sample_weight(data)
            optimizer.batch_tokens = self._count_tokens(y, weights)

    @staticmethod
    def _count_tokens(y, weights):
        if weights is None:
            return ops.cast(ops.prod(ops.shape(y)), "float32")
        return ops.maximum(ops.sum(ops.cast(weights, "float32")), 1e-9)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not self._default_loss:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        hidden = y_pred[0] if isinstance(y_pred, tuple) else y_pred
        return self.token_loss(hidden, y, sample_weight, training)

    def token_loss(self, hidden, y, sample_weight=None, training=True, other_loss=0.0):
        """The mean cross-entropy of the head's tokens, with whatever is added to it; keeps the token metrics.

        Args:
            hidden: (batch, length, hidden_dim), what the head reads.
            y: (batch, length), the tokens.
            sample_weight: (batch, length); a token counts this much.
            training: whether options of the loss apply.
            other_loss: scalar, what the model is trained on besides.
        """
        hidden = self.head_input(ops.reshape(hidden, (-1, self.config.hidden_dim)))
        targets = ops.reshape(y, (-1,))
        weights = None if sample_weight is None else ops.reshape(sample_weight, (-1,))
        frozen = not self.trains_head()
        rows = self.head_rows() if frozen else None
        loss, nll, correct = linear_cross_entropy(
            hidden,
            self.head_kernel() if rows is None else rows,
            targets,
            weights,
            label_smoothing=self.label_smoothing if training else 0.0,
            z_loss=self.z_loss if training else 0.0,
            frozen_kernel=frozen,
            frozen_rows=rows is not None,
        )
        tokens = self._count_tokens(targets, weights)
        loss = loss / tokens + other_loss
        for extra in self.losses:
            loss = loss + ops.sum(ops.cast(extra, "float32"))
        num_bytes = 0.0
        if self._token_bytes is not None:
            lengths = ops.take(ops.convert_to_tensor(self._token_bytes), targets, axis=0)
            num_bytes = ops.sum(lengths if weights is None else lengths * ops.cast(weights > 0, "float32"))
        self.token_metrics.update_state(loss * tokens, nll, correct, tokens, num_bytes)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if isinstance(y_pred, tuple):
            y_pred = y_pred[1]
        return super().compute_metrics(x, y, y_pred, sample_weight)

    # Data of any kind ----------------------------------------------------------------------------------------

    def as_inputs(self, x) -> dict:
        """Texts, lists or arrays as the dict of arrays that the model reads."""
        return model_inputs(self, x)

    def as_data(self, x, y=None, sample_weight=None, batch_size=32, shuffle=False):
        """Whatever `fit` and `evaluate` take, as batches of (x, targets[, weights])."""
        return task_data(self, x, y, sample_weight, batch_size, shuffle)

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        """Texts or arrays, with what is known of their targets, as batches to train on."""
        raise NotImplementedError

    def predict(self, x, batch_size=None, **kwargs):
        """What the task answers, (batch, …); strings are padded on the right to the longest."""
        return super().predict(prediction_data(self, x), batch_size=batch_size, **kwargs)

    def trace(self, text) -> Trace:
        """Runs a text (or token ids) through the explicit attention path and returns a `Trace`."""
        inputs = self.as_inputs([text])
        ids = [int(i) for i in inputs["token_ids"][0]]
        tokens = [self.tokenizer.id_to_token(i) if self.tokenizer else str(i) for i in ids]
        with no_gradient():
            hidden, states, attentions = self.transformer(training=False, trace=True, **inputs)
            logits = self.logits(self.pool(hidden, inputs))
        convert = ops.convert_to_numpy
        logits = keras.tree.map_structure(convert, logits)
        return Trace(tokens, [convert(a) for a in attentions], [convert(s) for s in states], logits, self)

    def fit(self, x=None, y=None, *, batch_size=None, validation_split=0.0, validation_data=None, **kwargs):
        """Keras's `fit`, which also takes strings; see `CausalLM`."""
        arrays = (x, y, kwargs.pop("sample_weight", None))
        batch_size = batch_size or 32
        if validation_split and validation_data is None:
            arrays, validation_data = split_rows(arrays, validation_split)
        data = self.as_data(*arrays, batch_size, shuffle=kwargs.pop("shuffle", True))
        if validation_data is not None:
            parts = validation_data if isinstance(validation_data, tuple) else (validation_data,)
            validation_data = self.as_data(*parts, batch_size=kwargs.pop("validation_batch_size", batch_size))
        self.train_data, size = data, getattr(data, "local_batch_size", None)
        if validation_data is not None and getattr(validation_data, "local_batch_size", None) != size:
            size = None
        self._set_static_batch(size)
        if self.optimizer is not None and not self.optimizer.built:
            # Else TensorFlow compiles the step twice: once with the optimizer's variables being made, once without.
            self.optimizer.build(self.trainable_variables)
        if self.optimizer is not None and self.jit_compile and keras.backend.backend() == "torch":
            self._prepare_torch_compile()
        callbacks = kwargs.get("callbacks") or []
        self.fit_callbacks = callbacks if isinstance(callbacks, list | tuple) else callbacks.callbacks
        self._stage.now = None  # An earlier step may have failed half-way.
        return super().fit(data, validation_data=validation_data, shuffle=False, **kwargs)

    def evaluate(self, x=None, y=None, *, batch_size=None, sample_weight=None, **kwargs):
        """Keras's `evaluate`, which also takes strings."""
        if not kwargs.get("_use_cached_eval_dataset"):
            x = self.as_data(x, y, sample_weight, batch_size or 32)
            y = sample_weight = None
            self._set_static_batch(getattr(x, "local_batch_size", None))
        return super().evaluate(x, y, sample_weight=sample_weight, **kwargs)

    # Files ---------------------------------------------------------------------------------------------------

    def get_config(self):
        from kerasllm.interop.structure import describe

        return {
            **super().get_config(),
            "config": self.transformer.config.to_dict(),  # Prompts leave less room in the model's own.
            "tokenizer": self.tokenizer and self.tokenizer.get_config(),
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
            ValueError: an adapter is active beside the weights (see `save_adapter`), or they are rounded in training
                for quantization.
        """
        from kerasllm.interop.presets import save_to_preset

        with self.whole_config():
            save_to_preset(self, directory, max_shard_bytes)

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

        return load_preset(cls, directory, dtype, **options)

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


class _Stage:
    """What a forward pass is part of: "loss" (return hidden states), "logits", or `None` outside of steps.

    An object of its own, set and reset in plain statements: torch.compile breaks its graph inside of context
    managers and at attributes of a Keras model.
    """

    now = None


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
