import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from some_rows import ending_at, random_rows, rows_of

from kerasllm.objectives import prefix_lm

pytestmark = pytest.mark.one_backend


@given(n=st.integers(1, 20), seed=st.integers(0, 99))
def test_only_what_follows_the_prefix_counts(n, seed):
    rows = random_rows(6, n, seed=seed)
    x, y, weights = prefix_lm(rows)
    assert np.array_equal(x["token_ids"], rows.tokens[:, :-1]) and np.array_equal(y, rows.tokens[:, 1:])
    assert x["prefix_lengths"].dtype == np.int32 and weights.dtype == np.float32
    for length, counted in zip(x["prefix_lengths"], weights):
        assert 1 <= length <= n
        # The position i predicts token i + 1, which must not be one of the `length` that all of them see.
        assert counted.tolist() == [float(i + 1 >= length) for i in range(n)]


def test_every_length_is_equally_likely():
    lengths = prefix_lm(random_rows(8000, 8))[0]["prefix_lengths"]
    counts = np.bincount(lengths, minlength=9)[1:]
    assert ((counts - 1000) ** 2 / 1000).sum() < 7 + 5 * np.sqrt(2 * 7)


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_padding_neither_counts_nor_is_read(lengths, seed):
    x, _, weights = prefix_lm(random_rows(len(lengths), 12, seed=seed, weights=ending_at(lengths, 12)))
    for length, prefix, counted in zip(lengths, x["prefix_lengths"], weights):
        assert 1 <= prefix <= max(length, 1)
        assert counted.tolist() == [float(prefix <= i + 1 <= length) for i in range(12)]


def test_documents_keep_their_ends():
    documents = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    weights = np.array([[1, 1, 0, 1, 0, 0]], np.float32)
    seen = set()
    for seed in range(40):
        x, _, counted = prefix_lm(
            rows_of([range(7)], seed, document_ids=documents, positions=documents, weights=weights)
        )
        length = int(x["prefix_lengths"][0])
        assert set(x) == {"token_ids", "document_ids", "positions", "prefix_lengths"}
        assert counted[0].any() and counted[0].tolist() == [w * (i + 1 >= length) for i, w in enumerate(weights[0])]
        seen.add(length)
    assert seen == {1, 2, 3, 4}


def test_another_prefix_each_pass():
    tokens = random_rows(8, 40).tokens
    first, again, other = (prefix_lm(rows_of(tokens, *key))[2] for key in [(0, 0), (0, 0), (0, 1)])
    assert np.array_equal(first, again) and not np.array_equal(first, other)
