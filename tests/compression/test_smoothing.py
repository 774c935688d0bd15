"""`smooth`: the same function, with inputs that eight bits hold better."""

import numpy as np
import pytest
from keras import ops
from tiny_models import CALIBRATION, make

from kerasllm.compression import quantization_aware, smooth


def output(model, inputs):
    return ops.convert_to_numpy(model(inputs))


def with_large_inputs(kind):
    """A model of which a norm makes one number forty times as large as the others, as large models' do."""
    model, inputs = make(kind)
    for layer in model._flatten_layers():
        if layer.name in ("attention_norm", "feed_forward_norm"):
            scale = np.ones(16, "float32")
            scale[3] = 40.0
            layer.weights[0].assign(scale)
    return model, inputs


@pytest.mark.parametrize("kind", ["gpt", "llama", "t5"])
def test_same_function_and_better_in_eight_bits(kind):
    errors = {}
    for strength in (None, 0.5):
        model, inputs = with_large_inputs(kind)
        expected = output(model, inputs)
        if strength is not None:
            smooth(model, CALIBRATION, strength)
            np.testing.assert_allclose(output(model, inputs), expected, atol=1e-3 * np.abs(expected).max())
        model.quantize("int8", activations=True, embeddings=False, keep=["*.output_dense", "*.down"])
        errors[strength] = np.square(output(model, inputs) - expected).mean()
    assert errors[0.5] < 0.5 * errors[None]


def test_refused():
    model, inputs = make("gpt")
    before = output(model, inputs)
    with pytest.raises(ValueError, match=r"strength=1\.5"):
        smooth(model, CALIBRATION, 1.5)
    with pytest.raises(ValueError, match="too short"):
        smooth(model, [np.arange(3)])
    np.testing.assert_array_equal(output(model, inputs), before)
    with pytest.raises(ValueError, match="norm_position='post'"):
        smooth(make("bert")[0], CALIBRATION)
    with pytest.raises(ValueError, match=r"`calibration` must be rows of token ids.*documentation of Python"):
        smooth(model)
    with pytest.raises(ValueError, match="`calibration` is empty"):
        smooth(model, [])
    quantization_aware(model, "int8")
    with pytest.raises(ValueError, match="trained for that"):
        smooth(model, CALIBRATION)
    model.quantize("int8")
    with pytest.raises(ValueError, match="quantized"):
        smooth(model, CALIBRATION)
