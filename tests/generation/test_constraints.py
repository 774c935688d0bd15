"""Constraints: numpy on the host, against transformers' processors."""

import numpy as np
import pytest

from kerasllm.generation.constraints import (
    FOREVER,
    BadWords,
    LogitBias,
    MinNewTokens,
    NoRepeatNGram,
    bias_of,
    constraints_of,
    holds_for,
)
from kerasllm.generation.sampling import NEVER

pytestmark = pytest.mark.one_backend

VOCABULARY = 7
BAD_WORDS = [[3], [1, 2], [1, 4], [2, 2, 5], [0, 1, 2, 6]]
STOPS = [5, 6]


def ours(constraints, prompt, tokens):
    """The bias, with −∞ where a token is forbidden."""
    bias = bias_of(constraints, prompt, tokens, VOCABULARY)
    return np.where(bias <= NEVER / 2, -np.inf, bias)


def theirs(processor, prompt, tokens):
    import torch

    return processor(torch.tensor([[*prompt, *tokens]]), torch.zeros(1, VOCABULARY))[0].numpy()


def histories():
    numbers = np.random.default_rng(0)
    for _ in range(60):
        ids = numbers.integers(VOCABULARY, size=numbers.integers(1, 30)).tolist()
        split = int(numbers.integers(1, len(ids) + 1))
        yield ids[:split], ids[split:]


def test_constraints_forbid_what_transformers_does():
    import torch
    from transformers import generation

    pairs = [
        ([BadWords(BAD_WORDS)], generation.NoBadWordsLogitsProcessor(BAD_WORDS, eos_token_id=[])),
        ([BadWords([[4]])], generation.NoBadWordsLogitsProcessor([[4]], eos_token_id=[])),
        (
            [LogitBias({1: 2.5, 4: -3.0, 6: -np.inf})],
            generation.SequenceBiasLogitsProcessor({(1,): 2.5, (4,): -3.0, (6,): float("-inf")}),
        ),
    ]
    pairs += [([NoRepeatNGram(size)], generation.NoRepeatNGramLogitsProcessor(size)) for size in (1, 2, 3, 5)]
    for prompt, tokens in histories():
        least = generation.MinNewTokensLengthLogitsProcessor(len(prompt), 4, torch.tensor(STOPS))
        for constraints, processor in [*pairs, ([MinNewTokens(4, STOPS)], least)]:
            found, wanted = ours(constraints, prompt, tokens), theirs(processor, prompt, tokens)
            np.testing.assert_array_equal(found, wanted, err_msg=f"{constraints} {prompt} {tokens}")


def test_constraints_compose_in_any_order():
    all_of_them = constraints_of(
        VOCABULARY, STOPS, no_repeat_ngram_size=2, bad_words=[[3]], min_new_tokens=9, logit_bias={0: 1.0, 3: 5.0, 2: -1}
    )
    wanted = [1.0, -np.inf, -1.0, -np.inf, 0.0, -np.inf, -np.inf]
    for constraints in (all_of_them, all_of_them[::-1]):
        np.testing.assert_array_equal(ours(constraints, [2, 1], [4, 2]), wanted)
    assert constraints_of(VOCABULARY, STOPS) == [] and bias_of([], [1], [], VOCABULARY) is None


def test_a_bias_holds_as_long_as_it_says():
    assert holds_for([], 0) == holds_for([LogitBias({1: 1.0}), BadWords([[3], [4]])], 5) == FOREVER
    assert holds_for([NoRepeatNGram(2)], 0) == holds_for([LogitBias({1: 1.0}), BadWords(BAD_WORDS)], 5) == 1
    least = MinNewTokens(4, STOPS)
    assert [holds_for([least, LogitBias({1: 1.0})], n) for n in range(6)] == [4, 3, 2, 1, FOREVER, FOREVER]
    for count in range(6):
        held = least.holds_for(count)
        later = [ours([least], [0], [0] * n) for n in range(count, min(count + held, 9))]
        assert all((bias == later[0]).all() for bias in later)
    assert not any(constraint.finished([1, 2]) for constraint in (least, NoRepeatNGram(1)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1"),
        ({"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size=1.5"),
        ({"min_new_tokens": True}, "min_new_tokens=True"),
        ({"min_new_tokens": 2, "stop_token_ids": [9]}, "vocabulary of 7.*9"),
        ({"bad_words": "word"}, "bad_words.*'word'"),
        ({"bad_words": ["word"]}, "tokenizer.encode"),
        ({"bad_words": [[]]}, "none empty"),
        ({"bad_words": [1, 2]}, "list of lists"),
        ({"bad_words": [[1, "a"]]}, "Received: 'a'"),
        ({"bad_words": [[1, 7]]}, "bad_words.*vocabulary of 7"),
        ({"logit_bias": [1]}, "dict"),
        ({"logit_bias": {"1": 2.0}}, "Received: '1'"),
        ({"logit_bias": {-1: 2.0}}, "Received: -1"),
        ({"logit_bias": {1: float("nan")}}, "nan"),
        ({"logit_bias": {1: float("inf")}}, "inf"),
        ({"logit_bias": {7: 1.0}}, "logit_bias.*vocabulary of 7"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        constraints_of(VOCABULARY, **options)
