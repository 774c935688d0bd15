"""Samplers: plain functions on logits, checked against the distributions they stand for."""

import numpy as np
import pytest
from keras import ops

from kerasllm import Sampler
from kerasllm.generation.sampling import greedy, sample

DRAWS = 4000
LOGITS = np.array([2.0, -1.0, 0.5, 1.2, 0.0, -3.0], "float32")


def draw(logits, uniforms=None, temperature=1.0, top_k=0, top_p=1.0):
    if uniforms is None:
        uniforms = [Sampler(seed=7).uniform(n) for n in range(DRAWS)]
    rows = len(uniforms)
    settings = (
        np.full(rows, temperature, "float32"),
        np.full(rows, top_k, "int32"),
        np.full(rows, top_p, "float32"),
        np.array(uniforms, "float32"),
    )
    tensors = (ops.convert_to_tensor(x) for x in (np.broadcast_to(logits, (rows, len(logits))).copy(), *settings))
    return ops.convert_to_numpy(sample(*tensors))


def chi_square(tokens, probabilities) -> tuple[float, int]:
    """(statistic, degrees of freedom) of drawn tokens; a token of probability 0 must not be drawn."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * len(tokens)
    return ((counts[possible] - expected) ** 2 / expected).sum(), possible.sum() - 1


def softmax(x):
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def kept(probabilities, how_many):
    """The likeliest tokens, renormalised."""
    cut = np.where(np.argsort(np.argsort(-probabilities)) < how_many, probabilities, 0.0)
    return cut / cut.sum()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, softmax(LOGITS)),
        ({"temperature": 0.5}, softmax(LOGITS / 0.5)),
        ({"temperature": 3.0}, softmax(LOGITS / 3.0)),
        ({"top_k": 3}, kept(softmax(LOGITS), 3)),
        ({"top_p": 0.75}, kept(softmax(LOGITS), 2)),  # 0.537 + 0.241 reach 0.75
        ({"top_p": 0.8}, kept(softmax(LOGITS), 3)),
        ({"top_k": 4, "top_p": 0.5, "temperature": 2.0}, kept(kept(softmax(LOGITS / 2.0), 4), 2)),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(options, expected):
    statistic, freedom = chi_square(draw(LOGITS, **options), expected)
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_every_number_picks_the_token_of_its_interval():
    probabilities = np.array([0.5, 0.25, 0.25], "float32")
    uniforms = [0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-24]
    assert draw(np.log(probabilities), uniforms)[[0, 1]].tolist() == [0, 0]
    assert sorted(set(draw(np.log(probabilities), uniforms)[2:].tolist())) == [1, 2]


def test_top_k_of_one_and_tiny_top_p_are_greedy_also_among_equals():
    logits = np.random.default_rng(0).normal(size=(50, 20)).round(1).astype("float32")
    logits[::2, 3] = logits[::2, 11] = 9.0  # equal maxima: 16-bit logits have many
    wanted = ops.convert_to_numpy(greedy(ops.convert_to_tensor(logits)))
    np.testing.assert_array_equal(wanted, logits.argmax(-1))
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 0.0}):
        found = [draw(row, [0.9], **options)[0] for row in logits]
        np.testing.assert_array_equal(found, wanted)


def test_rows_have_their_own_settings():
    logits = ops.convert_to_tensor(np.stack([LOGITS] * 3))
    settings = ([0.0, 1.0, 1.0], [0, 1, 0], [1.0, 1.0, 1e-6], [0.99, 0.99, 0.99])
    tensors = (
        ops.convert_to_tensor(np.array(s, t)) for s, t in zip(settings, ("float32", "int32", "float32", "float32"))
    )
    assert ops.convert_to_numpy(sample(logits, *tensors)).tolist() == [0, 0, 0]


@pytest.mark.one_backend
def test_randomness_is_counted():
    numbers = [Sampler(seed=3).uniform(n) for n in range(2000)]
    assert numbers == [Sampler(seed=3, temperature=0.5).uniform(n) for n in range(2000)]
    assert numbers != [Sampler(seed=4).uniform(n) for n in range(2000)]
    assert len(set(numbers)) > 1990 and min(numbers) >= 0 and max(numbers) < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 19 + 4 * np.sqrt(38)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": 1e9},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": None},
    ],
    ids=str,
)
def test_bad_settings_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Sampler(**options)


@pytest.mark.one_backend
def test_arguments_name_a_sampler():
    assert Sampler.from_arguments("greedy").temperature == 0
    assert Sampler.from_arguments("temperature", temperature=0.7) == Sampler(0.7)
    assert Sampler.from_arguments("top_k", seed=2) == Sampler(1.0, top_k=40, seed=2)
    assert Sampler.from_arguments("top_p", top_p=0.5) == Sampler(1.0, top_p=0.5)
    mine = Sampler(0.3, 5, 0.9, 1)
    assert Sampler.from_arguments(mine) is mine
    with pytest.raises(ValueError, match="beam"):
        Sampler.from_arguments("beam")
    with pytest.raises(ValueError, match="top_k=0"):
        Sampler.from_arguments("top_k", top_k=0)
    with pytest.raises(ValueError, match=r"'top_p'.*greedy"):
        Sampler.from_arguments("greedy", top_p=0.9)
