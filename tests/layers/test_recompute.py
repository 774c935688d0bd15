"""What is computed twice is computed alike: values and gradients are those without it."""

import numpy as np
import pytest
from differentiate import gradients
from keras import ops

from kerasllm.layers import FeedForward
from kerasllm.layers.recompute import recompute

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu", "silu"])
@pytest.mark.parametrize("gated", [False, True])
def test_a_frozen_feed_forward(activation, gated):
    layer = FeedForward(12, activation, gated)
    layer.build(X.shape)
    (wanted,) = gradients(lambda x: ops.sum(ops.sin(layer(x, training=True))), X)
    value = ops.convert_to_numpy(layer(X))
    layer.trainable = False
    (found,) = gradients(lambda x: ops.sum(ops.sin(layer(x, training=True))), X)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(X, training=True)), value, atol=1e-6)


def test_weights_trained_frozen_and_other_arrays():
    layer = FeedForward(12)
    layer.build(X.shape)
    layer.down.trainable = False

    def plain(x, y):
        return layer(x) * y

    wanted = gradients(lambda x, y: ops.sum(ops.sin(plain(x, y))), X, X + 1)
    found = gradients(lambda x, y: ops.sum(ops.sin(recompute(layer, plain, x, y))), X, X + 1)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
