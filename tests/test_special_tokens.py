"""Text from others never becomes a special token where it must not, in any kind of tokenizer."""

import json

import pytest
import tokenizers
from odd_texts import odd_texts
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from kerasllm import Tokenizer
from kerasllm.chat.tokens import encode_conversation, encode_prompt

pytestmark = pytest.mark.one_backend

TEXT = ["some words about cats and dogs, the end of them all; user: assistant: <|/s\uff1e0x41[SEP] " * 4, "the " * 20]
ODD = odd_texts()


def built(model, special, normalizer=None, pre_tokenizer=None, decoder=None) -> Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    for name, part in (("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder)):
        if part is not None:
            setattr(tokenizer, name, part)
    tokenizer.add_special_tokens(special)
    return Tokenizer(tokenizer)


def bpe_whose_end_is_a_word(**changes):
    """A BPE that has learned to write its special tokens, as merges or as a whole word."""
    values = json.loads(Tokenizer.train(TEXT, vocabulary_size=330).get_config()["tokenizer"])
    values["model"] |= changes
    vocabulary = values["model"]["vocab"]
    words = [token for token in ("the", "Ġcats", "</s>", "[SEP]") if vocabulary.setdefault(token, len(vocabulary)) >= 0]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(values))
    tokenizer.add_special_tokens(words)
    return Tokenizer(tokenizer)


def bytes_and_pieces():
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{i:02X}>", 0.0) for i in range(256))]
    return [*pieces, ("▁", -2.0), ("▁c", -3.0), ("at", -4.0), ("s", -4.0), ("</", -6.0), (">", -5.0)]


def llama():
    vocabulary = {piece: i for i, (piece, _) in enumerate(bytes_and_pieces())}
    vocabulary |= {"a": 270, "t": 271, "c": 272, "/": 273, "<": 274, "</s": 275}
    merges = [("a", "t"), ("▁", "c"), ("<", "/"), ("</", "s"), ("</s", ">")]
    return models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)


def word(text: str) -> dict[str, int]:
    return {token: i for i, token in enumerate(text.split())}


METASPACE = {"pre_tokenizer": pre_tokenizers.Metaspace(split=False), "decoder": decoders.Metaspace()}
KINDS = {
    "char": lambda: Tokenizer.train(TEXT + ODD, kind="char", special_tokens=["<|endoftext|>", "</s>"]),
    "char, unknown": lambda: Tokenizer.train(TEXT, kind="char", special_tokens=["<unk>", "</s>", "\n", "c"]),
    "byte": lambda: Tokenizer.train(TEXT, kind="byte"),
    "bpe": lambda: Tokenizer.train(TEXT, kind="bpe", vocabulary_size=330),
    "bpe, merged": bpe_whose_end_is_a_word,
    "bpe, whole words": lambda: bpe_whose_end_is_a_word(ignore_merges=True),
    "bpe, bytes": lambda: built(llama(), ["<unk>", "<s>", "</s>"], **METASPACE),
    "unigram": lambda: Tokenizer.train(TEXT, kind="unigram", vocabulary_size=60),
    "unigram, bytes": lambda: built(
        models.Unigram(bytes_and_pieces(), 0, byte_fallback=True), ["<unk>", "<s>", "</s>"], **METASPACE
    ),
    "wordpiece": lambda: Tokenizer.train(TEXT, kind="wordpiece", vocabulary_size=90),
    "wordpiece, white space": lambda: built(
        models.WordPiece(word("[UNK] [CLS] [SEP] [MASK] cats ##s a b </s>"), unk_token="[UNK]"),
        ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "</s>"],
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
    ),
    "words": lambda: built(
        models.WordLevel(word("<unk> </s> [SEP] cats dogs a b"), unk_token="<unk>"),
        ["<unk>", "</s>", "[SEP]"],
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
    ),
    "normalized token": lambda: built(
        models.WordLevel(word("<unk> [sep] </s> a b"), unk_token="<unk>"),
        [AddedToken("[SEP]", normalized=True), AddedToken("</s>", normalized=True, lstrip=True), "<unk>"],
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        pre_tokenizers.WhitespaceSplit(),
    ),
}
LOSSLESS = ("char", "byte", "bpe", "bpe, merged", "bpe, whole words")


@pytest.fixture(scope="module", params=KINDS)
def named(request):
    tokenizer = KINDS[request.param]()
    special = {tokenizer.token_to_id(token) for token in tokenizer.special_tokens}
    return request.param, tokenizer, special - {tokenizer.unk_token_id}, spelling(tokenizer)


def spelling(tokenizer) -> list[str]:
    """The odd texts, and such with this tokenizer's own special tokens in them."""
    return ODD + [
        form.format(token) for token in tokenizer.special_tokens for form in ("{}", "a{}b", "{0}{0}", " {} x")
    ]


def test_text_gives_no_special_token(named):
    name, tokenizer, special, texts = named
    rows = tokenizer.encode(texts, parse_special=False)
    assert [text for text, ids in zip(texts, rows) if special & {*ids}] == []
    if name in LOSSLESS:
        assert [text for text, ids in zip(texts, rows) if tokenizer.decode(ids) != text] == []


def test_special_tokens_come_of_their_own_spelling_alone(named):
    """What encode_with_offsets reads, as chats do: not of characters that are normalized to a special token."""
    _, tokenizer, special, texts = named
    names = {tokenizer.token_to_id(token): token for token in tokenizer.special_tokens}
    for text in texts:
        found = special & {*tokenizer.encode_with_offsets(text)[0]}
        assert all(names[i] in text for i in found), text
    for token in tokenizer.special_tokens:
        assert tokenizer.encode_with_offsets(token)[0] == [tokenizer.token_to_id(token)]


def test_ordinary_text_is_the_same_with_and_without(named):
    """Where no special token is spelled, and none is what the model would have made, nothing changes."""
    _, tokenizer, special, _ = named
    for text, both in zip(ODD, zip(tokenizer.encode(ODD), tokenizer.encode(ODD, parse_special=False))):
        if not special & {*both[0]} and not any(token in text for token in tokenizer.special_tokens):
            assert both[0] == both[1], text


def test_a_message_gives_no_special_token(named):
    name, tokenizer, special, texts = named
    if name in ("char", "char, unknown", "normalized token") or not special:
        pytest.skip("the template's own letters are not in this vocabulary")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} : {% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    for text in texts[:200] + texts[2000:]:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        assert not special & {*encode_conversation(tokenizer, messages).token_ids.tolist()}, text
        assert not special & {*encode_prompt(tokenizer, messages)}, text


def test_a_special_token_that_spells_a_byte_is_refused():
    with pytest.raises(ValueError, match=r"must not be one of the characters that spell.*'a'"):
        Tokenizer.train("abc", kind="bpe", special_tokens=["a"])
