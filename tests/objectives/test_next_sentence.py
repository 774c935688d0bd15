import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from some_rows import ending_at, random_rows, rows_of

from kerasllm.objectives import MaskedLM, NextSentence

pytestmark = pytest.mark.one_backend

CLASS, SEPARATOR, MASK = 2, 3, 4


def parts_of(x, row):
    """The two texts of a pair, its three added tokens checked."""
    ids, segments = (x[key][row][x["padding_mask"][row]] for key in ("token_ids", "segment_ids"))
    assert (ids[0], ids[-1]) == (CLASS, SEPARATOR)
    start = int(np.argmax(segments == 1))
    assert ids[start - 1] == SEPARATOR
    assert segments.tolist() == [0] * start + [1] * (len(ids) - start)
    return ids[1 : start - 1].tolist(), ids[start:-1].tolist()


def numbered_rows(num_rows, n, seed=0, **fields):
    """All tokens differ: token j of row i is 10 + i (n + 1) + j."""
    return rows_of(10 + np.arange(num_rows * (n + 1)).reshape(num_rows, n + 1), seed, **fields)


@given(num_rows=st.integers(2, 6), n=st.integers(2, 20), rate=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 99))
def test_pairs_of_a_stream(num_rows, n, rate, seed):
    rows = numbered_rows(num_rows, n, seed)
    x, y, weights = NextSentence(CLASS, SEPARATOR, rate=rate)(rows)
    assert x["token_ids"].shape == x["segment_ids"].shape == x["padding_mask"].shape == (num_rows, n + 3)
    assert x["padding_mask"].all()  # so lengths tell nothing
    assert weights["next_sentence"].tolist() == [1] * num_rows
    for row, tokens in enumerate(rows.tokens[:, :-1].tolist()):
        first, second = parts_of(x, row)
        cut = len(first)
        assert first == tokens[:cut] and max(1, n // 4) <= cut <= n - max(1, n // 4)
        if y["next_sentence"][row]:
            assert rate > 0 and not set(second) & set(tokens)
            other = (second[0] - 10) // (n + 1)
            assert second == rows.tokens[other, cut:-1].tolist()
        else:
            assert rate < 1 and second == tokens[cut:]


def test_half_of_the_pairs_go_on_and_negatives_come_from_everywhere():
    counts, sources = 0, np.zeros((4, 4))
    for seed in range(1000):
        rows = numbered_rows(4, 8, seed)
        x, y, _ = NextSentence(CLASS, SEPARATOR)(rows)
        counts += y["next_sentence"].sum()
        for row in np.flatnonzero(y["next_sentence"]):
            sources[row, (parts_of(x, row)[1][0] - 10) // 9] += 1
    assert abs(counts - 2000) < 5 * np.sqrt(4000 / 4)
    assert (np.diag(sources) == 0).all()
    others = sources[~np.eye(4, dtype=bool)]
    assert ((others - counts / 12) ** 2 / (counts / 12)).sum() < 11 + 5 * np.sqrt(2 * 11)


def test_a_repeated_text_is_not_called_another():
    rows = rows_of(np.tile(np.arange(10, 19), (4, 1)))
    _, y, _ = NextSentence(CLASS, SEPARATOR, rate=1.0)(rows)
    assert y["next_sentence"].tolist() == [0] * 4


def test_packed_documents_use_the_first_of_a_row():
    documents = np.array([[1] * 6 + [2] * 3 + [0], [1] * 8 + [0] * 2, [1] + [2] * 9, [0] * 10], np.int32)
    lengths = [6, 8, 1, 0]
    other_seen = set()
    for seed in range(30):
        rows = numbered_rows(4, 10, seed, document_ids=documents, positions=documents, weights=np.ones((4, 10)))
        x, y, weights = NextSentence(CLASS, SEPARATOR)(rows)
        assert weights["next_sentence"].tolist() == [1, 1, 0, 0]
        assert y["next_sentence"][2:].tolist() == [0, 0] and not x["padding_mask"][2:].any()
        for row in range(2):
            first, second = parts_of(x, row)
            own, other = (rows.tokens[i, : lengths[i]].tolist() for i in (row, 1 - row))
            assert len(first) + len(second) == lengths[row]
            assert first == own[: len(first)]
            assert second == (other[len(other) - len(second) :] if y["next_sentence"][row] else own[len(first) :])
            other_seen.add((row, int(y["next_sentence"][row])))
    assert len(other_seen) == 4


def test_padding_of_a_stream():
    rows = numbered_rows(3, 12, weights=ending_at([12, 5, 0], 12))
    x, _, weights = NextSentence(CLASS, SEPARATOR)(rows)
    assert weights["next_sentence"].tolist() == [1, 1, 0]
    assert x["padding_mask"].sum(axis=1).tolist() == [15, 8, 0]
    assert not x["token_ids"][~x["padding_mask"]].any()


def test_masks_on_top():
    rows = random_rows(50, 20, weights=ending_at([20] * 48 + [9, 0], 20))
    masked = MaskedLM(MASK, 100, rate=0.3)
    plain, _, _ = NextSentence(CLASS, SEPARATOR)(rows)
    x, y, weights = NextSentence(CLASS, SEPARATOR, masked=masked)(rows)
    assert np.array_equal(y["masked_lm"], plain["token_ids"])
    chosen = weights["masked_lm"] == 1
    assert np.array_equal(x["token_ids"][~chosen], plain["token_ids"][~chosen])
    assert not (chosen & np.isin(plain["token_ids"], [CLASS, SEPARATOR])).any()  # all else is 10 or more
    assert chosen[:49].any(axis=1).all() and not chosen[~x["padding_mask"]].any()


def test_masks_tell_nothing_of_the_label():
    _, y, weights = NextSentence(CLASS, SEPARATOR, masked=MaskedLM(MASK, 100, rate=0.5))(random_rows(4000, 8))
    chosen = weights["masked_lm"]
    for place in np.flatnonzero(chosen.std(axis=0)):
        assert abs(np.corrcoef(chosen[:, place], y["next_sentence"])[0, 1]) < 5 / np.sqrt(4000)


def test_another_choice_each_pass():
    tokens = random_rows(16, 40).tokens
    objective = NextSentence(CLASS, SEPARATOR)
    first, again, other = (objective(rows_of(tokens, *key))[0]["token_ids"] for key in [(0, 0), (0, 0), (0, 1)])
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_row_length_and_clear_errors():
    objective = NextSentence(CLASS, SEPARATOR)
    assert objective.row_length(128) == 125
    with pytest.raises(ValueError, match="Received: length=4"):
        objective.row_length(4)
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\].*Received: rate=2"):
        NextSentence(CLASS, SEPARATOR, rate=2)
    with pytest.raises(ValueError, match=r"at least 2 on each rank. Received: 1"):
        objective(random_rows(1, 8))
