"""Tokenizers of directories without a tokenizer.json: vocab.txt and SentencePiece's, against those who wrote them."""

import io
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from kerasllm import Tokenizer
from kerasllm.interop.sentencepiece import read_model

sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle of spiece.model comes with the test extra")

TEXTS = [
    "To be, or not to be: that is the question.",
    "Whether 'tis nobler in the mind to suffer",
    "the slings and arrows of outrageous fortune, 123 456",
    "naïve café — ﬁne \uff12\uff10 degrees",
] * 4
PROBES = [*TEXTS[:4], "", " ", "  two  spaces ", "tab\tand\nline", "ünknown 猫 😀", "a" * 50, "x ▁ y"]


def train(model_type="unigram", **options):
    file = io.BytesIO()
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=file,
        model_type=model_type,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 70, **special, **options},
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def spiece():
    return train()


VARIANTS = {
    "t5": {},
    "nfkc": {"normalization_rule_name": "nfkc"},
    "identity": {"normalization_rule_name": "identity"},
    "no_dummy_prefix": {"add_dummy_prefix": False},
    "user_symbols": {"user_defined_symbols": ["<extra_id_0>"]},
    "byte_fallback": {"byte_fallback": True, "vocab_size": 330},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_spiece_gives_the_ids_of_sentencepiece(options, tmp_path):
    (tmp_path / "spiece.model").write_bytes(train(**options))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    tokenizer = Tokenizer.from_preset(tmp_path)
    assert tokenizer.kind == "unigram"
    for text in PROBES:
        assert tokenizer.encode(text) == theirs.encode(text), text
    for text in TEXTS[:3]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode(text, add_special_tokens=True) == [*theirs.encode(text), 1]
    assert (tokenizer.pad_token_id, tokenizer.end_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.token_to_id("<extra_id_0>") == (3 if "user_defined_symbols" in options else len(theirs) + 99)


def test_spiece_gives_what_transformers_gives(spiece, tmp_path):
    import transformers

    (tmp_path / "spiece.model").write_bytes(spiece)
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
    tokenizer = Tokenizer.from_preset(tmp_path)
    assert tokenizer.vocabulary_size == len(theirs)
    for text in ["To be <extra_id_0> the question <extra_id_1>", *TEXTS[:4]]:
        assert tokenizer.encode(text, add_special_tokens=True) == theirs(text)["input_ids"], text


def test_what_was_read_is_saved_as_tokenizer_json(spiece, tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 3}))
    tokenizer = Tokenizer.from_preset(tmp_path)
    tokenizer.save_to_preset(tmp_path / "saved")
    loaded = Tokenizer.from_preset(tmp_path / "saved")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(PROBES) == tokenizer.encode(PROBES)


