import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from some_rows import ending_at, random_rows, rows_of

from kerasllm.objectives import SpanCorruption

pytestmark = pytest.mark.one_backend

END, PAD, SENTINELS = 1, 0, range(999, 699, -1)


def objective(**options):
    return SpanCorruption(SENTINELS, END, PAD, **options)


def restore(encoder_ids, target_ids):
    """The original row of two corrupted texts: each sentinel in the one is replaced by what follows it in the other."""
    encoder_ids, target_ids = (ids[: ids.index(END)] for ids in (list(encoder_ids), list(target_ids)))
    spans = {}
    for token in target_ids:
        if token in SENTINELS:
            assert token not in spans
            span = spans[token] = []
        else:
            span.append(token)
    assert list(spans) == [token for token in encoder_ids if token in SENTINELS] == list(SENTINELS)[: len(spans)]
    assert all(spans.values())
    return [original for token in encoder_ids for original in spans.get(token, [token])]


def test_lengths_are_t5s():
    # What T5's own helper gives for its pre-training: 512 tokens in, 114 out, of 568.
    assert objective().row_length(512) == 568
    assert (objective().encoder_length(568), objective().target_length(568)) == (512, 114)


@given(encoder_length=st.integers(3, 400), rate=st.floats(0.01, 0.5), mean_span=st.floats(2, 12))
def test_the_encoder_is_filled(encoder_length, rate, mean_span):
    corruption = objective(rate=rate, mean_span=mean_span)
    n = corruption.row_length(encoder_length)
    assert corruption.encoder_length(n) == encoder_length < corruption.encoder_length(n + 1) + (n == 2)


@given(encoder_length=st.integers(3, 150), rate=st.floats(0.01, 0.9), mean_span=st.floats(1, 5))
def test_nothing_is_ever_cut(encoder_length, rate, mean_span):
    corruption = objective(rate=rate, mean_span=mean_span)
    n = corruption.row_length(encoder_length)
    assert encoder_length - 1 <= corruption.encoder_length(n) <= encoder_length


@given(
    n=st.integers(2, 60),
    rate=st.floats(0.01, 0.95),
    mean_span=st.floats(1, 10),
    num_rows=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_two_texts_are_the_row(n, rate, mean_span, num_rows, seed):
    corruption = objective(rate=rate, mean_span=mean_span)
    rows = random_rows(num_rows, n, seed=seed)
    x, y, weights = corruption(rows)
    assert set(x) == {"encoder_token_ids", "decoder_token_ids"}
    assert x["encoder_token_ids"].shape == (num_rows, corruption.encoder_length(n))
    assert y.shape == weights.shape == x["decoder_token_ids"].shape == (num_rows, corruption.target_length(n))
    assert (weights == 1).all()
    assert x["encoder_token_ids"].dtype == x["decoder_token_ids"].dtype == y.dtype == np.int32
    assert np.array_equal(x["decoder_token_ids"][:, 1:], y[:, :-1]) and (x["decoder_token_ids"][:, 0] == 0).all()
    for row, encoder_ids, targets in zip(rows.tokens, x["encoder_token_ids"], y):
        assert encoder_ids[-1] == targets[-1] == END
        assert restore(encoder_ids, targets) == row[:n].tolist()


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_padding_counts_nothing(lengths, seed):
    rows = random_rows(len(lengths), 30, seed=seed, weights=ending_at(lengths, 30))
    x, y, weights = objective(rate=0.3)(rows)
    assert np.array_equal(weights, x["decoder_padding_mask"])
    assert not y[weights == 0].any() and not x["encoder_token_ids"][~x["encoder_padding_mask"]].any()
    for i, length in enumerate(lengths):
        real = x["encoder_padding_mask"][i]
        assert (np.diff(real.astype(int)) <= 0).all() and (np.diff(weights[i]) <= 0).all()
        if length:
            assert restore(x["encoder_token_ids"][i], y[i]) == rows.tokens[i, :length].tolist()
        else:
            assert not real.any() and not weights[i].any()


def test_every_partition_is_equally_likely():
    # 10 tokens, of which 4 are noise in 2 spans: 5 ways to part the text, 3 to part the noise.
    rows = rows_of(np.tile(np.arange(10, 21), (6000, 1)))
    x, _, _ = objective(rate=0.4, mean_span=2)(rows)
    kinds, counts = np.unique(x["encoder_token_ids"], axis=0, return_counts=True)
    assert len(kinds) == 15
    assert ((counts - 400) ** 2 / 400).sum() < 14 + 5 * np.sqrt(2 * 14)


def test_another_corruption_each_pass():
    tokens = random_rows(4, 40).tokens
    first, again, other = (objective()(rows_of(tokens, *key))[1] for key in [(0, 0), (0, 0), (0, 1)])
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_clear_errors():
    for options, message in [
        ({"rate": 0}, r"`rate` must be in \(0, 1\).*Received: rate=0"),
        ({"rate": 1}, "rate=1"),
        ({"mean_span": 0.5}, "at least 1 token. Received: mean_span=0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            objective(**options)
    for sentinels in [(5, 5), (5, END)]:
        with pytest.raises(ValueError, match="must differ"):
            SpanCorruption(sentinels, END, PAD)
    few = SpanCorruption([9, 8], END, PAD)
    with pytest.raises(ValueError, match=r"141 tokens has 7 noise spans.*Received: 2 sentinel_ids"):
        few.row_length(128)
    with pytest.raises(ValueError, match=r"60 tokens has 3 noise spans.*Received: 2 sentinel_ids"):
        few(random_rows(2, 60))
    with pytest.raises(ValueError, match="Received: encoder_length=2"):
        few.row_length(2)
    with pytest.raises(ValueError, match=r"at least 2 tokens. Received: 1"):
        few(random_rows(2, 1))
    with pytest.raises(ValueError, match='packing="stream"'):
        few(random_rows(2, 6, document_ids=np.ones((2, 6), np.int32)))
