"""The position-wise feed-forward network, plain or gated."""

import keras
from keras import ops

from kerasllm.layers.inner import inner
from kerasllm.layers.projection import Projection
from kerasllm.layers.recompute import recompute

ACTIVATIONS = {
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "relu": ops.relu,
    "silu": ops.silu,
}


@keras.saving.register_keras_serializable("kerasllm")
class FeedForward(keras.layers.Layer):
    """Two projections with an activation between them; gated, a third one multiplies it.

    Args:
        intermediate_dim: width inside.
        activation: "gelu_tanh", "gelu", "relu" or "silu".
        gated: `down(activation(gate(x)) * up(x))` instead of `down(activation(up(x)))`.
        use_bias: whether the projections have biases.
        kernel_initializer: of `up` and `gate`.
        output_initializer: of `down`; `kernel_initializer` when left out.

    Call arguments:
        x: (batch, length, dim). The result has the same shape.
        training: whether gradients will be asked for.

    Example:
    ```python
    FeedForward(intermediate_dim=256, activation="silu", gated=True)(keras.random.normal((2, 10, 64)))
    ```

    Reference: Vaswani et al. (2017), section 3.3; Shazeer (2020), "GLU Variants Improve Transformer".
    """

    def __init__(
        self,
        intermediate_dim,
        activation="gelu_tanh",
        gated=False,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {list(ACTIVATIONS)}. Received: {activation!r}")
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.gated = gated
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer or kernel_initializer)

    def _dense(self, units, initializer, name):
        return Projection(
            units,
            use_bias=self.use_bias,
            kernel_initializer=initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, x_shape):
        inner_shape = (*x_shape[:-1], self.intermediate_dim)
        self.up = self._dense(self.intermediate_dim, self.kernel_initializer, "up")
        self.up.build(x_shape)
        if self.gated:
            self.gate = self._dense(self.intermediate_dim, self.kernel_initializer, "gate")
            self.gate.build(x_shape)
        self.down = self._dense(x_shape[-1], self.output_initializer, "down")
        self.down.build(inner_shape)
        self.built = True

    def call(self, x, training=None):
        up = inner(self.up, x)
        hidden = self._activate(inner(self.gate, x), training) * up if self.gated else self._activate(up, training)
        return inner(self.down, hidden)

    def _activate(self, x, training):
        """Frozen projections need no inputs for gradients; then the activation keeps just one tensor, too.

        PyTorch keeps no more than that by itself.
        """
        activate = ACTIVATIONS[self.activation]
        if training and keras.backend.backend() != "torch" and not self.up.variables[0].trainable:
            return recompute(None, activate, x)
        return activate(x)

    def get_config(self):
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "gated": self.gated,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
