"""Everything that a model was given comes back, or saving refuses with a remedy: states × ways of saving."""

import functools
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from saved_states import (
    IDS,
    KEPT,
    LORA,
    REFUSED,
    STATES,
    TASKS,
    TRAINING_WAYS,
    WAYS,
    WEIGHTS_OR_COPIES,
    adapter,
    assert_same,
    by_keras,
    compiled,
    facts,
    make,
    randomize,
    refusal,
    verdict,
)

import kerasllm
from kerasllm import tuning
from kerasllm.tuning import LoRA

# A file has the same in it in each of these ways; a few states stand for the others.
TRAINED = ("frozen layers", "QLoRA", "pruned", "AdamW: decay, schedule, accumulation, smoothing")
READ_INTO_ANOTHER = ("a merged adapter", "several adapters", "a DoRA", "a PiSSA", "a prompt of a network", "a prefix")
READ_INTO_ANOTHER += ("LoRA of Keras's own", "int4 in groups", "gptq", "QLoRA", "pruned", "trained for int4")
COPIED = ("several adapters", "a merged adapter", "LoRA of Keras's own", "some layers quantized", "pruned", "LoRA+")
CELLS = [(state, way) for state in STATES for way in WAYS]
CELLS += [(state, "save_weights") for state in READ_INTO_ANOTHER] + [(state, "clone_model") for state in COPIED]
CELLS += [(state, way) for state in ("several adapters", "pruned") for way in ("get_config", "pickle", "deepcopy")]
CELLS.sort(key=lambda cell: [*STATES].index(cell[0]))  # so that each state is made once


@functools.lru_cache(maxsize=1)
def in_state(state):
    model = make()
    STATES[state](model)
    return model


def check(model, state, way, save, tmp_path):
    if verdict(state, way) == REFUSED:
        with pytest.raises(ValueError, match="(?s)" + refusal(state, way)):
            save(model, state, tmp_path)
    else:
        assert_same(model, save(model, state, tmp_path), verdict(state, way))


@pytest.mark.parametrize(("state", "way"), CELLS)
@pytest.mark.one_backend
def test_a_state_comes_back_or_is_refused(state, way, tmp_path):
    check(in_state(state), state, way, {**WAYS, **WEIGHTS_OR_COPIES}[way], tmp_path)


@pytest.mark.parametrize("state", ["QLoRA", "trained for int4"])
def test_a_state_comes_back_on_each_backend(state, tmp_path):
    model = make()
    STATES[state](model)
    assert_same(model, by_keras(model, state, tmp_path), verdict(state, "save(….keras)"))


@pytest.mark.parametrize("way", TRAINING_WAYS)
@pytest.mark.parametrize("state", TRAINED)
@pytest.mark.one_backend
def test_a_state_is_saved_while_training(state, way, tmp_path):
    model = make()
    STATES[state](model)
    check(model, state, way, TRAINING_WAYS[way], tmp_path)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.one_backend
def test_each_task_comes_back_with_its_options_and_a_tuned_head(task, tmp_path):
    model = make(task)
    randomize(model)
    again = WAYS["save_to_preset"](model, "", tmp_path)
    assert_same(model, again, verdict("", "save_to_preset"))
    model.freeze("embedding")
    adapter(LoRA(rank=2), LORA, active=["a", "b"])(model)
    assert_same(model, by_keras(model, "", tmp_path), KEPT)


# Weights read into another model ------------------------------------------------------------------------------

# (what the file is of, what it is read into): what the sentence says
MISMATCHES = {
    ("an adapter", "as it was made"): r"other adapters. Received: a in the file, and none.*add_adapter",
    ("as it was made", "an adapter"): r"other adapters. Received: none in the file, and a",
    ("an adapter", "a DoRA"): r"other adapters. Received: .*'dora': False.*'dora': True",
    ("an adapter", "a merged adapter"): r"unmerge\(\)",
    ("a merged adapter", "an adapter"): r"other adapters",
    ("int8", "as it was made"): r"other quantization.*quantize",
    ("trained for int4", "as it was made"): r"other training for quantization.*quantization_aware",
}


@pytest.mark.parametrize(("of", "into"), MISMATCHES, ids=lambda state: state)
@pytest.mark.one_backend
def test_weights_of_another_structure_are_refused(of, into, tmp_path):
    in_state(of).save_weights(tmp_path / "model.weights.h5")
    other = make(seed=1)
    STATES[into](other)
    with pytest.raises(ValueError, match="(?s)" + MISMATCHES[of, into]):
        other.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.one_backend
