"""Gradients on whatever backend runs, for tests that compare them."""

import keras
import numpy as np
from keras import ops


def gradients(function, *arrays) -> list[np.ndarray]:
    """Gradients of a scalar function of tensors with respect to each of these arrays."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        found = jax.grad(function, argnums=tuple(range(len(arrays))))(*map(ops.convert_to_tensor, arrays))
    elif backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.convert_to_tensor(a) for a in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        found = tape.gradient(value, tensors)
    else:
        tensors = [ops.convert_to_tensor(a).clone().requires_grad_() for a in arrays]
        function(*tensors).backward()
        found = [tensor.grad for tensor in tensors]
    return [np.asarray(ops.convert_to_numpy(g), "float32") for g in found]


def weight_gradients(model, function) -> dict[str, np.ndarray]:
    """Gradients of `function()`, a scalar, with respect to each trainable weight of a model, by path."""
    variables = model.trainable_variables
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def of_values(values):
            with keras.StatelessScope(state_mapping=list(zip(variables, values))):
                return function()

        found = jax.jit(jax.grad(of_values))([v.value for v in variables])
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function()
        found = [tf.convert_to_tensor(g) for g in tape.gradient(value, [v.value for v in variables])]
    else:
        model.zero_grad()
        function().backward()
        found = [v.value.grad for v in variables]
    return {v.path: ops.convert_to_numpy(g) for v, g in zip(variables, found)}
