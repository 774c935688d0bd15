"""`prune_structure`: smaller models that compute what the parts that are left compute, saved and loaded."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import CALIBRATION, IDS, LLAMA, SIZES, make

import kerasllm
from kerasllm.compression import prune_structure, structured_pruning
from kerasllm.compression.pruning import prunable_layers
from kerasllm.compression.structured_pruning import Importance, block_influence, importance

PAIRS = ({"encoder_token_ids": IDS, "decoder_token_ids": IDS[:, ::-1]},)
ROWS = (CALIBRATION[:4, :8],)


def output(model, inputs):
    return ops.convert_to_numpy(model(inputs))


def silence(model, found: Importance, heads: int, neurons: int):
    """The oracle: the model with the weights of what matters least set to zero, and nothing taken away."""
    c = model.config
    units = c.num_heads if c.num_kv_heads == 1 else c.num_kv_heads
    for name, layer in prunable_layers(model).items():
        where, _, last = name.rpartition(".")
        if last not in ("output_dense", "down"):
            continue
        kernel = ops.convert_to_numpy(layer.kernel.value).copy()
        if last == "down":
            kernel[np.argsort(found.neurons[where])[:neurons]] = 0
        else:
            scores = found.heads[where].reshape(units, -1).sum(axis=1)
            kernel.reshape(units, -1, kernel.shape[1])[np.argsort(scores)[:heads]] = 0
        layer.kernel.assign(kernel)
    return model


@pytest.mark.parametrize(
    ("kind", "changes", "calibration"),
    [("gpt", {"num_heads": 4}, ROWS), ("llama", {"num_heads": 4, "num_kv_heads": 2}, ROWS), ("t5", {}, PAIRS)],
)
def test_what_is_left_computes_what_it_did(kind, changes, calibration, tmp_path, monkeypatch):
    model, inputs = make(kind, **changes) if kind == "t5" else make_one(kind, **changes)
    before, config = output(model, inputs), model.config
    found = importance(model, calibration)
    monkeypatch.setattr(structured_pruning, "importance", lambda *_: found)  # It is the same each time, and slow.
    monkeypatch.setattr(structured_pruning, "_make_up", lambda *_: None)
    smaller = prune_structure(model, heads=0.5, neurons=0.25, calibration=calibration)
    assert smaller.config == config.replace(
        num_heads=config.num_heads // 2, num_kv_heads=config.num_kv_heads // 2, intermediate_dim=24
    )
    assert smaller.count_params() == smaller.config.num_parameters() < model.count_params()
    np.testing.assert_array_equal(output(model, inputs), before)
    oracle = silence(model, found, heads=config.num_kv_heads // 2, neurons=8)
    np.testing.assert_allclose(output(smaller, inputs), output(oracle, inputs), atol=1e-4)

    smaller.save_to_preset(tmp_path)
    kind_of_file = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert kind_of_file == {"gpt": "kerasllm"}.get(kind, kind)
    loaded = type(model).from_preset(tmp_path)
    np.testing.assert_allclose(output(loaded, inputs), output(smaller, inputs), atol=1e-5)


def make_one(kind, **changes):
    """A model of one block."""
    keras.utils.set_random_seed(3)
    family = LLAMA if kind == "llama" else {}
    config = kerasllm.TransformerConfig(48, 16, 1, **{**SIZES, **family, **changes})
    return kerasllm.CausalLM(config), {"token_ids": IDS}


@pytest.mark.parametrize("kind", ["gpt", "t5"])
def test_what_stays_makes_up_for_what_goes(kind, monkeypatch):
    rng = np.random.default_rng(0)
    x, kernel, kept = rng.normal(size=(200, 12)), rng.normal(size=(12, 5)), np.array([0, 3, 4, 7, 8, 11])
    x[:, 5] = x[:, 3] + x[:, 4]
    monkeypatch.setattr(structured_pruning, "DAMPING", 0.0)
    best = np.linalg.lstsq(x[:, kept], x @ kernel, rcond=None)[0]
    np.testing.assert_allclose(structured_pruning.made_up(kernel, x.T @ x / 200, kept), best, atol=1e-8)
    monkeypatch.undo()

    model, inputs = make(kind)
    calibration, errors = PAIRS if kind == "t5" else ROWS, []
    for make_up in (lambda *_: None, structured_pruning._make_up):
        monkeypatch.setattr(structured_pruning, "_make_up", make_up)
        smaller = prune_structure(model, heads=0.5, neurons=0.25, calibration=calibration)
        errors.append(np.square(output(smaller, inputs) - output(model, inputs)).mean())
    assert errors[1] < errors[0]


def test_importance_is_the_slope_of_the_loss():
    model, _ = make_one("gpt")
    row = CALIBRATION[:1, :8]
    found = importance(model, (row,))
    layers = prunable_layers(model)

    def slope(layer, rows, step=1e-2):
        kernel, losses = ops.convert_to_numpy(layer.kernel.value).copy(), []
        for factor in (1 + step, 1 - step):
            changed = kernel.copy()
            changed[rows] *= factor
            layer.kernel.assign(changed)
            losses.append(-model.score(row)[0].mean())
        layer.kernel.assign(kernel)
        return abs(losses[0] - losses[1]) / (2 * step)

    heads = [slope(layers["block_0.attention.output_dense"], slice(8 * head, 8 * head + 8)) for head in (0, 1)]
    np.testing.assert_allclose(found.heads["block_0.attention"], heads, atol=2e-4)
    neurons = [slope(layers["block_0.feed_forward.down"], neuron) for neuron in range(3)]
    np.testing.assert_allclose(found.neurons["block_0.feed_forward"][:3], neurons, atol=2e-4)


def test_blocks_that_do_little_go():
    model, inputs = make("gpt", num_layers=3)
    for name in ("block_1.attention.output_dense", "block_1.feed_forward.down"):
        layer = prunable_layers(model)[name]
        layer.kernel.assign(layer.kernel * 1e-6)
    assert block_influence(model, CALIBRATION)[""].argmin() == 1
    smaller = prune_structure(model, layers=1 / 3, calibration=CALIBRATION)
    assert smaller.config == model.config.replace(num_layers=2)
    np.testing.assert_allclose(output(smaller, inputs), output(model, inputs), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 1.0}, r"`heads` must be a share in \[0, 1\). Received: heads=1.0"),
        ({"neurons": "half"}, "`neurons`"),
        ({"heads": 0.1}, "Nothing would be taken away"),
        ({"neurons": 0.5, "calibration": [[1, 2]]}, "too short: it has 2 tokens"),
        ({"neurons": 0.5}, "has no tokenizer"),
    ],
)
def test_what_is_refused(arguments, message):
    model, _ = make("gpt", num_layers=1)
    with pytest.raises(ValueError, match=message):
        prune_structure(model, **arguments)
