"""Schedules, what decays, what Muon takes, and the unit of time under accumulation."""

import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import CausalLM, TransformerConfig
from kerasllm.training.optimizers import adamw, cosine_schedule, muon


def small_model(**changes) -> CausalLM:
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}
    return CausalLM(TransformerConfig(vocabulary_size=20, max_sequence_length=8, **sizes, **changes))


def nano_gpt_rate(step: int, rate: float, total: int, warmup: int, final: float) -> float:
    if step < warmup:
        return rate * (step + 1) / (warmup + 1)
    share = min((step - warmup) / (total - warmup), 1.0)
    return final * rate + 0.5 * (1 + math.cos(math.pi * share)) * (1 - final) * rate


@pytest.mark.parametrize("warmup", [0, 10])
def test_schedule_is_linear_then_cosine(warmup):
    schedule = cosine_schedule(1e-3, total_steps=100, warmup_steps=warmup, final_fraction=0.1)
    for step in (0, 1, 5, 9, 10, 11, 50, 99, 100, 200):
        expected = nano_gpt_rate(step, 1e-3, 100, warmup, 0.1)
        assert float(ops.convert_to_numpy(schedule(step))) == pytest.approx(expected, rel=1e-5)


def test_rate_is_constant_without_total_steps():
    assert cosine_schedule(3e-4) == 3e-4
    assert float(ops.convert_to_numpy(adamw(3e-4).learning_rate)) == pytest.approx(3e-4)


@pytest.mark.parametrize("make", [adamw, muon])
def test_accumulation_stretches_the_schedule_to_batches(make):
    optimizer = make(1e-2, total_steps=4, warmup_steps=1, final_fraction=0.1, accumulation=3, clipnorm=None)
    variable = keras.Variable(np.ones((4, 4), "float32"), name="kernel")
    rates, updates, values = [], [], []
    for _ in range(4 * 3):
        optimizer.apply([ops.ones((4, 4))], [variable])
        rates.append(float(ops.convert_to_numpy(optimizer.learning_rate)))
        updates.append(int(ops.convert_to_numpy(optimizer.iterations)))
        values.append(ops.convert_to_numpy(variable).copy())
    assert updates == [i // 3 for i in range(1, 13)]
    changed = [bool((a != b).any()) for a, b in itertools.pairwise(values)]
    assert changed == [False, True, False] * 3 + [False, True]
    assert rates[-1] == pytest.approx(1e-3)  # at its end after 4 updates, not after 4 batches
    assert rates[2] == pytest.approx(1e-2)  # and at its top after one


def test_accumulation_of_one_is_none():
    assert adamw(accumulation=1).gradient_accumulation_steps is None


@pytest.mark.parametrize("make", [adamw, muon])
def test_biases_norms_and_positions_do_not_decay(make):
    model = small_model()
    optimizer = make(1e-3, weight_decay=0.1, model=model)
    optimizer.build(model.trainable_variables)
    decayed = {v.path for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    expected = {
        v.path
        for v in model.trainable_variables
        if v.name == "kernel" or (v.name == "embeddings" and "tokens" in v.path)
    }
    assert decayed == expected and len(decayed) == 7


def test_rms_norm_does_not_decay():
    model = small_model(norm="rms_norm", positions="rotary", use_bias=False)
    optimizer = adamw(model=model)
    undecayed = [v for v in model.trainable_variables if not optimizer._use_weight_decay(v)]
    assert len(undecayed) == 3 and all(len(v.shape) == 1 for v in undecayed)


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_every_projection_and_nothing_else(tied):
    model = small_model(tie_embeddings=tied, gated=True, num_kv_heads=1)
    optimizer = muon()
    optimizer.build(model.trainable_variables)
    by_muon = {v.path for v in model.trainable_variables if not optimizer._should_use_adamw(v)}
    assert by_muon == {v.path for v in model.trainable_variables if v.name == "kernel"}
    assert len(by_muon) == 7  # query, key, value, output, up, gate, down


@pytest.mark.parametrize("make", [adamw, muon])
def test_optimizers_lower_the_loss(make):
    model = small_model()
    model.compile(optimizer=make(1e-2, total_steps=20, warmup_steps=2, model=model))
    rows = np.tile(np.arange(9, dtype="int32"), (16, 1))
    losses = model.fit(rows, batch_size=4, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"final_fraction": 1.5},
        {"total_steps": 10, "warmup_steps": 10},
        {"warmup_steps": 10},
        {"accumulation": 0.5},
    ],
)
def test_bad_arguments_are_named(arguments):
    name = list(arguments)[-1]
    with pytest.raises(ValueError, match=name):
        adamw(**arguments)
