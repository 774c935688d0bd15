import numpy as np
import pytest
from some_rows import ending_at, random_rows, rows_of

from kerasllm.objectives import ReplacedTokens, corrupt, replaced

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
