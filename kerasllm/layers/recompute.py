"""Training with little memory: a layer runs again for its gradients, instead of keeping what it computed."""

import contextlib
import contextvars

import keras
from keras import ops

_RUNNING = contextvars.ContextVar("running", default=False)


def recompute(layer, function, *arrays):
    """`function(*arrays)`, of which nothing but the arrays is kept for the gradients.

    As `keras.remat`, of whose second run XLA on a CPU computes what it can early, next to the first one, so that
    nothing is saved. Here the codes of a quantized layer, which it makes floating point numbers of, are read only when
    the input is there, and in the second run, as the input itself, only when the gradient of the output is.

    Args:
        layer: whose weights the function reads, and no others; `None` where it reads none.
        function: of arrays, returns one array, (batch, length, dim). Nothing in it is random.
        arrays: floating point.

    Reference: Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost".
    """
    plain, backend = function, keras.backend.backend()

    def function(*arrays):
        with _running():
            return plain(*arrays)

    if backend == "torch":
        return keras.remat(function)(*arrays)
    variables = [] if layer is None else layer.variables
    trained, frozen = ([v for v in variables if v.trainable is wanted] for wanted in (True, False))

    def call(trained_values, frozen_values, *arrays):
        values = [*trained_values, *frozen_values]
        with keras.StatelessScope(state_mapping=list(zip([*trained, *frozen], values))):
            return function(*arrays)

    def first(trained_values, frozen_values, x, *others):
        return call(trained_values, _codes_once_there(x, frozen_values), x, *others)

    def second(gradient, trained_values, frozen_values, x, *others):
        """The function of trained weights and arrays, and what it is to be differentiated at."""
        frozen_values = _codes_once_there(gradient, frozen_values)
        at = trained_values, x + ops.cast(_nothing_of(gradient), x.dtype), *others
        return lambda trained_values, *arrays: call(trained_values, frozen_values, *arrays), at

    values = [[ops.convert_to_tensor(v) for v in variables] for variables in (trained, frozen)]
    return (_jax if backend == "jax" else _tensorflow)(first, second, *values, *arrays)


def is_recomputed() -> bool:
    """Whether what is computed now is in `recompute`: what it keeps for gradients, it does not keep for long."""
    return _RUNNING.get()


@contextlib.contextmanager
def _running():
    token = _RUNNING.set(True)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def _codes_once_there(x, values):
    """The same values; no compiler can do anything with codes before `x` is computed."""
    nothing = _nothing_of(x)
    return [v if keras.backend.is_float_dtype(v.dtype) else v + ops.cast(nothing, v.dtype) for v in values]


def _nothing_of(x):
    return 0.0 * x[0, 0, 0]


def _jax(first, second, *given):
    import jax

    def backward(kept, gradient):
        function, at = second(gradient, *kept)
        d_trained, *d_arrays = jax.vjp(function, *at)[1](gradient)
        return d_trained, None, *d_arrays

    run = jax.custom_vjp(first)
    run.defvjp(lambda *given: (first(*given), given), backward)
    return run(*given)


def _tensorflow(first, second, trained, frozen, *arrays):
    import tensorflow as tf

    count = len(trained)
    trained, frozen = ([tf.convert_to_tensor(v) for v in values] for values in (trained, frozen))

    @tf.custom_gradient
    def run(*given):
        trained, arrays = given[:count], given[count:]

        def backward(gradient):
            function, at = second(gradient, trained, frozen, *arrays)
            with tf.GradientTape() as tape:
                tape.watch(at)
                made = function(*at)
            return tf.nest.flatten(tape.gradient(made, at, output_gradients=gradient))

        return first(trained, frozen, *arrays), backward

    return run(*trained, *arrays)
