import numpy as np
import pytest
from some_rows import ending_at, random_rows, rows_of

from kerasllm.objectives import GeneratedTokens, MaskedLM, ReplacedTokens, corrupt, replaced

pytestmark = pytest.mark.one_backend


def test_targets_are_where_tokens_differ():
    tokens, sampled = np.array([[5, 6, 7, 8]]), np.array([[9, 6, 9, 9]])
    corrupted = corrupt(tokens, np.array([[True, True, False, False]]), sampled)
    assert corrupted.tolist() == [[9, 6, 7, 8]] and corrupted.dtype == np.int32
    targets = replaced(tokens, corrupted)  # a sample that is the original counts as original
    assert targets.tolist() == [[1, 0, 0, 0]] and targets.dtype == np.int32


def test_replacements_follow_the_frequencies():
    frequencies = np.zeros(100)
    frequencies[[3, 20, 21, 99]] = [50, 1, 3, 6]  # 3 is special and never drawn
    rows = random_rows(3000, 40, low=5)
    tokens = rows.tokens[:, :-1]
    x, y, weights = ReplacedTokens(frequencies, rate=0.2, special_token_ids=range(10))(rows)
    assert np.array_equal(y, x["token_ids"] != tokens)
    assert (weights == 1).all() and weights.dtype == np.float32
    assert (tokens[y == 1] >= 10).all()
    drawn = x["token_ids"][(y == 1) & ~np.isin(tokens, [20, 21, 99])]
    counts = np.array([(drawn == token).sum() for token in (20, 21, 99)])
    assert counts.sum() == len(drawn)
    expected = np.array([0.1, 0.3, 0.6]) * len(drawn)
    assert ((counts - expected) ** 2 / expected).sum() < 2 + 5 * np.sqrt(2 * 2)
    assert abs(y.sum() / (tokens >= 10).sum() - 0.2) < 0.01


def test_padding_counts_nothing_and_passes_differ():
    rows = random_rows(4, 30, weights=ending_at([30, 10, 1, 0], 30))
    objective = ReplacedTokens(np.ones(100), rate=0.5)
    x, y, weights = objective(rows)
    assert np.array_equal(weights, rows.weights) and np.array_equal(weights > 0, x["padding_mask"])
    assert not y[weights == 0].any() and y[:3].any(axis=1).sum() >= 2
    assert np.array_equal(objective(rows)[1], y)
    assert not np.array_equal(objective(rows_of(rows.tokens, 0, 1))[1], objective(rows_of(rows.tokens))[1])


def test_what_the_generator_has_to_fill_in():
    """As MaskedLM with nothing but masks, the places listed in their order."""
    lengths = [30, 10, 1, 0]
    rows = random_rows(4, 30, weights=ending_at(lengths, 30))
    x, y, weights = GeneratedTokens(4, 100, rate=0.25, special_token_ids=range(5))(rows)
    plain = MaskedLM(4, 100, 0.25, range(5), mask_fraction=1, random_fraction=0)(rows)
    assert np.array_equal(x["token_ids"], plain[0]["token_ids"]) and np.array_equal(y, plain[1])
    assert np.array_equal(weights, rows.weights) and np.array_equal(x["padding_mask"], rows.weights > 0)
    places = x["masked_positions"]
    assert places.shape == x["draws"].shape == (4, 8) and places.dtype == np.int32
    for row in range(4):
        chosen = np.flatnonzero(plain[2][row])
        assert places[row].tolist() == [*chosen, *[30] * (8 - len(chosen))]
    assert (places[2] < 30).sum() == 1 and (places[3] == 30).all()


@pytest.mark.parametrize(("n", "rate"), [(20, 0.15), (7, 0.5), (9, 1.0), (3, 0.01)])
def test_all_masks_have_a_place(n, rate):
    rows = random_rows(300, n, low=5)
    x, _, _ = GeneratedTokens(4, 100, rate)(rows)
    assert ((x["token_ids"] == 4).sum(axis=1) == (x["masked_positions"] < n).sum(axis=1)).all()


def test_the_generators_numbers_are_uniform_and_counted():
    rows = random_rows(2000, 20, low=5)
    objective = GeneratedTokens(4, 100)
    x, _, _ = objective(rows)
    counts = np.histogram(x["draws"], 10, (0, 2**24))[0]
    expected = x["draws"].size / 10
    assert ((counts - expected) ** 2 / expected).sum() < 9 + 5 * np.sqrt(2 * 9)
    assert np.array_equal(objective(rows)[0]["draws"], x["draws"])
    assert not np.array_equal(objective(rows_of(rows.tokens, 0, 1))[0]["draws"], x["draws"])
    for options, message in [({"rate": 0}, r"\(0, 1\]"), ({"special_token_ids": range(100)}, "none to mask")]:
        with pytest.raises(ValueError, match=message):
            GeneratedTokens(4, 100, **options)


def test_clear_errors():
    for frequencies, options, message in [
        (np.ones(9), {"rate": 0}, r"`rate` must be in \(0, 1\]"),
        (np.ones((2, 9)), {}, r"one finite number for each token.*shape=\(2, 9\)"),
        ([1, -1], {}, "none negative.*smallest=-1"),
        ([1, np.inf], {}, "one finite number"),
        ([1, 0], {"special_token_ids": [0]}, "none to draw"),
        ([1, 0], {"special_token_ids": [2]}, r"\[0, 2\), the vocabulary. Received: 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            ReplacedTokens(frequencies, **options)
