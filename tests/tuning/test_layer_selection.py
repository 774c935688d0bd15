"""Freezing by name and by block, gradual unfreezing, and learning rates that differ by layer."""

import shutil

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.training import Checkpoint
from kerasllm.tuning import GradualUnfreezing, LoRA, freeze, layerwise_decay, lora_plus, unfreeze

ROWS = np.random.default_rng(0).integers(0, 31, (8, 9)).astype("int32")
SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8}


def new_model(num_layers=2):
    keras.utils.set_random_seed(3)
    return kerasllm.CausalLM(kerasllm.TransformerConfig(31, 16, **{**SIZES, "num_layers": num_layers}))


def trained_paths(model):
    return {v.path.removeprefix("transformer/") for v in model.trainable_variables}


def values(model):
    return {v.path: ops.convert_to_numpy(v.value).copy() for v in model.weights}


def changed(model, before):
    return {path.removeprefix("transformer/") for path, value in values(model).items() if (value != before[path]).any()}


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("what", "frozen"),
    [
        (["*.attention.*"], lambda path: "/attention/" in path),
        (["attention"], lambda path: "/attention/" in path),
        (["transformer.embedding*"], lambda path: path.startswith("embedding")),
        (["first 1"], lambda path: path.startswith("block_0")),
        (["last 1", "embedding"], lambda path: path.startswith(("block_1", "embedding"))),
        (["block_1", "re:.*norm"], lambda path: path.startswith("block_1") or "norm" in path),
        (["*"], lambda path: True),
    ],
)
def test_what_is_frozen_by_name(what, frozen):
    model = new_model()
    everything = trained_paths(model)
    counts = model.freeze(*what)
    assert trained_paths(model) == {path for path in everything if not frozen(path)}
    assert counts.parameters == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert counts.total == model.count_params() and f"{counts.parameters:,} of" in str(counts)
    assert model.unfreeze().parameters == counts.total and trained_paths(model) == everything


@pytest.mark.one_backend
def test_blocks_are_counted_in_each_stack_and_unused_weights_stay_out():
    model = kerasllm.Seq2SeqLM(kerasllm.TransformerConfig.from_name("t5_tiny", **SIZES, vocabulary_size=31))
    model.freeze("first 1")
    assert not any("block_0" in path for path in trained_paths(model))
    assert {path.split("/")[0] for path in trained_paths(model) if "block_1" in path} == {"encoder", "decoder"}
    bert = kerasllm.TextClassifier(
        kerasllm.TransformerConfig.from_name("bert_tiny", **SIZES, vocabulary_size=31), pooling="mean"
    )
    before = trained_paths(bert)
    bert.freeze("*")
    bert.unfreeze("*")
    assert trained_paths(bert) == before and not any("pooler" in path for path in before)


@pytest.mark.one_backend
def test_any_keras_model_freezes_by_name():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="low"), keras.layers.Dense(1, name="top")])
    freeze(model, "low")
    assert [v.path.split("/")[-2] for v in model.trainable_variables] == ["top", "top"]
    unfreeze(model, "low")
    assert len(model.trainable_variables) == 4
    with pytest.raises(ValueError, match="Only our models"):
        freeze(model, "first 1")


def test_gradual_unfreezing_goes_down_and_keeps_what_the_optimizer_knows(capsys):
    model = new_model()
    model.freeze("embedding", "first 2")
    model.compile(keras.optimizers.Adam(1e-2))
    stages, before = [], values(model)

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            stages.append(changed(self.model, before))

    callback = GradualUnfreezing(every=1)
    model.fit(ROWS, epochs=4, batch_size=8, verbose=0, callbacks=[callback, Watch()])
    tops = [{path.split("/")[0] for path in stage} for stage in stages]
    assert tops[0] == {"final_norm"}
    assert tops[1] == {"final_norm", "block_1"}
    assert tops[2] == {"final_norm", "block_1", "block_0"}
    assert tops[3] == {"final_norm", "block_1", "block_0", "embedding"}
    assert callback.compilations == 3 and "compiled again (3 so far, 0 to come)" in capsys.readouterr().out
    optimizer = model.optimizer
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 4
    assert len(optimizer.variables) == 2 + 2 * len(model.trainable_variables)
    # The norm has been trained from the start: its squares are means over four steps, not over the last one.
    [moment] = [v for v in optimizer.variables if "final_norm_gamma_velocity" in v.path]
    assert np.abs(ops.convert_to_numpy(moment.value)).max() > 0
    model.fit(ROWS, epochs=1, batch_size=8, verbose=0)


