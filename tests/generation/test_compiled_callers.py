"""`generate` inside of functions that are compiled: one sentence at the door, or the same answer."""

import keras
import numpy as np
import pytest

from kerasllm import CausalLM, TransformerConfig


@pytest.fixture(scope="module")
def model():
    return CausalLM(TransformerConfig(16, 16, num_layers=1, num_heads=1, hidden_dim=8))


def in_jit(function):
    import jax

    jax.jit(function)(np.zeros((1, 3), "int32"))


def in_a_graph(function):
    import tensorflow as tf

    tf.function(function)(tf.zeros((1, 3), "int32"))


def in_a_map(function):
    import tensorflow as tf

    list(tf.data.Dataset.from_tensor_slices(np.zeros((2, 3), "int32")).map(function))


CALLERS = {"jax": [in_jit], "tensorflow": [in_a_graph, in_a_map], "torch": []}


@pytest.mark.parametrize("caller", CALLERS[keras.backend.backend()])
@pytest.mark.parametrize("of", ["its argument", "ids of its own"])
def test_generate_is_refused_inside_of_compiled_functions(model, caller, of):
    with pytest.raises(RuntimeError, match=r"`generate` cannot run inside .*Call it outside"):
        caller(lambda ids: model.generate(ids if of == "its argument" else [[1, 2]], 2))
    assert len(model.generate([1, 2], 2)) == 4


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.compile runs what it cannot compile")
def test_generate_runs_between_the_graphs_of_torch_compile(model):
    import torch

    compiled = torch.compile(lambda ids: model.generate(ids + 1, 4), backend="eager")
    assert compiled(torch.ones((1, 3), dtype=torch.int64)) == model.generate([[2, 2, 2]], 4)
