import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from some_rows import ending_at, random_rows, rows_of

from kerasllm.objectives import FillInTheMiddle, causal

pytestmark = pytest.mark.one_backend

PREFIX, MIDDLE, SUFFIX, END = 1, 2, 3, 4


def whole(x, y):
    return np.concatenate([x["token_ids"], y[:, -1:]], axis=1)


@given(
    n=st.integers(4, 30),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    spm_rate=st.sampled_from([0.0, 0.5, 1.0]),
    end=st.sampled_from([None, END]),
    seed=st.integers(0, 99),
)
def test_unfill_inverts(n, rate, spm_rate, end, seed):
    objective = FillInTheMiddle(PREFIX, MIDDLE, SUFFIX, rate, spm_rate, end)
    rows = random_rows(6, n, seed=seed)
    x, y = objective(rows)
    assert np.array_equal(x["token_ids"][:, 1:], y[:, :-1]) and x["token_ids"].dtype == y.dtype == np.int32
    for original, row in zip(rows.tokens, whole(x, y), strict=True):
        assert len(row) == n + 1
        if row[0] != PREFIX:
            assert rate < 1 and np.array_equal(row, original)
            continue
        assert rate > 0
        kept = n - 2 - (end is not None)
        assert objective.unfill(row).tolist() == original[:kept].tolist()
        assert sorted(row[row < 5]) == sorted([PREFIX, MIDDLE, SUFFIX] + ([] if end is None else [end]))
        assert end is None or row[-1] == end
        if spm_rate == 1.0:
            assert row[1] == SUFFIX


def test_the_two_forms():
    rows = rows_of(np.tile(np.arange(10, 20), (300, 1)))
    psm, spm = (whole(*FillInTheMiddle(PREFIX, MIDDLE, SUFFIX, 1, spm_rate)(rows)) for spm_rate in (0, 1))
    forms = set()
    for a, b in zip(psm, spm):
        suffix, middle = a.tolist().index(SUFFIX), a.tolist().index(MIDDLE)
        prefix, after, between = a[1:suffix], a[suffix + 1 : middle], a[middle + 1 :]
        assert np.array_equal(np.concatenate([prefix, between, after]), np.arange(10, 17))
        assert b.tolist() == [PREFIX, SUFFIX, *after, MIDDLE, *prefix, *between]
        forms.add((len(prefix), len(between)))
    assert len(forms) == 36  # all ways to cut 7 tokens at two of 8 places


def test_rates():
    rows = random_rows(4000, 20)
    tokens = whole(*FillInTheMiddle(PREFIX, MIDDLE, SUFFIX, rate=0.3, spm_rate=0.25)(rows))
    transformed = tokens[:, 0] == PREFIX
    assert abs(transformed.sum() - 1200) < 5 * np.sqrt(4000 * 0.3 * 0.7)
    # PSM with an empty prefix looks the same: the smaller of two places of 19 is the first in 37 of 361.
    spm = 0.25 + 0.75 * 37 / 361
    num = transformed.sum()
    assert abs((tokens[transformed, 1] == SUFFIX).sum() - num * spm) < 5 * np.sqrt(num * spm * (1 - spm))


def test_rows_with_padding_stay():
    weights = ending_at([12, 11, 0], 12)
    rows = random_rows(3, 12, weights=weights)
    x, y, counted = FillInTheMiddle(PREFIX, MIDDLE, SUFFIX, rate=1)(rows)
    expected_x, expected_y, _ = causal(rows)
    assert (whole(x, y)[:, 0] == PREFIX).tolist() == [True, False, False]
    assert np.array_equal(x["token_ids"][1:], expected_x["token_ids"][1:]) and np.array_equal(y[1:], expected_y[1:])
    assert np.array_equal(counted, weights)


def test_another_cut_each_pass_and_the_rows_are_not_touched():
    rows = random_rows(8, 40)
    before = rows.tokens.copy()
    objective = FillInTheMiddle(PREFIX, MIDDLE, SUFFIX, rate=1)
    first, again, other = (objective(rows_of(rows.tokens, *key))[1] for key in [(0, 0), (0, 0), (0, 1)])
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(before, rows.tokens)


def test_clear_errors():
    for options, message in [
        ({"rate": 1.5}, r"`rate` must be in \[0, 1\]. Received: rate=1.5"),
        ({"spm_rate": -1}, "spm_rate=-1"),
        ({"suffix_id": MIDDLE}, "must differ. Received: prefix_id=1, middle_id=2, suffix_id=2"),
    ]:
        with pytest.raises(ValueError, match=message):
            FillInTheMiddle(**{"prefix_id": PREFIX, "middle_id": MIDDLE, "suffix_id": SUFFIX, **options})
    objective = FillInTheMiddle(PREFIX, MIDDLE, SUFFIX)
    with pytest.raises(ValueError, match=r"more than 3 tokens.*Received: 3"):
        objective(random_rows(2, 2))
    with pytest.raises(ValueError, match='packing="stream"'):
        objective(random_rows(2, 6, document_ids=np.ones((2, 6), np.int32)))
