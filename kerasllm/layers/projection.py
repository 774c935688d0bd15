"""The linear map that everything is made of."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kerasllm")
class Projection(keras.layers.Dense):
    """A `Dense` layer that multiplies one (batch · length, dim) matrix instead of a batch of them.

    The result is the same. But the gradient of the kernel is then a plain matrix product too, where XLA would
    otherwise sum over two axes and copy transposed activations for it, at half the speed on a CPU.

    Example:
    ```python
    Projection(32)(keras.random.normal((2, 10, 64)))  # (2, 10, 32)
    ```
    """

    def call(self, inputs, training=None):
        if len(inputs.shape) <= 2:
            return super().call(inputs, training=training)
        shape = ops.shape(inputs)
        outputs = super().call(ops.reshape(inputs, (-1, shape[-1])), training=training)
        return ops.reshape(outputs, (*shape[:-1], self.units))
