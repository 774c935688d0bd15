"""Against forgetting: the penalty and its gradient, the Fisher information, and the report."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.tuning import ForgettingReport, anchor, fisher_information, release

OLD = ((np.arange(9) + np.arange(8)[:, None]) % 11).astype("int32")
NEW = OLD[:, ::-1].copy()
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "dropout": 0.0, "attention_dropout": 0.0}


def new_model(seed=3):
    keras.utils.set_random_seed(seed)
    model = kerasllm.CausalLM(kerasllm.TransformerConfig(11, 16, initializer_range=0.2, **SIZES))
    model.compile(keras.optimizers.Adam(0.02))
    return model


def values(model):
    return {v.path: ops.convert_to_numpy(v.value).copy() for v in model.trainable_variables}


def test_one_step_of_descent_has_the_gradient_of_the_penalty():
    """After an anchored step from shifted weights: the step without, less rate · strength · importance · shift."""
    shift, rate, strength = 0.1, 0.5, 0.7
    steps, importance = {}, {}
    for anchored in (False, True):
        model = new_model()
        start = values(model)
        importance = {path: np.full(value.shape, 1 + i % 3, "float32") for i, (path, value) in enumerate(start.items())}
        if anchored:
            anchor(model, strength, importance)
        for variable in model.trainable_variables:
            variable.assign(variable + shift)
        model.compile(keras.optimizers.SGD(rate))
        [loss] = model.fit(NEW, epochs=1, batch_size=8, verbose=0).history["loss"]
        steps[anchored] = (loss, {path: value - start[path] - shift for path, value in values(model).items()})
    penalty = strength / 2 * shift**2 * sum(f.sum() for f in importance.values())
    assert steps[True][0] - steps[False][0] == pytest.approx(penalty, rel=1e-3)
    for path, step in steps[True][1].items():
        expected = steps[False][1][path] - rate * strength * importance[path] * shift
        np.testing.assert_allclose(step, expected, atol=1e-5)


def test_fisher_information_is_the_mean_of_the_rows_squared_gradients():
    """The gradients of single rows, from steps of plain descent."""
    model, rows, rate = new_model(), np.concatenate([OLD[:1], NEW[:1], OLD[1:2]]), 1e-2
    before = values(model)
    found = fisher_information(model, rows, rows=2)
    assert all((before[path] == value).all() for path, value in values(model).items())
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    model.compile(keras.optimizers.SGD(rate))
    squares = dict.fromkeys(before, 0.0)
    for row in rows[:2]:
        for variable in model.trainable_variables:
            variable.assign(before[variable.path])
        model.fit(row[None], epochs=1, batch_size=1, verbose=0)
        squares = {p: total + ((values(model)[p] - before[p]) / rate) ** 2 / 2 for p, total in squares.items()}
    assert max(f.max() for f in found.values()) > 1e-3
    for path, value in found.items():
        np.testing.assert_allclose(value, squares[path], atol=2e-4, rtol=2e-2)


@pytest.mark.one_backend  # Its parts are tested on each; here they are many steps to compile.
def test_what_is_anchored_forgets_less(capsys, tmp_path):
    forgotten = {}
    for kind in ("nothing", "l2", "ewc"):
        model = new_model()
        model.fit(OLD, epochs=25, batch_size=8, verbose=0)
        if kind == "l2":
            anchor(model, 1.0)
        if kind == "ewc":
            anchor(model, 3e4, fisher_information(model, OLD))
        model.compile(keras.optimizers.Adam(0.02))
        with ForgettingReport(model, OLD, verbose=kind == "ewc") as report:
            model.fit(NEW, epochs=12, batch_size=8, verbose=0)
        forgotten[kind] = report.forgotten
        assert report.after["loss"] == pytest.approx(np.log(report.after["perplexity"]), rel=1e-3)  # No penalty in it.
    assert forgotten["l2"] < 0.7 * forgotten["nothing"] and forgotten["ewc"] < 0.7 * forgotten["nothing"]
    printed = capsys.readouterr().out
    assert printed == f"{report}\n" and "loss" in printed and "→" in printed
    model.save_to_preset(tmp_path)
    assert not any("anchor" in v.path for v in kerasllm.CausalLM.from_preset(tmp_path).weights)
    release(model)
    assert not model.losses and not any("anchor" in v.path for v in model.weights)


@pytest.mark.one_backend
def test_any_keras_model_is_held_beside_its_own_regularizers():
    layer = keras.layers.Dense(1, kernel_regularizer="l2", bias_initializer="ones")
    model = keras.Sequential([keras.Input((2,)), layer])
    own = float(sum(model.losses))
    anchor(model, 2.0)
    assert float(sum(model.losses)) == pytest.approx(own)
    layer.bias.assign([4.0])
    assert float(sum(model.losses)) == pytest.approx(own + 9.0)
    release(model)
    assert float(sum(model.losses)) == pytest.approx(own)
    model.compile("sgd", "mse")
    x = np.eye(2, dtype="float32")
    found = fisher_information(model, x, np.zeros((2, 1), "float32"), rows=1)
    error = float(model.predict(x[:1], verbose=0)[0, 0])
    assert found[layer.bias.path] == pytest.approx((2 * error) ** 2, rel=1e-4)


@pytest.mark.one_backend
def test_an_anchor_does_not_change_what_base_an_adapter_is_of(tmp_path):
    model = new_model()
    anchor(model, 1.0)
    model.enable_lora(2)
    model.save_adapter(tmp_path)
    other = new_model()
    other.load_adapter(tmp_path)
    assert list(other.adapters) == ["default"]


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: anchor(m, -1.0), "`strength` must not be negative"),
        (lambda m: (anchor(m, 1.0), anchor(m, 1.0)), "release"),
        (lambda m: release(m), "has no anchor"),
        (lambda m: anchor(m, 1.0, {}), "Estimate it"),
        (lambda m: (m.freeze("*"), anchor(m, 1.0)), "Nothing in the model is trainable"),
        (lambda m: fisher_information(m, OLD, rows=0), "`rows` must be at least 1"),
        (lambda m: fisher_information(m, m.as_data(OLD, batch_size=4)), "batches of 4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(new_model())


@pytest.mark.one_backend
def test_a_report_needs_a_loss():
    with pytest.raises(ValueError, match="not compiled"):
        ForgettingReport(kerasllm.CausalLM(kerasllm.TransformerConfig(11, 16, **SIZES)), OLD)
