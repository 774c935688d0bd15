"""Pieces of text as they come: put together, they are the whole answer, however long it is and whatever it is of."""

import random

import pytest
from tokenizers import decoders

from kerasllm import Sampler, Tokenizer
from kerasllm.generation.pieces import MOST_AGAIN, REPLACEMENT, Pieces
from kerasllm.generation.requests import Request

pytestmark = pytest.mark.one_backend

TEXT = (
    "To be, or not to be: that's the question. Ça va? Ünïcödé 你好, 世界 🙂🙃! whether 'tis nobler   in the mind\n" * 3
)


def tokenizer_of(kind):
    return Tokenizer.train(TEXT, kind=kind, **({} if kind in ("byte", "char") else {"vocabulary_size": 300}))


def pieces_of(tokenizer, prompt, tokens, draw, stop=()):
    request = Request(prompt, len(tokens), Sampler(temperature=0.0))
    pieces, made, rest = Pieces(tokenizer, request, stop), [], list(tokens)
    while rest and not pieces.ended:
        size = draw.randint(1, 5)
        request.new_tokens += rest[:size]
        del rest[:size]
        made.append(pieces.advance())
    return "".join(made) + pieces.rest(), pieces


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "wordpiece", "unigram"])
def test_pieces_of_any_tokens_are_the_whole(kind):
    tokenizer, draw = tokenizer_of(kind), random.Random(0)
    prompt = tokenizer.encode("To be, or 你")
    whole = tokenizer.encode(TEXT)
    drawn = [draw.randrange(tokenizer.vocabulary_size) for _ in range(400)]
    for tokens in (whole, whole[1:], drawn, [draw.choice([*whole, *drawn]) for _ in range(400)]):
        before = len(tokenizer.decode(prompt[-8:]))
        expected = tokenizer.decode(prompt[-8:] + tokens)[before:].rstrip(REPLACEMENT)
        text, pieces = pieces_of(tokenizer, prompt, tokens, draw)
        assert text == expected
        assert len(tokens) - pieces.start < 3 * MOST_AGAIN or kind == "byte"


def test_characters_that_are_spelled_in_bytes_stay_whole():
    spelled = {"▁be": "▁be", **{f"<0x{i:02X}>": i for i in range(256)}}
    names = list(spelled)
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )

    class Llama:
        def decode(self, ids):
            return decoder.decode([names[i] for i in ids])

    text = "你好世界🙂🙃" * 12
    tokens = [byte + 1 for byte in text.encode()] + [0, 0] + [byte + 1 for byte in text.encode()]
    made, _ = pieces_of(Llama(), [0], tokens, random.Random(0))
    assert made == f"{text} be be{text}"


def test_an_answer_is_not_decoded_from_its_beginning_each_time():
    tokenizer, sizes = tokenizer_of("bpe"), []

    class Counted:
        def decode(self, ids):
            sizes.append(len(ids))
            return tokenizer.decode(ids)

    tokens = tokenizer.encode(TEXT)
    pieces_of(Counted(), tokens[:3], tokens, random.Random(0))
    assert len(tokens) > 10 * MOST_AGAIN and max(sizes) < 3 * MOST_AGAIN


def test_a_stop_string_is_found_where_texts_are_put_together():
    tokenizer, draw = tokenizer_of("byte"), random.Random(0)
    tokens = tokenizer.encode(TEXT)
    for place in range(1, 40):
        stop = TEXT[place : place + 6]
        text, pieces = pieces_of(tokenizer, [0], tokens, draw, [stop])
        assert text == TEXT[: TEXT.index(stop)] and pieces.ended
        assert tokenizer.decode(pieces.request.new_tokens) == TEXT[: TEXT.index(stop) + len(stop)]


def test_half_a_character_is_no_stop_string():
    tokenizer, text = tokenizer_of("byte"), "a 🙂 b"
    for stop, expected in ((REPLACEMENT, text), ("🙂", "a "), (" b", "a 🙂")):
        made, pieces = pieces_of(tokenizer, [0], tokenizer.encode(text), random.Random(0), [stop])
        assert made == expected and pieces.ended == (expected != text)
    broken = [*tokenizer.encode("a "), tokenizer.encode("🙂")[0], *tokenizer.encode(" b")]
    made, pieces = pieces_of(tokenizer, [0], broken, random.Random(0), [REPLACEMENT])
    assert made == "a " and pieces.ended  # a character that is never whole is one
