"""The contract of a layer: shapes, dtypes, mixed precision, serialisation, a symbolic call, a fit step."""

import json

import keras
import numpy as np
from keras import ops


def check_layer(make, inputs, output_shape, tmp_path, call=None):
    """Runs a layer through all that Keras may ask of it.

    Args:
        make: function (dtype) → a new layer.
        inputs: arrays to call it with; integer ones are token ids.
        output_shape: the shape expected.
        tmp_path: a folder to write to.
        call: function (layer, *inputs) → output, if it is not simply called.
    """
    call = call or (lambda layer, *tensors: layer(*tensors))
    layer = make(dtype=None)
    expected = call(layer, *inputs)
    assert tuple(expected.shape) == output_shape
    assert keras.backend.standardize_dtype(expected.dtype) == "float32"
    assert all(w.dtype == "float32" for w in layer.weights)
    expected = ops.convert_to_numpy(expected)

    _check_mixed_precision(make, inputs, output_shape, call, layer, expected)
    _check_round_trip(layer, inputs, call, expected)
    model = _check_symbolic(layer, inputs, call, expected)
    _check_saving(model, inputs, expected, tmp_path)
    _check_fit(model, inputs, expected)


def _check_mixed_precision(make, inputs, output_shape, call, layer, expected):
    mixed = make(dtype="mixed_bfloat16")
    call(mixed, *inputs)
    mixed.set_weights(layer.get_weights())
    output = call(mixed, *inputs)
    assert tuple(output.shape) == output_shape
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    assert all(w.dtype == "float32" for w in mixed.weights)
    near = ops.convert_to_numpy(ops.cast(output, "float32"))
    np.testing.assert_allclose(near, expected, atol=0.1 * max(1.0, np.abs(expected).max()))


def _check_round_trip(layer, inputs, call, expected):
    config = json.loads(json.dumps(layer.get_config()))
    other = type(layer).from_config(config)
    call(other, *inputs)
    assert [w.path.split("/")[1:] for w in other.weights] == [w.path.split("/")[1:] for w in layer.weights]
    other.set_weights(layer.get_weights())
    np.testing.assert_allclose(ops.convert_to_numpy(call(other, *inputs)), expected, atol=1e-6)
    assert other.get_config() == config or json.loads(json.dumps(other.get_config())) == config


def _check_symbolic(layer, inputs, call, expected):
    # Neither the batch nor the length is known yet.
    symbolic = [keras.Input((None, *x.shape[2:]), dtype=str(x.dtype)) for x in inputs]
    output = call(layer, *symbolic)
    assert output.shape[0] is None and output.shape[-1] == expected.shape[-1]
    model = keras.Model(symbolic, output)
    np.testing.assert_allclose(model.predict(list(inputs), verbose=0), expected, atol=1e-5)
    return model


def _check_saving(model, inputs, expected, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(ops.convert_to_numpy(loaded(list(inputs))), expected, atol=1e-5)


def _check_fit(model, inputs, expected):
    targets = np.roll(expected, 1, axis=-1)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse", jit_compile=keras.backend.backend() == "jax")
    losses = model.fit(list(inputs), targets, epochs=5, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
