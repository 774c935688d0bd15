import numpy as np
import pytest

from kerasllm.objectives import OBJECTIVES, FillInTheMiddle, MaskedLM, build, causal, word_starts
from kerasllm.tokenizers import Tokenizer

pytestmark = pytest.mark.one_backend

TEXT = "the cat sat on the mat and looked at the dog " * 4
FILL = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
SENTINELS = [f"<extra_id_{i}>" for i in range(6)]
BERT = Tokenizer.train(TEXT, kind="wordpiece", vocabulary_size=60)
T5 = Tokenizer.train(TEXT, kind="byte", special_tokens=["<pad>", "</s>", *SENTINELS])
CODE = Tokenizer.train(TEXT, kind="byte", special_tokens=["<|endoftext|>", *FILL])
BARE = Tokenizer.train(TEXT, kind="char")


def test_masked_takes_the_tokenizers_tokens():
    objective = build("masked", BERT)
    assert objective.mask_token_id == BERT.mask_token_id and objective.vocabulary_size == BERT.vocabulary_size
    assert set(objective.special_token_ids) == {BERT.token_to_id(token) for token in BERT.special_tokens}
    assert objective.word_starts is None
    assert np.array_equal(build("whole_word", BERT).word_starts, word_starts(BERT))


def test_span_takes_sentinels_in_their_order():
    objective = build("span", T5)
    assert objective.sentinel_ids == tuple(T5.token_to_id(token) for token in SENTINELS)
    assert (objective.end_token_id, objective.pad_token_id) == (T5.end_token_id, T5.pad_token_id)
    assert objective.start_token_id == T5.pad_token_id


def test_fim_tells_its_tokens_apart():
    prefix, suffix, middle = (CODE.token_to_id(token) for token in FILL)
    assert build("fim", CODE) == FillInTheMiddle(prefix, middle, suffix, end_token_id=CODE.end_token_id)


def test_others():
    assert build("causal", BARE) is causal
    assert build("next_sentence", BERT).class_id == BERT.token_to_id("[CLS]")
    assert build("next_sentence", BERT).separator_id == BERT.token_to_id("[SEP]")
    assert build("next_sentence", BERT).masked.mask_token_id == BERT.mask_token_id  # BERT trains on both
    assert build("generated", BERT).mask_token_id == BERT.mask_token_id
    assert set(build("generated", BERT).special_token_ids) == set(build("masked", BERT).special_token_ids)
    assert len(build("replaced", BARE).frequencies) == BARE.vocabulary_size
    mine = MaskedLM(0, 9)
    assert build(mine, BARE) is mine


def test_clear_errors():
    with pytest.raises(ValueError, match=f"one of {', '.join(OBJECTIVES)}.*Received: objective='mask'"):
        build("mask", BERT)
    for name, tokenizer, message in [
        ("masked", BARE, r'needs a mask token, .*special_tokens=\[\.\.\., "\[MASK\]"\].*Received: <Tokenizer kind='),
        ("whole_word", T5, r"\[MASK\]"),
        ("generated", T5, r"\[MASK\]"),
        ("span", CODE, 'needs sentinels.*"<extra_id_0>", "<extra_id_1>"'),
        ("span", Tokenizer.train("a", kind="byte", special_tokens=SENTINELS), "needs an end token.*</s>"),
        ("fim", T5, r"needs the three tokens of fill-in-the-middle.*<\|fim_prefix\|>"),
        ("next_sentence", T5, r"begins a text.*\[CLS\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(name, tokenizer)
