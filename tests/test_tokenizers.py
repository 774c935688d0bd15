import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_texts import odd_texts

from kerasllm.long_texts import line_parts
from kerasllm.tokenizers import KINDS, Tokenizer

pytestmark = pytest.mark.one_backend

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n" * 3
BYTE_LEVEL = {
    "byte": Tokenizer.train(TEXT, kind="byte"),
    "bpe": Tokenizer.train(TEXT, kind="bpe", vocabulary_size=300),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return Tokenizer.train(
        TEXT,
        kind=request.param,
        vocabulary_size={"bpe": 300, "wordpiece": 80, "unigram": 60}.get(request.param),
    )


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@settings(max_examples=300)
@given(text=st.text())
def test_byte_level_kinds_give_back_any_unicode_text(kind, text):
    tokenizer = BYTE_LEVEL[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


def test_byte_ids_are_the_bytes():
    text = "naïve ☃ 🙂\n\0"
    assert BYTE_LEVEL["byte"].encode(text) == list(text.encode())
    assert BYTE_LEVEL["byte"].vocabulary_size == 257


def test_char_vocabulary_of_tiny_shakespeare_is_its_65_characters(shakespeare):
    shakespeare = shakespeare.read_text()
    tokenizer = Tokenizer.train(shakespeare, kind="char")
    alphabet = sorted(set(shakespeare))
    assert tokenizer.vocabulary_size == len(alphabet) == 65
    ids = tokenizer.encode(shakespeare)
    assert ids[:1000] == [alphabet.index(character) for character in shakespeare[:1000]]
    assert tokenizer.decode(ids) == shakespeare


def test_an_unknown_character_is_named():
    tokenizer = Tokenizer.train("ab\n", kind="char")
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9\) at position 1 .* vocabulary of 3.*<unk>"):
        tokenizer.encode("aéb")


def test_char_with_unknown_token():
    tokenizer = Tokenizer.train("ab", kind="char", special_tokens=["<unk>"])
    assert tokenizer.encode("aéb☃") == [1, tokenizer.unk_token_id, 2, 0]


def test_char_special_token_of_characters_that_are_not_in_the_alphabet():
    tokenizer = Tokenizer.train("ab", kind="char", special_tokens=["<|endoftext|>"])
    assert tokenizer.encode("a<|endoftext|>b") == [1, 0, 2]
    with pytest.raises(ValueError, match="'<'"):
        tokenizer.encode("a<|endoftext|>b", parse_special=False)


def test_kind_and_round_trips(tokenizer):
    text = "to be or not to be"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode([text, "to"]) == [ids, tokenizer.encode("to")]
    assert tokenizer.decode([ids, ids]) == [text, text]
    assert [tokenizer.token_to_id(token) for token in tokenizer.tokens(text)] == ids
    assert [tokenizer.id_to_token(token_id) for token_id in ids] == tokenizer.tokens(text)
    assert max(ids) < tokenizer.vocabulary_size


def test_vocabulary_size_is_kept():
    for kind, size in [("bpe", 290), ("wordpiece", 70), ("unigram", 35)]:
        assert Tokenizer.train(TEXT, kind=kind, vocabulary_size=size).vocabulary_size == size


def test_roles_of_special_tokens():
    roles = {
        kind: [
            getattr(Tokenizer.train(TEXT, kind=kind), f"{role}_token_id")
            for role in ("pad", "start", "end", "mask", "unk")
        ]
        for kind in KINDS
        if kind != "unigram"
    }
    roles["unigram"] = [
        getattr(Tokenizer.train(TEXT, kind="unigram", vocabulary_size=50), f"{role}_token_id")
        for role in ("pad", "start", "end", "mask", "unk")
    ]
    assert roles == {
        "char": [None] * 5,
        "byte": [None, 256, 256, None, None],
        "bpe": [None, 0, 0, None, None],
        "wordpiece": [0, 2, 3, 4, 1],
        "unigram": [0, None, 1, None, 2],
    }


def test_text_that_spells_a_special_token():
    tokenizer = BYTE_LEVEL["bpe"]
    text = "to<|endoftext|>be"
    assert tokenizer.end_token_id in tokenizer.encode(text)
    assert tokenizer.end_token_id not in tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == "tobe"


def test_add_special_tokens_follows_the_template():
    bert = Tokenizer.train(TEXT, kind="wordpiece", vocabulary_size=80)
    assert bert.encode("to be", add_special_tokens=True) == [2, *bert.encode("to be"), 3]
    t5 = Tokenizer.train(TEXT, kind="unigram", vocabulary_size=50)
    assert t5.encode("to be", add_special_tokens=True) == [*t5.encode("to be"), 1]


def test_saved_directory_opens_in_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save_to_preset(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "to be, or not to be\n that is the question"
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs(text)["input_ids"] == tokenizer.encode(text, add_special_tokens=True)
    assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert theirs.pad_token_id == tokenizer.pad_token_id
    assert theirs.unk_token_id == tokenizer.unk_token_id
    assert theirs.mask_token_id == tokenizer.mask_token_id
    ends = theirs.eos_token_id if theirs.eos_token_id is not None else theirs.sep_token_id
    starts = theirs.bos_token_id if theirs.bos_token_id is not None else theirs.cls_token_id
    assert (starts, ends) == (tokenizer.start_token_id, tokenizer.end_token_id)
    assert len(theirs) == tokenizer.vocabulary_size


@pytest.mark.parametrize("their_class", ["GPT2TokenizerFast", "PreTrainedTokenizerFast"])
def test_directory_saved_by_transformers_opens_here(their_class, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = BYTE_LEVEL["bpe"]
    ours.save_to_preset(tmp_path / "ours")
    theirs = getattr(transformers, their_class).from_pretrained(tmp_path / "ours", pad_token="<|endoftext|>")
    theirs.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = Tokenizer.from_preset(tmp_path / "theirs")
    text = "to be<|tool|>, 'tis nobler ☃<|endoftext|>"
    assert loaded.encode(text) == theirs(text)["input_ids"]
    assert loaded.end_token_id == theirs.eos_token_id
    assert loaded.pad_token_id == theirs.pad_token_id
    assert loaded.vocabulary_size == len(theirs)


def test_save_and_load_keep_everything(tokenizer, tmp_path):
    tokenizer.save_to_preset(tmp_path)
    for loaded in (Tokenizer.from_preset(tmp_path), Tokenizer.from_file(tmp_path / "tokenizer.json")):
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.kind == tokenizer.kind
        assert loaded.special_tokens == tokenizer.special_tokens
        assert loaded.end_token_id == tokenizer.end_token_id
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_code_named_by_a_config_is_not_passed_on(tmp_path):
    BYTE_LEVEL["bpe"].save_to_preset(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoTokenizer": "evil.Evil"}}))
    Tokenizer.from_preset(tmp_path).save_to_preset(tmp_path)
    assert "auto_map" not in json.loads(config.read_text())


def test_a_failed_save_keeps_the_earlier_files(tmp_path, monkeypatch):
    BYTE_LEVEL["bpe"].save_to_preset(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        BYTE_LEVEL["byte"].save_to_preset(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_training_is_streamed_and_deterministic():
    drawn = []

    def texts():
        for line in TEXT.splitlines(keepends=True):
            drawn.append(line)
            yield line

    first = Tokenizer.train(texts(), vocabulary_size=300)
    assert len(drawn) == len(TEXT.splitlines())
    assert first.fingerprint == Tokenizer.train(texts(), vocabulary_size=300).fingerprint
    assert first.fingerprint != Tokenizer.train(texts(), vocabulary_size=299).fingerprint


def test_a_long_text_is_read_in_parts_that_give_the_same_ids(tokenizer, monkeypatch):
    text = "\n".join(odd_texts() + TEXT.splitlines() * 20 + ["x.\ny", "a\n\nb\n c \n"] * 20)
    if tokenizer.kind == "char":
        text = TEXT * 20
    whole = [tokenizer.encode(text, parse_special=parse_special) for parse_special in (True, False)]
    assert tokenizer._cuts_lines
    monkeypatch.setattr("kerasllm.long_texts.PART", 1)
    monkeypatch.setattr("kerasllm.tokenizers.LONG", 1)
    parts = list(line_parts(text))
    assert len(parts) > 100 and "".join(parts) == text
    assert [tokenizer.encode(text, parse_special=parse_special) for parse_special in (True, False)] == whole


def test_a_word_that_takes_long_to_learn_from_is_said():
    with pytest.warns(UserWarning, match="grows with the square"):
        Tokenizer.train("猫" * 20_000, kind="bpe", vocabulary_size=258)
    with warnings.catch_warnings(action="error"):
        Tokenizer.train("猫." * 20_000, kind="bpe", vocabulary_size=258)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", ["", [], ["", ""]])
def test_empty_texts(kind, texts):
    with pytest.raises(ValueError, match="`texts` is empty"):
        Tokenizer.train(texts, kind=kind)


def test_clear_errors(tmp_path):
    with pytest.raises(ValueError, match=r"`kind` must be one of char, byte, .* kind='morse'"):
        Tokenizer.train(TEXT, kind="morse")
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"vocabulary_size=7"):
            Tokenizer.train(TEXT, kind=kind, vocabulary_size=7)
    with pytest.raises(ValueError, match="needs an unknown token"):
        Tokenizer.train(TEXT, kind="wordpiece", special_tokens=["[PAD]"])
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"not a path.*read_texts"):
        Tokenizer.train(str(tmp_path / "text.txt"))
    with pytest.raises(TypeError, match="of type int"):
        Tokenizer.train([1, 2])
    tokenizer = BYTE_LEVEL["byte"]
    with pytest.raises(TypeError, match="of type int"):
        tokenizer.encode(["a", 3])
    with pytest.raises(KeyError, match="'☃' is not one of the 257 tokens"):
        tokenizer.token_to_id("☃")
    for wrong in (-1, 257):
        with pytest.raises(ValueError, match=rf"\[0, 257\).* Received: {wrong}"):
            tokenizer.decode([1, wrong])
        with pytest.raises(ValueError, match=f"Received: {wrong}"):
            tokenizer.id_to_token(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogates_are_refused(kind):
    with pytest.raises(ValueError, match=r"lone surrogate, '\\ud800' at position 2"):
        Tokenizer.train(["ab\ud800"], kind=kind)
    with pytest.raises(ValueError, match="lone surrogate"):
        BYTE_LEVEL["bpe"].encode("a\udfff")


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*tokenizer\.json"):
        Tokenizer.from_preset(tmp_path)
    for damage in ("", "{", "{}", "[1]", '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'):
        (tmp_path / "tokenizer.json").write_text(damage)
        with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
            Tokenizer.from_preset(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    BYTE_LEVEL["byte"].save_to_preset(tmp_path)
    for damage in ("{", "[]"):
        (tmp_path / "tokenizer_config.json").write_text(damage)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged"):
            Tokenizer.from_preset(tmp_path)


def test_importing_tokenizers_and_data_loads_no_backend():
    code = """
import sys, kerasllm.tokenizers, kerasllm.data
from kerasllm.data import read_texts, build_shards, permute
list(read_texts(["text"]))
loaded = {"keras", "tensorflow", "jax", "torch", "transformers", "datasets"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
