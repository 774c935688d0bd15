"""Training for quantization: it computes what the quantized model will, and learns to live with it."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import CALIBRATION, make

from kerasllm.compression import quantization_aware, quantization_unaware, quantized_layers
from kerasllm.compression.schemes import float_weights, quantizable_layers


def output(model, inputs):
    return ops.convert_to_numpy(model(inputs))


def weights(model):
    return {
        name: [ops.convert_to_numpy(part) for part in float_weights(layer)]
        for name, layer in quantizable_layers(model).items()
    }


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("gpt", "int4", {"group_size": 8, "keep": "*.down"}),
        ("llama", "int4", {"group_size": -1}),
        ("t5", "int4", {"group_size": 16}),
        ("bert", "int8", {"embeddings": False}),
    ],
)
def test_it_computes_what_the_quantized_model_will(kind, mode, options):
    model, inputs = make(kind) if kind == "t5" else make(kind, num_layers=1)
    plain = output(model, inputs)
    quantization_aware(model, mode, **options)
    aware, rounded = output(model, inputs), weights(model)
    assert np.abs(aware - plain).max() > 1e-3
    quantization_unaware(model)
    np.testing.assert_array_equal(output(model, inputs), plain)
    quantization_aware(model, mode, **options)
    model.quantize(mode, **options)
    assert quantized_layers(model)
    for name, parts in weights(model).items():
        for part, expected in zip(parts, rounded[name]):
            np.testing.assert_allclose(part, expected, atol=1e-6)
    np.testing.assert_allclose(output(model, inputs), aware, atol=1e-4 * np.abs(aware).max())


@pytest.mark.parametrize("group_size", [-1, 8])
def test_what_training_reaches_is_what_quantizing_keeps(group_size):
    rows = CALIBRATION[:, :9]
    model, _ = make("gpt", num_layers=1)
    quantization_aware(model, "int4", group_size=group_size)
    before = -np.mean(model.score(rows))
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(rows, batch_size=8, epochs=20, verbose=0)
    aware = -np.mean(model.score(rows))
    model.quantize("int4", group_size=group_size)
    assert -np.mean(model.score(rows)) == pytest.approx(aware, abs=1e-4)
    assert aware < before - 1


def test_activations_are_rounded_too():
    model, inputs = make("gpt", num_layers=1)
    quantization_aware(model, "int8")
    weights_alone = output(model, inputs)
    quantization_unaware(model)
    quantization_aware(model, "int8", activations=True)
    aware = output(model, inputs)
    assert np.abs(aware - weights_alone).max() > 1e-4
    model.quantize("int8", activations=True)
    # A sum that is another in its last bit may round otherwise.
    np.testing.assert_allclose(output(model, inputs), aware, atol=0.02 * np.abs(aware).max())


def test_what_is_refused():
    model, _ = make("gpt", num_layers=1)
    with pytest.raises(ValueError, match=r"int8, int4\. Received: mode='gptq'"):
        quantization_aware(model, "gptq")
    with pytest.raises(ValueError, match="must divide the inputs"):
        quantization_aware(model, "int4", group_size=5)
    with pytest.raises(ValueError, match="Did you mean"):
        quantization_aware(model, "int8", keep="*.quer")
    quantization_aware(model, "int4", group_size=8)
    with pytest.raises(ValueError, match=r"already: .* for int4/8"):
        quantization_aware(model, "int8")
    with pytest.raises(ValueError, match=r"for int4/8, and is to be int8"):
        model.quantize("int8")
    model.quantize("int4", group_size=8)
    with pytest.raises(ValueError, match="quantized already"):
        quantization_aware(model, "int4")
