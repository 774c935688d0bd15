"""Recorded operations of PyTorch compute what Python computed, with today's weights."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("PyTorch's own", allow_module_level=True)

import torch

from kerasllm.generation.torch_graph import SMALLEST_WEIGHT, TorchGraph


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [8, 512])
def test_products_with_weights(rows, size):
    layer = keras.layers.Dense(size, bias_initializer="random_normal")
    layer.build((rows, size))
    assert (layer.kernel.value.numel() >= SMALLEST_WEIGHT) == (size == 512)
    x = torch.randn(rows, size)

    def function(x):
        return torch.mm(torch.addmm(layer.bias.value, x, layer.kernel.value), layer.kernel.value.t())

    with torch.inference_mode():
        graph = TorchGraph(function, (x,))
        np.testing.assert_allclose(graph([x]), function(x), atol=1e-4)
        layer.set_weights([2 * weight for weight in layer.get_weights()])
        np.testing.assert_allclose(graph([x]), function(x), atol=1e-4)


def test_writes_into_arguments_stay_and_constants_are_computed_once():
    weight = torch.nn.Parameter(torch.ones(4), requires_grad=False)

    def function(cache, place):
        doubled = 2 * weight  # of a weight: anew at each call
        table = torch.arange(4) * 3 + 1  # of nothing: once
        cache["x"].index_put_((place,), doubled[:1])
        return {"sum": cache["x"].sum() + table.sum(), "cache": cache["x"]}

    cache, place = {"x": torch.zeros(4)}, torch.tensor([1])
    with torch.inference_mode():
        graph = TorchGraph(function, (cache, place))
        cache["x"].zero_()
        found = graph([cache["x"], place])
        assert found["cache"].tolist() == cache["x"].tolist() == [0, 2, 0, 0] and float(found["sum"]) == 24
        weight.fill_(5)
        found = graph([cache["x"], torch.tensor([3])])
        assert cache["x"].tolist() == [0, 2, 0, 10] and float(found["sum"]) == 34