class TestDamagedSpiece:
    def refused(self, data, tmp_path, message="damaged"):
        (tmp_path / "spiece.model").write_bytes(data)
        with pytest.raises(ValueError, match=rf"spiece\.model.*{message}"):
            Tokenizer.from_preset(tmp_path)

    @pytest.mark.parametrize(
        "data",
        [b"", b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x7f", b"\x80", b"\x08\x01", b"\x0b\x00", b"{}", b"\x0a\x02\x0a\x09"],
        ids=lambda data: data.hex() or "empty",
    )
    def test_no_model(self, data, tmp_path):
        self.refused(data, tmp_path)

    def test_every_cut(self, spiece, tmp_path):
        """A file cut anywhere is refused, or has fewer pieces; nothing else comes out of the reader."""
        whole = len(read_model_of(spiece, tmp_path).pieces)
        for length in range(0, len(spiece) - 1, 97):
            try:
                assert len(read_model_of(spiece[:length], tmp_path).pieces) <= whole
            except ValueError as error:
                assert "damaged" in str(error)

    def test_a_model_of_another_kind_says_what_to_do(self, tmp_path):
        self.refused(train("word"), tmp_path, "model_type: WORD, which is not read.*sentencepiece library")

    def test_extra_ids(self, spiece, tmp_path):
        for extra in (-1, 10**9, "x"):
            (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": extra}))
            (tmp_path / "spiece.model").write_bytes(spiece)
            with pytest.raises(ValueError, match="extra_ids"):
                Tokenizer.from_preset(tmp_path)


LLAMA = {
    "vocab_size": 400,
    "pad_id": -1,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}
BPE_VARIANTS = {
    "llama": {},
    "no_bytes": {"byte_fallback": False, "vocab_size": 120},
    "nfkc": {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": True},
    "no_dummy_prefix": {"add_dummy_prefix": False},
    "user_symbols": {"user_defined_symbols": ["<extra_id_0>", "ob"]},
}


@pytest.mark.parametrize("options", BPE_VARIANTS.values(), ids=BPE_VARIANTS)
def test_tokenizer_model_gives_the_ids_of_sentencepiece(options, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train("bpe", **{**LLAMA, **options}))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = Tokenizer.from_preset(tmp_path)
    assert tokenizer.kind == "bpe" and tokenizer.vocabulary_size == len(theirs)
    words = " ".join(TEXTS).split()
    shuffled = [" ".join(np.random.default_rng(i).permutation(words)[:12]) for i in range(20)]
    for text in [*PROBES, *shuffled, "".join(words), "Tobe  ornot\n\n  x"]:
        assert tokenizer.encode(text) == theirs.encode(text), text
        if 0 not in theirs.encode(text):  # the unknown token, which they decode as " ⁇ "
            assert tokenizer.decode(tokenizer.encode(text)) == theirs.decode(theirs.encode(text)), text
    assert (tokenizer.unk_token_id, tokenizer.start_token_id, tokenizer.end_token_id) == (0, 1, 2)
    assert tokenizer.encode("To be", add_special_tokens=True) == [1, *theirs.encode("To be")]
    tokenizer.save_to_preset(tmp_path / "saved")
    assert Tokenizer.from_preset(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_tokenizer_model_gives_what_transformers_gives(tmp_path):
    import transformers

    (tmp_path / "tokenizer.model").write_bytes(train("bpe", **LLAMA))
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    tokenizer = Tokenizer.from_preset(tmp_path)
    assert tokenizer.vocabulary_size == len(theirs)
    for text in [*TEXTS[:4], "ünknown 猫 😀"]:
        assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "add_eos_token": True}))
    assert Tokenizer.from_preset(tmp_path).encode("to", add_special_tokens=True) == [*tokenizer.encode("to"), 2]


def read_model_of(data, tmp_path):
    (tmp_path / "spiece.model").write_bytes(data)
    return read_model(tmp_path / "spiece.model")


@pytest.mark.parametrize("lower", [True, False])
def test_vocab_txt_gives_what_transformers_gives(lower, tmp_path):
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "to", "be", "or", "not", "To", "##s", "ques", "##tion", ","]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, "cafe", "猫", "café"]) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path, do_lower_case=lower)
    tokenizer = Tokenizer.from_preset(tmp_path)
    assert tokenizer.kind == "wordpiece" and tokenizer.mask_token_id == 4
    for text in ["To be, or not TO bes", "questions 猫猫 café", "", "[MASK] to [SEP]", "unknownword be"]:
        assert tokenizer.encode(text, add_special_tokens=True) == theirs(text)["input_ids"], text


def test_a_vocab_txt_that_is_none(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"vocab\.txt.*damaged"):
        Tokenizer.from_preset(tmp_path)
    (tmp_path / "vocab.txt").write_text("to\nbe\n")
    with pytest.raises(ValueError, match=r"lacks \[UNK\]"):
        Tokenizer.from_preset(tmp_path)


def llama_2():
    """SentencePiece's BPE as Llama 2 has it in its tokenizer.json: bytes for what has no token."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = values["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def llama_3():
    """Byte-level BPE with Llama 3's own splitting."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.mark.parametrize(
    "make, ends", [(llama_2, ("<s>", "</s>")), (llama_3, ("<|begin_of_text|>", "<|end_of_text|>"))]
)
def test_the_bpe_of_llama(make, ends, tmp_path):
    import transformers

    start, end = ends
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=make(), bos_token=start, eos_token=end)
    theirs.save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_preset(tmp_path)
    assert tokenizer.kind == "bpe"
    assert (tokenizer.start_token_id, tokenizer.end_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for text in ["To be 12345", "naïve 猫 😀\n\tline", f"the{end} arrows"]:
        assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == theirs.decode(tokenizer.encode(text))
    ids = tokenizer.encode("猫 😀")
    assert sum(tokenizer.byte_lengths[i] for i in ids) == len("猫 😀".encode()) + (make is llama_2)  # its first space
