"""Functions of arrays as each backend runs them best, compiled once a shape, and counted."""

import threading
from collections.abc import Callable

import keras
import numpy as np

from kerasllm.graph_frames import short_frames

_RECORDING = threading.Lock()  # PyTorch records in one thread at a time: it changes what all threads share.


def compiled(model, function: Callable, donate: int | None = None) -> Callable:
    """`function`, a pure function of nested arrays and the model's weights, compiled once for each set of shapes.

    JAX jits it, TensorFlow compiles it by XLA, and PyTorch records its operations and replays them, without the
    Python of layers and `keras.ops` in between. Nothing else about the arguments is looked at, so no setting
    compiles again.

    Args:
        model: whose weights `function` reads, if any; they may change, their number and shapes may not.
        function: takes and returns nested lists, tuples and dicts of arrays.
        donate: number of the argument whose memory the last result, or all of it, takes over: its values are lost. On
            TensorFlow it becomes variables, which XLA writes where they are.

    Returns:
        the function, with `compilations()`: how often it was compiled so far. On PyTorch also with `bind(*arguments)`:
        the recorded operations and the flat list of tensors that they take, for a loop that goes on from there.
    """
    return _COMPILED[keras.backend.backend()](model, function, donate)


def _jax(model, function, donate):
    import jax

    variables, traces = model.transformer.variables if model else [], []

    def pure(values, *arguments):
        traces.append(1)  # Python comes here only to compile.
        with keras.StatelessScope(state_mapping=list(zip(variables, values))):
            return function(*arguments)

    jitted = jax.jit(pure, donate_argnums=() if donate is None else (donate + 1,))

    def run(*arguments):
        # JAX reads NumPy arrays where they lie, and later: what the caller then writes into them must not be seen.
        arguments = keras.tree.map_structure(lambda x: x.copy() if isinstance(x, np.ndarray) else x, arguments)
        return jitted([v.value for v in variables], *arguments)

    run.compilations = lambda: len(traces)
    return run


def _tensorflow(model, function, donate):
    import tensorflow as tf

    def with_short_frames(*arguments):
        with short_frames():
            if donate is None:
                return function(*arguments)
            memory = arguments[donate]
            values = tf.nest.map_structure(lambda variable: variable.read_value(), memory)
            results = function(*arguments[:donate], values, *arguments[donate + 1 :])
            rest, last = (results[:-1], results[-1]) if isinstance(results, tuple) else ((), results)
            tf.nest.map_structure(lambda variable, value: variable.assign(value), memory, last)
            return rest

    traced = tf.function(with_short_frames, jit_compile=True, autograph=False)

    def variable(x):
        return x if isinstance(x, tf.Variable) else tf.Variable(x, trainable=False)

    def run(*arguments):
        arguments = list(arguments)
        memory = None if donate is None else tf.nest.map_structure(variable, arguments.pop(donate))
        arguments = tf.nest.map_structure(tf.convert_to_tensor, arguments)
        if donate is None:
            return traced(*arguments)
        rest = traced(*arguments[:donate], memory, *arguments[donate:])
        return (*rest, memory) if rest else memory

    run.compilations = traced.experimental_get_tracing_count
    return run


def _torch(model, function, donate):
    import torch

    from kerasllm.generation.torch_graph import TorchGraph

    graphs = {}

    @torch.inference_mode()
    def bound(*arguments):
        tensors = keras.tree.map_structure(to_tensor, arguments)
        flat = keras.tree.flatten(tensors)
        key = tuple((x.shape, x.dtype, x.device) for x in flat)
        if key not in graphs:
            with _RECORDING:
                graphs[key] = graphs.get(key) or TorchGraph(function, tensors)
        return graphs[key], flat

    def bind(*arguments):
        graph, flat = bound(*arguments)
        return graph.run_flat, flat

    @torch.inference_mode()
    def run(*arguments):
        graph, flat = bound(*arguments)
        return graph(flat)

    run.bind, run.compilations = bind, lambda: len(graphs)
    return run


_COMPILED = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}


def to_tensor(x):
    """NumPy arrays as the backend's tensors; what is a tensor already, untouched."""
    if not isinstance(x, np.ndarray | np.generic):
        return x
    return keras.ops.convert_to_tensor(x)