def test_weights_of_the_same_adapter_under_another_seed_are_read(tmp_path):
    model, other = make(), make()
    model.add_adapter("a", LoRA(rank=2))
    other.add_adapter("a", LoRA(rank=2, seed=5))
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(facts(model)["weights"][-3], facts(other)["weights"][-3])


@pytest.mark.one_backend
def test_the_older_format_of_keras_is_refused(tmp_path):
    model = make()
    for name in ("model.h5", "model.hdf5"):
        with pytest.raises(ValueError, match=r"\.keras file.*save_to_preset.*Received: filepath="):
            model.save(tmp_path / name)
        assert not (tmp_path / name).exists()


# What goes on afterwards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        "pruned",
        pytest.param("LoRA+", marks=pytest.mark.one_backend),
        pytest.param("AdamW: decay, schedule, accumulation, smoothing", marks=pytest.mark.one_backend),
    ],
)
def test_a_loaded_model_trains_on_as_the_saved_one(state, tmp_path):
    model = make()
    STATES[state](model)
    if not model.compiled:
        compiled()(model)
    model.fit(IDS, batch_size=4, epochs=2, verbose=0)
    again = by_keras(model, state, tmp_path)
    for each in (model, again):
        each.fit(IDS, batch_size=4, epochs=2, verbose=0)
    assert_same(model, again, KEPT)


@pytest.mark.one_backend
def test_a_copy_of_a_pruned_model_keeps_its_zeros():
    model = in_state("pruned")
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    again.fit(IDS, verbose=0)
    query = again.transformer.blocks[0].attention.query
    assert np.mean(keras.ops.convert_to_numpy(query.kernel) == 0) == 0.5


@pytest.mark.one_backend
def test_layers_are_unfrozen_after_loading(tmp_path):
    again = by_keras(in_state("frozen layers"), "", tmp_path)
    again.unfreeze("*.attention.*")
    frozen = [v.path for v in again.weights if not v.trainable]
    assert frozen and all("embedding" in path for path in frozen)


@pytest.mark.one_backend
def test_the_last_adapter_is_deleted_after_loading(tmp_path):
    model = make()
    model.freeze("embedding")
    adapter(LORA)(model)
    again = by_keras(model, "", tmp_path)
    for each in (model, again):
        each.delete_adapter("a")
    assert_same(model, again, KEPT)


# Keras models that are not ours -------------------------------------------------------------------------------


def dense():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="one"), keras.layers.Dense(4, name="two")])


def test_any_keras_model_saves_its_adapters_weights_or_refuses(tmp_path):
    x, model, other = np.ones((2, 4), "float32"), dense(), dense()
    for each in (model, other):
        tuning.add_adapter(each, "a", LoRA(rank=2, targets="*"))
    randomize(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    answer = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(other(x)), answer, atol=1e-6)
    with pytest.raises(ValueError, match=r"adapters of a Sequential.*save_weights, save_adapter.*merge"):
        model.save(tmp_path / "model.keras")
    tuning.merge(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(again(x)), answer, atol=1e-5)
    tuning.unmerge(model)
    tuning.delete_adapter(model, "a")
    model.save(tmp_path / "base.keras")


# Saves that are killed ----------------------------------------------------------------------------------------


def load_adapter(directory):
    model = make()
    model.load_adapter(directory, "a")


# folder: how it is saved and loaded
SAVES = {
    ".preset": (lambda directory: in_state("trained weights").save_to_preset(directory), kerasllm.CausalLM.from_preset),
    ".adapter": (lambda directory: in_state("an adapter").save_adapter(directory, "a"), load_adapter),
}


@pytest.mark.parametrize("moved", [0, 1])
@pytest.mark.parametrize("folder", SAVES)
@pytest.mark.one_backend
def test_a_save_that_is_killed_among_its_renames_is_found(folder, moved, tmp_path, monkeypatch):
    save, load = SAVES[folder]
    save(tmp_path)
    replace, renames = os.replace, iter(range(9))

    def killed(source, target):
        if Path(source).parent.name == folder and next(renames) == moved:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path)
    with pytest.raises(ValueError, match=rf"has not ended.*move the files of its folder '{folder}' up"):
        load(tmp_path)
    for path in (tmp_path / folder).iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / folder).rmdir()
    load(tmp_path)
