import numpy as np
import pytest
from some_rows import rows_of

from kerasllm.data.rows import Rows
from kerasllm.objectives import (
    GeneratedTokens,
    MaskedLM,
    NextSentence,
    ReplacedTokens,
    SpanCorruption,
    causal,
    prefix_lm,
    show,
)
from kerasllm.tokenizers import Tokenizer

pytestmark = pytest.mark.one_backend

TEXT = "the cat sat on the mat"
WORDS = Tokenizer.train(
    [
        f"the {word} sat on the {other}"
        for word in ("cat", "dog", "cow", "mat")
        for other in ("mat", "log", "cat", "rug")
    ],
    kind="unigram",
    vocabulary_size=60,
    special_tokens=["<pad>", "</s>", "<unk>", "<mask>", "<extra_id_0>"],
)
CHARS = Tokenizer.train(TEXT, kind="char")
BERT = Tokenizer.train([TEXT] * 9, kind="wordpiece", vocabulary_size=60)


def text_rows(tokenizer, text=TEXT, **fields):
    ids = tokenizer.encode(text)
    return rows_of([[*ids, ids[0]]], **fields)


def masked_item(tokenizer, place, seen):
    ids = np.array([tokenizer.encode(TEXT)], np.int32)
    corrupted, weights = ids.copy(), np.zeros(ids.shape, np.float32)
    corrupted[0, place], weights[0, place] = seen, 1
    return {"token_ids": corrupted}, ids, weights


def test_masked():
    assert BERT.tokens(TEXT)[1] == "cat"
    item = masked_item(BERT, 1, BERT.mask_token_id)
    objective = MaskedLM(BERT.mask_token_id, BERT.vocabulary_size)
    assert show(objective, item, BERT) == "the [MASK→cat] sat on the mat"
    assert show(objective, masked_item(BERT, 1, BERT.token_to_id("mat")), BERT) == "the [mat→cat] sat on the mat"
    assert show(objective, masked_item(BERT, 1, item[1][0, 1]), BERT) == "the [cat→cat] sat on the mat"
    # The blank before a word stays outside the brackets, and one that is alone is seen.
    char = masked_item(CHARS, 3, CHARS.token_to_id("a"))
    assert show(objective, char, CHARS) == "the[a→ ]cat sat on the mat"
    place = next(i for i, token in enumerate(WORDS.tokens(TEXT)) if token.startswith("▁") and len(token) > 1)
    shown = show(objective, masked_item(WORDS, place, WORDS.mask_token_id), WORDS)
    token = WORDS.tokens(TEXT)[place][1:]
    assert f" [<mask>→{token}]" in shown and shown.replace(f"[<mask>→{token}]", token) == TEXT


def test_padding_is_not_shown():
    x, y, weights = masked_item(BERT, 1, BERT.mask_token_id)
    mask = np.arange(y.shape[1])[None] < 3
    shown = show(None, ({**x, "padding_mask": mask}, y, weights * mask), BERT)
    assert shown == "the [MASK→cat] sat"
    rows = text_rows(CHARS, weights=(np.arange(len(TEXT))[None] < 4).astype(np.float32))
    assert show(causal, rows, CHARS) == "t⟦he c⟧"
    empty = rows._replace(weights=np.zeros((1, len(TEXT)), np.float32))
    assert show(causal, empty, CHARS) == ""


def test_causal_and_prefix():
    rows = Rows(np.array([CHARS.encode(TEXT)], np.int32))
    assert show(causal, rows, CHARS) == "t⟦he cat sat on the mat⟧" == show(causal, causal(rows), CHARS)
    x, y, _ = prefix_lm(rows_of(rows.tokens))
    weights = (np.arange(y.shape[1])[None] >= 6).astype(np.float32)
    assert show(prefix_lm, (x, y, weights), CHARS) == "the cat⟦ sat on the mat⟧"
    documents = {"document_ids": np.array([[1, 1, 1, 2, 2, 0]]), "positions": np.zeros((1, 6), int)}
    rows = text_rows(CHARS, "the ca", weights=np.array([[1, 1, 0, 1, 0, 0]]), **documents)
    assert show(causal, rows, CHARS) == "t⟦he⟧ ⟦c⟧"


def test_seq2seq():
    objective = SpanCorruption([WORDS.token_to_id("<extra_id_0>")], WORDS.end_token_id, WORDS.pad_token_id, rate=0.2)
    rows = text_rows(WORDS)
    encoder, decoder = show(objective, rows, WORDS).split("\n")
    before, after = encoder.removeprefix("encoder: ").removesuffix("</s>").split("<extra_id_0>")
    span = decoder.removeprefix("decoder: <pad>⟦<extra_id_0>").removesuffix("</s>⟧")
    assert (before + span + after).replace(" ", "") == TEXT.replace(" ", "") and span and before
    assert show(objective, objective(rows), WORDS) == f"{encoder}\n{decoder}"


def test_replaced_tokens():
    objective = ReplacedTokens(np.ones(CHARS.vocabulary_size), rate=0.2)
    rows = text_rows(CHARS)
    x, y, _ = objective(rows)
    shown = show(objective, rows, CHARS)
    for place in np.flatnonzero(y[0]):
        seen, original = (CHARS.decode([ids[0, place]]) for ids in (x["token_ids"], rows.tokens))
        assert f"[{seen}→{original}]" in shown
    assert shown.count("→") == y.sum() > 0
    assert show(objective, objective(rows), CHARS).count("→?]") == y.sum()


def test_tokens_for_the_generator():
    objective = GeneratedTokens(BERT.mask_token_id, BERT.vocabulary_size, rate=0.5)
    rows = text_rows(BERT)
    shown = show(objective, rows, BERT)
    assert shown.count("[MASK→") == (objective(rows)[0]["masked_positions"] < 6).sum() > 0
    assert shown.replace("[MASK→", "").replace("]", "") == TEXT


def test_next_sentence():
    tokens = np.array([BERT.encode("the cat sat on the mat"), BERT.encode("mat the on sat cat the")], np.int32)
    rows = rows_of(np.pad(tokens, ((0, 0), (0, 1))))
    first, last = BERT.token_to_id("[CLS]"), BERT.token_to_id("[SEP]")
    text, label = show(NextSentence(first, last, rate=0), rows, BERT, row=1).split("\n")
    assert text.startswith("[CLS] mat") and text.endswith("cat the [SEP]") and label == "next_sentence: 0"
    masked = MaskedLM(BERT.mask_token_id, BERT.vocabulary_size, rate=0.3, mask_fraction=1, random_fraction=0)
    text, label = show(NextSentence(first, last, rate=1, masked=masked), rows, BERT).split("\n")
    assert "[MASK→" in text and label == "next_sentence: 1"
