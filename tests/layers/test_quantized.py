"""Products with quantized kernels equal those with the kernels in floating point."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm.layers.projection import Projection
from kerasllm.layers.quantized import float_kernel, product
from tests.differentiate import gradients

CONFIGS = {
    "int8": keras.quantizers.Int8QuantizationConfig(activation_quantizer=None),
    "int4": keras.quantizers.Int4QuantizationConfig(block_size=4, activation_quantizer=None),
    "int4 by channel": keras.quantizers.Int4QuantizationConfig(block_size=-1, activation_quantizer=None),
}


@pytest.mark.parametrize("units", [6, 7])  # Of an odd number, the last byte holds one weight.
@pytest.mark.parametrize("mode", CONFIGS)
def test_product(mode, units):
    layer, plain = Projection(units), keras.layers.Dense(units)
    layer.build((None, 8))
    plain.build((None, 8))
    plain.set_weights(layer.get_weights())
    layer.quantize(mode.split()[0], type_check=False, config=CONFIGS[mode])
    plain.quantize(mode.split()[0], config=CONFIGS[mode])
    random = np.random.default_rng(0)
    x, direction = (random.normal(size=(2, 5, size)).astype("float32") for size in (8, units))

    kernel = ops.convert_to_numpy(float_kernel(layer))
    assert kernel.shape == (8, units)
    y = ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(y, x @ kernel, atol=1e-5)
    np.testing.assert_allclose(y, ops.convert_to_numpy(plain(x)), atol=1e-5)  # what Keras makes of the same codes

    rows, upstream = x.reshape(-1, 8), direction.reshape(-1, units)
    (gradient,) = gradients(lambda x: ops.sum(product(x, layer) * ops.convert_to_tensor(upstream)), rows)
    np.testing.assert_allclose(gradient, upstream @ kernel.T, atol=1e-5)