@pytest.mark.parametrize("unit", ["epochs", pytest.param("steps", marks=pytest.mark.one_backend)])
def test_gradual_unfreezing_goes_on_from_a_checkpoint_bit_for_bit(unit, tmp_path):
    def train(epochs, folder, resume):
        model = new_model(1)
        model.freeze("embedding", "first 1")
        model.compile(keras.optimizers.Adam(1e-2))
        gradual = GradualUnfreezing(every=1 if unit == "epochs" else 3, unit=unit, verbose=False)
        checkpoint = Checkpoint(tmp_path / folder, every_steps=1, keep=20, resume=resume)
        model.fit(ROWS, epochs=epochs, batch_size=4, verbose=0, callbacks=[gradual, checkpoint])
        return values(model)

    whole = train(3, "whole", False)
    for step in (3, 4):  # In the middle of an epoch, and at its end.
        shutil.copytree(tmp_path / "whole", tmp_path / f"from-{step}")
        for path in (tmp_path / f"from-{step}").iterdir():
            if int(path.name.split("-")[1]) > step:
                shutil.rmtree(path)
        resumed = train(3, f"from-{step}", True)
        assert all((resumed[path] == value).all() for path, value in whole.items())


def test_unfreezing_by_steps_is_the_same_training_as_compiling_anew():
    model = new_model(1)
    model.freeze("embedding", "first 1")
    model.compile(keras.optimizers.SGD(0.5))
    model.fit(ROWS, epochs=1, batch_size=2, shuffle=False, verbose=0, callbacks=[_by_steps()])
    again = new_model(1)
    for what, rows in ((["embedding", "first 1"], ROWS[:4]), (["embedding"], ROWS[4:])):
        again.unfreeze()
        again.freeze(*what)
        again.compile(keras.optimizers.SGD(0.5))
        again.fit(rows, epochs=1, batch_size=2, shuffle=False, verbose=0)
    for path, value in values(model).items():
        np.testing.assert_allclose(value, values(again)[path], atol=1e-6)


def _by_steps():
    callback = GradualUnfreezing(every=2, unit="steps", verbose=False)
    on_train_begin = callback.on_train_begin

    def blocks_alone(logs=None):
        on_train_begin(logs)
        callback._stages = callback._stages[:1]

    callback.on_train_begin = blocks_alone
    return callback


def test_layerwise_decay_scales_each_block_s_update():
    steps = {}
    for decay in (1.0, 0.5):
        model = new_model()
        before = values(model)
        model.compile(layerwise_decay(keras.optimizers.SGD(0.1), model, decay))
        model.fit(ROWS, epochs=1, batch_size=8, verbose=0)
        steps[decay] = {path: value - before[path] for path, value in values(model).items()}
    powers = {"final_norm": 0, "block_1": 1, "block_0": 2, "embedding": 3}
    for path, step in steps[0.5].items():
        factor = 0.5 ** powers[path.split("/")[1]]
        np.testing.assert_allclose(step, factor * steps[1.0][path], atol=3e-7, rtol=1e-3)


@pytest.mark.one_backend
def test_layerwise_decay_and_lora_plus_multiply():
    model = new_model(1)
    model.add_adapter("a", LoRA(rank=2, targets="query", initialization="orthogonal"))
    optimizer = layerwise_decay(lora_plus(keras.optimizers.SGD(1.0), model, 8.0), model, 0.5)
    optimizer.build(model.trainable_variables)
    before = values(model)
    optimizer.apply([ops.ones(v.shape) for v in model.trainable_variables])
    after = values(model)
    moved = {path.split("/")[-1]: float((before[path] - after[path]).max()) for path in before}
    assert moved["lora_a"] == pytest.approx(0.5) and moved["lora_b"] == pytest.approx(4.0)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.freeze("atention"), "Did you mean 'attention"),
        (lambda m: m.freeze(), "Say what"),
        (lambda m: m.freeze(3), "named by text"),
        (lambda m: m.freeze("first 3"), "has 2 blocks"),
        (lambda m: m.freeze("last 0"), "has 2 blocks"),
        (lambda m: layerwise_decay(keras.optimizers.SGD(), m, 1.5), "`decay` must be in"),
        (lambda m: layerwise_decay(keras.optimizers.SGD(), keras.Sequential([]), 0.5), "Only our models"),
        (lambda m: GradualUnfreezing(0), "`every` must be at least 1"),
        (lambda m: GradualUnfreezing(1, "days"), "`unit` must be"),
        (lambda m: (m.compile(), m.fit(ROWS, callbacks=[GradualUnfreezing()], verbose=0)), "No block is frozen"),
        (lambda m: (m.freeze("*"), m.compile(), m.fit(ROWS, verbose=0)), "Nothing in the model is trainable"),
        (lambda m: (m.enable_lora(2), m.freeze("*")), "has adapters"),
        (
            lambda m: (
                m.compile(),
                m.optimizer.build(m.trainable_variables),
                m.freeze("*"),
                m.unfreeze("last 1"),
                m.fit(ROWS, verbose=0),
            ),
            "Compile it again",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(new_model())
