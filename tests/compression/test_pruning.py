"""Zeros among weights: which they are, that training keeps them, and what is refused."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import CALIBRATION, make

from kerasllm.compression import (
    GradualPruning,
    Magnitude,
    SparseGPT,
    Wanda,
    free_zeros,
    keep_zeros,
    prune,
    sparsity,
)
from kerasllm.compression.pruning import prunable_layers

ROWS = CALIBRATION[:2, :16]


def kernels(model):
    return {name: ops.convert_to_numpy(layer.kernel.value) for name, layer in prunable_layers(model).items()}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("gpt", SparseGPT(0.5, calibration=ROWS)),
        ("llama", Wanda("2:4", calibration=ROWS)),
        ("t5", Wanda(0.25, calibration=ROWS, scope="layer")),
        ("bert", Magnitude(0.6, scope="model")),
    ],
)
def test_as_many_zeros_as_asked_for(kind, method):
    model, inputs = make(kind, num_layers=1) if kind != "t5" else make(kind)
    prune(model, method)
    found = sparsity(model)
    share = 0.5 if method.sparsity == "2:4" else method.sparsity
    assert found.total == pytest.approx(share, abs=0.02)
    if method.sparsity == "2:4":
        for kernel in kernels(model).values():
            groups = (kernel != 0).reshape(-1, 4, kernel.shape[1])
            assert (groups.sum(axis=1) == 2).all()
    elif getattr(method, "scope", "layer") == "layer":
        assert set(np.round(list(found.layers.values()), 2)) == {share}
    assert np.isfinite(ops.convert_to_numpy(model(inputs))).all()


def test_training_keeps_zeros(tmp_path):
    model, _ = make("gpt", num_layers=1)
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1))
    model.fit(CALIBRATION[:, :8], batch_size=8, verbose=0)  # Moments that would move what is zero.
    prune(model, Magnitude("2:4"), "attention.*")
    before = kernels(model)
    model.fit(CALIBRATION[:, :8], batch_size=8, epochs=2, verbose=0)
    after = kernels(model)
    for name in before:
        changed = before[name] != after[name]
        if "attention" in name:
            np.testing.assert_array_equal(after[name] == 0, before[name] == 0)
            assert changed[before[name] != 0].all()
        else:
            assert changed.all()
    model.save_to_preset(tmp_path)
    loaded = type(model).from_preset(tmp_path)
    assert sparsity(loaded) == sparsity(model)
    keep_zeros(loaded, "attention.*")
    layers = prunable_layers(loaded)
    masks = {name: layer.kernel.constraint for name, layer in layers.items() if "attention" in name}
    for name, zeros in masks.items():
        np.testing.assert_array_equal(ops.convert_to_numpy(zeros(np.ones((16, 16), "float32"))), after[name] != 0)
    free_zeros(loaded)
    assert all(layer.kernel.constraint is None for layer in layers.values())


def test_little_by_little():
    model, _ = make("gpt", num_layers=1)
    model.compile(keras.optimizers.AdamW(0.01))
    callback = GradualPruning(model, 0.8, begin=1, end=5, every=2, layers="feed_forward.*")
    assert [callback.sparsity_at(step) for step in (0, 1, 5, 9)] == [0, 0, 0.8, 0.8]
    assert callback.sparsity_at(3) == pytest.approx(0.8 * (1 - 0.5**3))
    shares = []
    log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: shares.append(sparsity(model)))
    model.fit(CALIBRATION[:, :8], batch_size=4, epochs=4, verbose=0, callbacks=[callback, log])
    up = [share.layers["block_0.feed_forward.up"] for share in shares]
    np.testing.assert_allclose(up, [0, callback.sparsity_at(3), 0.8, 0.8], atol=2e-3)
    assert shares[-1].layers["block_0.attention.query"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: (Magnitude(1.0),), r"`sparsity` must be in \[0, 1\).*Received: sparsity=1.0"),
        (lambda: (Magnitude(-0.1),), "sparsity=-0.1"),
        (lambda: (Wanda("4:2"),), "0 < n < m"),
        (lambda: (Magnitude("2:4", scope="model"),), "same in each layer"),
        (lambda: (Wanda(scope="model"),), "one of output, layer"),
        (lambda: (Magnitude("1:3"),), r"must divide the inputs of each layer, and 'block_0.* has (16|32)"),
        (lambda: (Magnitude(0.5), "block_0.attention.quer"), "Did you mean"),
        (lambda: (Magnitude(0.5), "embedding.tokens"), "No layer matches"),
        (lambda: (Wanda(0.5, calibration=[[1, 2, 3]]),), "too short: it has 3 tokens"),
        (lambda: (Wanda(0.5),), "`calibration` must be rows of token ids"),
        (lambda: (Wanda(0.5, calibration=None),), "`calibration` must be rows of token ids"),
        (lambda: (SparseGPT(0.5, calibration=[]),), "`calibration` is empty"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(arguments, message):
    model, _ = make("gpt", num_layers=1)
    before = kernels(model)
    with pytest.raises(ValueError, match=message):
        prune(model, *arguments())
    after = kernels(model)
    assert all((after[name] == before[name]).all() for name in before)
    assert all(layer.kernel.constraint is None for layer in prunable_layers(model).values())


def test_quantized_and_adapted_models_are_refused():
    model, _ = make("gpt", num_layers=1)
    model.quantize("int8", keep="*.up")
    with pytest.raises(ValueError, match=r"quantized: .* is int8"):
        prune(model, Magnitude(0.5))
    model, _ = make("gpt", num_layers=1)
    model.enable_lora(2)
    with pytest.raises(ValueError, match=r"has adapters \(default\)"):
        prune(model, Magnitude(0.5))
    model, _ = make("gpt", num_layers=1)
    prune(model, Magnitude(0.5))
    before = kernels(model)
    model.enable_lora(2)
    with pytest.raises(ValueError, match=r"kept at zero in places .*free_zeros"):
        model.merge()
    assert all((kernel == before[name]).all() for name, kernel in kernels(model).items())
    model.delete_adapter("default")
    free_zeros(model)
    model.enable_lora(2)
    model.merge()
    with pytest.raises(ValueError, match="`begin` must come before `end`"):
        GradualPruning(make("gpt", num_layers=1)[0], 0.5, begin=3, end=3)
