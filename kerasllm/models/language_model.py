"""What every task shares: the network, the default loss and metrics, data of any kind, saving and loading."""

import keras
import numpy as np
from keras import ops

from kerasllm.config import TransformerConfig
from kerasllm.layers.inner import inner
from kerasllm.losses import linear_cross_entropy
from kerasllm.metrics import TokenMetrics
from kerasllm.models.inputs import split_rows
from kerasllm.models.transformer import EncoderDecoder, Transformer
from kerasllm.tokenizers import Tokenizer
from kerasllm.training.accumulation import token_weighted


class LanguageModel(keras.Model):
    """A Transformer with a task. Not used by itself: see `CausalLM`, `MaskedLM`, `Seq2SeqLM`.

    A task says which inputs it reads (`input_keys`), what it makes of data (`as_data`) and, where it is not the
    token embedding, what its head is (`head_input`, `head_kernel`, `logits`).

    Compiled without a loss, a model trains on the summed token cross-entropy of its head, divided once by the
    tokens, without ever holding all logits (`kerasllm.losses`), and reports `TokenMetrics`. Compiled with a
    loss, it is a Keras model like any other, whose output are the logits.
    """

    def __init__(self, config, tokenizer=None, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        self.tokenizer = Tokenizer.from_config(tokenizer) if isinstance(tokenizer, dict) else tokenizer
        if tokenizer is not None and self.tokenizer.vocabulary_size > self.config.vocabulary_size:
            raise ValueError(
                f"The tokenizer has more tokens than the model. Received: {self.tokenizer.vocabulary_size} tokens, "
                f"config.vocabulary_size={self.config.vocabulary_size}"
            )
        network = EncoderDecoder if self.config.num_encoder_layers else Transformer
        self.transformer = network(self.config, dtype=self.dtype_policy, name="transformer")
        self.transformer.build((None, None))
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
        hidden = inner(self.transformer, training=training, **inputs)
        if self._stage.now != "loss":
            return self.logits(hidden)
        # Metrics of the user's see logits; made here, because JAX has no weights outside of `call`.
        return hidden if self._compile_metrics is None else (hidden, self.logits(hidden))

    def head_input(self, hidden):
        """(…, hidden_dim) → (…, width): what the head's kernel multiplies."""
        return self.transformer.embedding.head_input(hidden)

    def head_kernel(self):
        """(width, vocabulary_size)."""
        return self.transformer.embedding.head_kernel()

    def logits(self, hidden):
        """The last hidden states (batch, length, hidden_dim) to what the task answers."""
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
            if key.endswith("token_ids") and _is_concrete(ids):
                self.check_token_ids(ops.convert_to_numpy(ids))
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
        ids = np.asarray(ids)
        if ids.size == 0:
            raise ValueError("There are no token ids. Received: an empty array")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"Token ids must be integers. Received: dtype={ids.dtype}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocabulary_size:
            raise ValueError(
                f"Token id out of range: {low if low < 0 else high}. The model's vocabulary_size is "
                f"{self.config.vocabulary_size}, so ids must be in [0, {self.config.vocabulary_size})."
            )

    @property
    def uses_default_loss(self) -> bool:
        """Whether the model was compiled without a loss of the user's."""
        return self._default_loss

    # Training ------------------------------------------------------------------------------------------------

    def compile(self, optimizer="adamw", loss=None, jit_compile="auto", **kwargs):
        """As in Keras; without `loss` the default loss and metrics are used.

        `jit_compile="auto"` is XLA on TensorFlow, also on a CPU, where Keras would leave it out and take half as
        long again. On PyTorch it stays eager, as in Keras: `True` compiles (a minute) and then is the fastest.

        `gradient_accumulation_steps` of the optimizer is made token-weighted under the default loss.
        """
        optimizer = keras.optimizers.get(optimizer)
        self._default_loss = loss is None
        if self._default_loss and optimizer is not None:
            optimizer = token_weighted(optimizer)
            self.token_metrics = TokenMetrics(with_bytes=self._token_bytes is not None)
        if jit_compile == "auto" and keras.backend.backend() == "tensorflow":
            jit_compile = not kwargs.get("run_eagerly", False)
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)

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

    def compile_from_config(self, config):
        # Keras warns that it cannot know how to call an overridden `compile`; this one takes the same arguments.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def train_step(self, *arguments):
        # (data) on TensorFlow and PyTorch, (state, data) on JAX.
        *state, data = arguments
        data = self._with_static_shapes(data)
        if self._default_loss:
            self._tell_optimizer_tokens(data)
        self._stage.now = "loss" if self._default_loss else "logits"
        step = self._torch_step if keras.backend.backend() == "torch" else super().train_step
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
        result = super().test_step(*state, self._with_static_shapes(data))
        self._stage.now = None
        return result

    def predict_step(self, *arguments):
        self._stage.now = "logits"
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
        hidden = self.head_input(ops.reshape(hidden, (-1, self.config.hidden_dim)))
        targets = ops.reshape(y, (-1,))
        weights = None if sample_weight is None else ops.reshape(sample_weight, (-1,))
        nll, correct = linear_cross_entropy(hidden, self.head_kernel(), targets, weights)
        tokens = self._count_tokens(targets, weights)
        loss = nll / tokens
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
        return {
            **super().get_config(),
            "config": self.config.to_dict(),
            "tokenizer": self.tokenizer and self.tokenizer.get_config(),
        }

    def save_to_preset(self, directory) -> None:
        """Writes a Hugging Face directory: config.json, model.safetensors, tokenizer files; whole or not at all."""
        from kerasllm.interop.presets import save_to_preset

        save_to_preset(self, directory)

    @classmethod
    def from_preset(cls, directory, dtype=None):
        """Reads a directory that `save_to_preset` or transformers saved.

        Raises:
            FileNotFoundError, ValueError: what is missing or wrong, by name, before anything is allocated.
        """
        from kerasllm.interop.presets import load_preset

        return load_preset(cls, directory, dtype)


class _Stage:
    """What a forward pass is part of: "loss" (return hidden states), "logits", or `None` outside of steps.

    An object of its own, set and reset in plain statements: torch.compile breaks its graph inside of context
    managers and at attributes of a Keras model.
    """

    now = None


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
