"""Samplers: plain functions on logits, checked against sorting and against the distributions they stand for."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import Sampler
from kerasllm.generation.sampling import NEVER, SETTINGS, choose, greedy, keep, penalize, settings_of

ROWS, VOCABULARY = 512, 150  # one shape: everything below is compiled once
DRAWS = 4096
LOGITS = np.array([2.0, -1.0, 0.5, 1.2, 0.0, -3.0], "float32")
FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 7.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 149},
    {"top_k": 1000},
    {"top_p": 0.05},
    {"top_p": 0.5},
    {"top_p": 0.99},
    {"min_p": 0.01},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"top_k": 40, "top_p": 0.7},
    {"top_p": 0.9, "typical_p": 0.6, "temperature": 1.4},
    {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.7},
]
OURS = [{"top_a": 0.3}, {"top_a": 1.0, "temperature": 0.5}, {"top_k": 20, "top_a": 0.5, "typical_p": 0.8}]


@functools.cache
def compiled(function):
    """`function` of arrays and a dict of them, as an engine would compile it, and how often it was traced."""
    traces = []

    def traced(*arguments):
        traces.append(1)
        return function(*arguments)

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        run = jax.jit(traced)
    elif backend == "tensorflow":
        import tensorflow as tf

        run = tf.function(traced, jit_compile=True, autograph=False)
    else:
        run = traced

    def call(*arguments):
        arguments = keras.tree.map_structure(ops.convert_to_tensor, list(arguments))
        return keras.tree.map_structure(ops.convert_to_numpy, run(*arguments))

    return call, traces


def filled(rows, fill=None):
    """Rows repeated until there are `ROWS`, and each filled up to the vocabulary."""
    rows = np.asarray(rows)
    rows = rows[np.arange(ROWS) % len(rows)]
    if fill is not None:
        rows = np.pad(rows, ((0, 0), (0, VOCABULARY - rows.shape[1])), constant_values=fill)
    return rows


def settings(samplers):
    return settings_of([samplers[row % len(samplers)] for row in range(ROWS)], ROWS)


def run(logits, samplers, uniforms=(0.5,), mu=(10.0,), counts=((0,),), seen=((False,),), bias=((0.0,),)):
    """(tokens, mu) of `choose`, for as many rows as there are logits."""
    many = len(logits)
    arrays = filled(logits, NEVER).astype("float32"), settings(samplers)
    arrays += filled(uniforms).astype("float32"), filled(mu).astype("float32")
    arrays += filled(counts, 0).astype("int32"), filled(seen, False), filled(bias, 0.0).astype("float32")
    tokens, mu = compiled(choose)[0](*arrays)
    assert tokens.dtype == "int32" and mu.dtype == "float32"
    return tokens[:many], mu[:many]


def draw(logits, uniforms=None, mu=10.0, **options):
    """Tokens drawn from one row of logits."""
    if uniforms is None:
        uniforms = Sampler(seed=7).uniforms(0, DRAWS)
    parts = [uniforms[i : i + ROWS] for i in range(0, len(uniforms), ROWS)]
    found = [run(np.tile(logits, (len(part), 1)), [Sampler(**options)], part, [mu])[0] for part in parts]
    return np.concatenate(found)


def softmax(x):
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def kept(logits, sampler):
    """Mask of what the filters leave of one row, by sorting, each on the renormalised rest."""
    logits = logits.astype("float64") / sampler.temperature
    alive = np.ones(len(logits), bool)

    def heaviest(score, weight, target):
        ranks = np.argsort(np.where(alive, -score, np.inf))[: alive.sum()]
        last = min(np.searchsorted(np.cumsum(weight[ranks]), target), len(ranks) - 1)
        return score >= score[ranks[last]]

    def rest():
        return softmax(np.where(alive, logits, -np.inf))

    if sampler.top_k:
        alive &= heaviest(logits, np.ones_like(logits), sampler.top_k)
    if sampler.top_p < 1:
        alive &= heaviest(logits, rest(), sampler.top_p)
    alive &= rest() >= sampler.min_p * rest().max()
    alive &= rest() >= sampler.top_a * rest().max() ** 2
    if sampler.typical_p < 1:
        probabilities = rest()
        surprise = -np.log(np.maximum(probabilities, 1e-300))
        alive &= heaviest(-abs(surprise - (probabilities * surprise).sum()), probabilities, sampler.typical_p)
    return alive


def some_logits(rows, seed=0):
    numbers = np.random.default_rng(seed)
    return (numbers.normal(size=(rows, VOCABULARY)) * numbers.uniform(0.2, 4, size=(rows, 1))).astype("float32")


def test_filters_keep_what_sorting_keeps():
    samplers = [Sampler(**options) for options in FILTERS + OURS]
    logits = some_logits(ROWS)
    found = compiled(keep)[0](logits, settings(samplers))
    for row in range(ROWS):
        sampler = samplers[row % len(samplers)]
        mask = kept(logits[row], sampler)
        np.testing.assert_array_equal(found[row] > NEVER / 2, mask, err_msg=f"row {row}: {sampler}")
        scaled = (logits[row] - logits[row].max()) / np.float32(sampler.temperature)
        np.testing.assert_allclose(found[row][mask], scaled[mask], rtol=1e-6)


@pytest.mark.one_backend
def test_sorting_keeps_what_transformers_does():
    import torch
    from transformers import generation

    warpers = {
        "temperature": generation.TemperatureLogitsWarper,
        "top_k": generation.TopKLogitsWarper,
        "top_p": generation.TopPLogitsWarper,
        "min_p": generation.MinPLogitsWarper,
        "typical_p": generation.TypicalLogitsWarper,
    }
    for row, logits in enumerate(some_logits(4 * len(FILTERS), seed=1)):
        options = FILTERS[row % len(FILTERS)]
        scores = torch.tensor(logits)[None]
        for name, warper in warpers.items():  # in the order of transformers
            scores = warper(options[name])(None, scores) if name in options else scores
        np.testing.assert_array_equal(kept(logits, Sampler(**options)), torch.isfinite(scores[0]), err_msg=str(options))


def test_what_is_off_is_exactly_neutral():
    logits = some_logits(ROWS)
    on = Sampler(0.5, top_k=3, top_p=0.5, min_p=0.1, top_a=0.1, typical_p=0.5)
    found = compiled(keep)[0](logits, settings([Sampler(), on]))
    np.testing.assert_array_equal(found[::2], (logits - logits.max(-1, keepdims=True))[::2])
    ones = np.ones_like(logits)
    tensors = [ops.convert_to_tensor(x) for x in (logits, ones.astype("int32"), ones.astype(bool))]
    values = settings([Sampler(), Sampler(repetition_penalty=1.3, frequency_penalty=0.5)])
    values = {name: ops.convert_to_tensor(value) for name, value in values.items()}
    penalized = ops.convert_to_numpy(penalize(tensors[0], values, *tensors[1:]))
    np.testing.assert_array_equal(penalized[::2], logits[::2])
    assert (penalized[1::2] < logits[1::2]).all()


def test_penalties():
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    numbers = np.random.default_rng(3)
    logits = some_logits(ROWS, seed=3)
    prompts, answers = numbers.integers(VOCABULARY, size=(2, ROWS, 20))
    seen, counts = np.zeros((ROWS, VOCABULARY), bool), np.zeros((ROWS, VOCABULARY), "int32")
    np.put_along_axis(seen, prompts, True, axis=1)
    np.add.at(counts, (np.arange(ROWS)[:, None], answers), 1)
    samplers = [Sampler(repetition_penalty=1.3), Sampler(frequency_penalty=0.4, presence_penalty=-0.7)]
    values = {name: ops.convert_to_tensor(value) for name, value in settings(samplers).items()}
    found = ops.convert_to_numpy(penalize(*(ops.convert_to_tensor(logits), values), counts, seen))
    history = torch.tensor(np.concatenate([prompts, answers], axis=1))
    wanted = RepetitionPenaltyLogitsProcessor(1.3)(history, torch.tensor(logits)).numpy()
    np.testing.assert_allclose(found[::2], wanted[::2], rtol=1e-6)
    wanted = logits - 0.4 * counts + 0.7 * (counts > 0)
    np.testing.assert_allclose(found[1::2], wanted[1::2], rtol=1e-5, atol=1e-5)
    cold = Sampler(temperature=0.0, frequency_penalty=2.0)
    bias = numbers.normal(size=logits.shape).astype("float32")
    tokens, _ = run(logits, [cold], counts=counts, seen=seen, bias=bias)
    np.testing.assert_array_equal(tokens, (logits + bias - 2.0 * counts).argmax(-1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_p": 0.75},
        {"min_p": 0.2},
        {"top_a": 0.5},
        {"typical_p": 0.5},
        {"top_k": 4, "top_p": 0.5, "temperature": 2.0},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(options):
    tokens = draw(LOGITS, **options)
    sampler = Sampler(**options)
    probabilities = softmax(np.where(kept(LOGITS, sampler), LOGITS / sampler.temperature, -np.inf))
    possible = probabilities > 0
    counts = np.bincount(tokens, minlength=len(LOGITS))
    assert len(counts) == len(LOGITS) and counts[~possible].sum() == 0
    expected = probabilities[possible] * DRAWS
    statistic, freedom = ((counts[possible] - expected) ** 2 / expected).sum(), possible.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * max(freedom, 1))


def test_all_backends_draw_the_token_of_the_number():
    samplers = [Sampler(**options) for options in FILTERS + OURS]
    logits, uniforms = some_logits(ROWS, seed=5), Sampler(seed=5).uniforms(0, ROWS)
    tokens, mu = run(logits, samplers, uniforms)
    for row in range(ROWS):
        sampler = samplers[row % len(samplers)]
        scaled = logits[row].astype("float64") / sampler.temperature
        running = np.cumsum(softmax(np.where(kept(logits[row], sampler), scaled, -np.inf)))
        assert tokens[row] == np.searchsorted(running, uniforms[row], side="right")
    np.testing.assert_array_equal(mu, 10.0)
    # Rows are independent: in another order they are the same, and so with greedy neighbours.
    mixed = [sampler for sampler in samplers for _ in range(2)]
    mixed[1::2] = [Sampler(temperature=0.0)] * len(samplers)
    turned, _ = run(np.repeat(logits[:100], 2, axis=0), mixed, np.repeat(uniforms[:100], 2))
    np.testing.assert_array_equal(turned[::2], tokens[:100])
    np.testing.assert_array_equal(turned[1::2], logits[:100].argmax(-1))


def test_every_number_picks_the_token_of_its_interval():
    logits = np.log(np.array([0.5, 0.25, 0.25], "float32"))
    assert draw(logits, np.array([0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-24])).tolist() == [0, 0, 1, 1, 2, 2]


def test_what_cannot_be_is_never_drawn():
    logits = some_logits(ROWS, seed=6) * 30
    logits[np.random.default_rng(6).random(logits.shape) < 0.7] = -np.inf
    logits[:, -20:], logits[:, :20], logits[:, 60] = NEVER, -np.inf, 0.0
    for number in (0.0, 1 - 2**-24):
        for sampler in (Sampler(), Sampler(top_p=0.999), Sampler(typical_p=0.9), Sampler(mirostat=3.0)):
            tokens, _ = run(logits, [sampler], [number])
            assert (np.take_along_axis(logits, tokens[:, None], axis=1) > NEVER).all()


def test_greedy_takes_the_first_among_equals():
    logits = some_logits(ROWS).round(1)
    logits[::2, 3] = logits[::2, 141] = 19.0  # 16-bit logits have many
    found = ops.convert_to_numpy(greedy(ops.convert_to_tensor(logits)))
    np.testing.assert_array_equal(found, logits.argmax(-1))
    for temperature in (0.0, 1e-9):
        np.testing.assert_array_equal(run(logits, [Sampler(temperature)], [0.9])[0], found)


def test_mirostat_steers_the_surprise():
    logits, target, eta = some_logits(1, seed=5), 3.0, 0.3
    sampler, surprise = Sampler(mirostat=target, mirostat_eta=eta), -np.log2(softmax(logits[0].astype("float64")))
    logits, mu, surprises = filled(logits), np.full(ROWS, 2 * target), []
    for uniforms in Sampler(seed=1).uniforms(0, 16 * ROWS).reshape(16, ROWS):
        tokens, after = run(logits, [sampler], uniforms, mu)
        surprises.append(surprise[tokens])
        assert (surprises[-1] <= np.maximum(mu, surprise.min()) + 1e-4).all()
        np.testing.assert_allclose(after, mu - eta * (surprises[-1] - target), rtol=1e-4, atol=1e-4)
        mu = after
    assert abs(np.mean(surprises[-4:]) - target) < 0.3 < abs(np.mean(surprises[0]) - target)
    assert run(logits, [sampler], mu=[-5.0])[0][0] == logits[0].argmax()


def test_settings_and_numbers_compile_nothing_again():
    run(some_logits(3), [Sampler(mirostat=3.0), Sampler(0.0), None])
    run(some_logits(5), [Sampler(top_k=3, repetition_penalty=1.2)], uniforms=[0.1])
    if keras.backend.backend() != "torch":
        assert len(compiled(choose)[1]) == 1


@pytest.mark.one_backend
def test_settings_of_a_batch():
    values = settings_of([Sampler(0.7, 5), None], rows=3)
    assert {name: value.dtype.name for name, value in values.items()} == SETTINGS
    assert values["temperature"].tolist() == [np.float32(0.7), 0, 0] and values["top_k"].tolist() == [5, 0, 0]
    assert values["top_p"].tolist() == values["repetition_penalty"].tolist() == [1, 1, 1]


@pytest.mark.one_backend
def test_randomness_is_counted():
    numbers = Sampler(seed=3).uniforms(0, 2000)
    assert numbers.dtype == "float32" and numbers.tolist() == [Sampler(seed=3).uniform(n) for n in range(2000)]
    assert (numbers[5:12] == Sampler(seed=3, temperature=0.5).uniforms(5, 7)).all()
    assert (numbers != Sampler(seed=4).uniforms(0, 2000)).any()
    assert len(set(numbers)) > 1990 and numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 19 + 4 * np.sqrt(38)
    # The numbers of version 0.1: an answer with a seed stays the same.
    raw = [np.random.Philox(key=2**62, counter=n).random_raw() >> 40 for n in (0, 1, 2**33)]
    assert [Sampler(seed=2**62).uniform(n) * 2**24 for n in (0, 1, 2**33)] == raw


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
        {"top_k": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": True},
        {"top_a": 2},
        {"typical_p": 0},
        {"mirostat": -1},
        {"mirostat_eta": 0},
        {"repetition_penalty": 0},
        {"frequency_penalty": float("nan")},
        {"presence_penalty": 1e3},
        {"seed": -1},
        {"seed": None},
    ],
    ids=str,
)
def test_bad_settings_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"`{name}` must be .*{name}="):
        Sampler(**options)


@pytest.mark.one_backend
def test_arguments_name_a_sampler():
    assert Sampler.from_arguments("greedy").temperature == 0
    assert Sampler.from_arguments("temperature", temperature=0.7) == Sampler(0.7)
    assert Sampler.from_arguments("top_k", seed=2) == Sampler(1.0, top_k=40, seed=2)
    assert Sampler.from_arguments("top_p", top_p=0.5) == Sampler(1.0, top_p=0.5)
    assert Sampler.from_arguments("min_p", min_p=None) == Sampler(min_p=0.05)
    assert Sampler.from_arguments("typical", typical_p=0.5, temperature=2) == Sampler(2, typical_p=0.5)
    assert Sampler.from_arguments("top_a") == Sampler(top_a=0.2)
    assert Sampler.from_arguments("mirostat", mirostat_eta=0.2) == Sampler(mirostat=5.0, mirostat_eta=0.2)
    assert Sampler.from_arguments("greedy", presence_penalty=1.0) == Sampler(0.0, presence_penalty=1.0)
    mine = Sampler(0.3, 5, 0.9, 1)
    assert Sampler.from_arguments(mine) is mine
    with pytest.raises(ValueError, match="beam"):
        Sampler.from_arguments("beam")
    assert Sampler.from_arguments("top_k", top_k=0) == Sampler(1.0)  # all of them
    with pytest.raises(ValueError, match="top_k=-1"):
        Sampler.from_arguments("top_k", top_k=-1)
    with pytest.raises(ValueError, match=r"'top_p'.*greedy"):
        Sampler.from_arguments("greedy", top_p=0.9)
    with pytest.raises(ValueError, match=r"min_p.*dataclasses.replace"):
        Sampler.from_arguments(mine, min_p=0.1)
