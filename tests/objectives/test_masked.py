import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from some_rows import ending_at, random_rows, rows_of

from kerasllm.objectives import MaskedLM, word_starts
from kerasllm.tokenizers import Tokenizer

pytestmark = pytest.mark.one_backend

MASK, VOCABULARY, SPECIAL = 4, 100, range(10)


def objective(**options):
    return MaskedLM(MASK, VOCABULARY, **{"special_token_ids": SPECIAL, **options})


def within(count, total, expected):
    """Whether a count of independent draws is within five standard deviations."""
    return abs(count - total * expected) <= 5 * np.sqrt(total * expected * (1 - expected))


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_of_the_chosen_80_percent_are_masked_10_random_10_kept(rate):
    rows = random_rows(2000, 50)
    x, y, weights = objective(rate=rate)(rows)
    chosen, seen = weights == 1, x["token_ids"]
    assert np.array_equal(y, rows.tokens[:, :-1])
    assert np.array_equal(seen[~chosen], y[~chosen])
    # Rounding at random makes the rate exact on average: the count of a row varies by less than one.
    assert abs(chosen.mean() - rate) < 5 * 0.5 / np.sqrt(2000) / 50
    num = chosen.sum()
    masked, kept = chosen & (seen == MASK), chosen & (seen == y)
    assert within(masked.sum(), num, 0.8)
    # One in 90 random tokens is the original.
    assert within(kept.sum(), num, 0.1 + 0.1 / 90)
    drawn = seen[chosen & ~masked & ~kept]
    assert drawn.min() >= 10 and drawn.max() < VOCABULARY
    counts = np.bincount(drawn, minlength=100)[10:]
    expected = counts.sum() / 90
    assert ((counts - expected) ** 2 / expected).sum() < 89 + 5 * np.sqrt(2 * 89)


def test_every_place_is_chosen_equally_often():
    _, _, weights = objective(rate=0.2)(random_rows(5000, 20))
    for count in weights.sum(axis=0):
        assert within(count, 5000, 0.2)


@given(rate=st.floats(0.01, 1), lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_only_ordinary_tokens_are_chosen_and_always_one_of_a_row(rate, lengths, seed):
    rows = random_rows(len(lengths), 12, low=5, high=30, seed=seed, weights=ending_at(lengths, 12))
    x, y, weights = objective(rate=rate)(rows)
    present = np.arange(12) < np.array(lengths)[:, None]
    ordinary = present & (y >= 10)
    assert not weights[~ordinary].any()
    counts, chosen = ordinary.sum(axis=1), weights.sum(axis=1)
    assert ((chosen >= 1) == (counts > 0)).all()
    assert (np.abs(chosen - rate * counts) <= 1).all()
    assert np.array_equal(x["padding_mask"], present)
    assert (x["token_ids"].dtype, y.dtype, weights.dtype) == (np.int32, np.int32, np.float32)


def test_inputs_say_where_padding_is():
    assert set(objective()(random_rows(2, 6))[0]) == {"token_ids"}
    documents = np.array([[1, 1, 1, 2, 0, 0]] * 2, np.int32)
    rows = random_rows(2, 6, document_ids=documents, positions=documents, weights=np.ones((2, 6), np.float32))
    x, _, weights = objective(rate=1.0)(rows)
    assert set(x) == {"token_ids", "document_ids", "positions"}
    # The last token of a document has no next token, but can be masked.
    assert np.array_equal(weights, documents > 0)


def test_whole_words():
    starts = np.arange(VOCABULARY) % 3 != 0  # every third token continues a word
    rows = random_rows(3000, 40, low=5)
    tokens = rows.tokens[:, :-1]
    _, _, weights = objective(word_starts=starts)(rows)
    chosen, ordinary = weights == 1, tokens >= 10
    same_word = ordinary[:, 1:] & ordinary[:, :-1] & ~starts[tokens[:, 1:]]
    assert same_word.sum() > 1000
    assert np.array_equal(chosen[:, 1:][same_word], chosen[:, :-1][same_word])
    assert not chosen[~ordinary].any()
    assert 0.15 < chosen.sum() / ordinary.sum() < 0.18  # rounded up to the end of the last word


def test_words_are_chosen_apart():
    starts = np.arange(VOCABULARY) % 3 != 0
    # A word that began before the row; one of two pieces; a special token; what is left of a word; one of one piece.
    tokens = [12, 13, 12, 9, 12, 13, 13]
    _, _, weights = objective(word_starts=starts, rate=0.4)(rows_of(np.tile(tokens, (300, 1))))
    seen = {tuple(row) for row in weights.astype(int).tolist()}
    assert all(row[1] == row[2] and not row[3] for row in seen)
    assert {row[:2] for row in seen} == {(0, 0), (0, 1), (1, 0), (1, 1)} == {(row[1], row[4]) for row in seen}


def test_another_mask_each_pass():
    tokens = random_rows(8, 40).tokens
    first, again, other, seed = (objective()(rows_of(tokens, *key))[2] for key in [(0, 0), (0, 0), (0, 1), (1, 0)])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(first, seed)
    # A row's mask is its own, whatever batch it is in.
    rows = rows_of(tokens)
    part = objective()(rows._replace(tokens=tokens[3:5], keys=rows.keys[3:5]))
    assert np.array_equal(part[2], first[3:5])


def test_word_starts_of_tokenizers():
    def starting(tokenizer):
        is_start = word_starts(tokenizer)
        assert is_start.shape == (tokenizer.vocabulary_size,)
        return lambda *tokens: [bool(is_start[tokenizer.token_to_id(token)]) for token in tokens]

    text = "to be, or not to be: that is the question" * 3
    wordpiece = starting(Tokenizer.train(text, kind="wordpiece", vocabulary_size=60))
    assert wordpiece("t", "##o", ",", "[MASK]") == [True, False, True, True]
    bpe = starting(Tokenizer.train(text, kind="bpe", vocabulary_size=290))
    assert bpe("Ġ", "Ġt", "o", ",", "Ċ") == [True, True, False, True, True]
    unigram = starting(Tokenizer.train(text, kind="unigram", vocabulary_size=40))
    assert unigram("▁", "o", ",") == [True, False, True]
    char = starting(Tokenizer.train(text, kind="char"))
    assert char(" ", "o", ",") == [True, False, True]


def test_clear_errors():
    for options, message in [
        ({"rate": 0}, r"`rate` must be in \(0, 1\].*Received: rate=0"),
        ({"rate": 1.5}, "rate=1.5"),
        ({"mask_fraction": 0.9, "random_fraction": 0.2}, "at most 1 together.*random_fraction=0.2"),
        ({"mask_fraction": -0.1}, "mask_fraction=-0.1"),
        ({"special_token_ids": [100]}, r"\[0, 100\), the vocabulary. Received: 100"),
        ({"special_token_ids": range(100)}, "All 100 tokens are special"),
        ({"word_starts": np.ones(7, bool)}, r"each of the 100 tokens. Received: shape=\(7,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            objective(**options)
    with pytest.raises(ValueError, match="Received: 100"):
        MaskedLM(mask_token_id=100, vocabulary_size=100)
    with pytest.raises(ValueError, match="rows carry no `keys`"):
        objective()(random_rows(2, 6)._replace(keys=None))
