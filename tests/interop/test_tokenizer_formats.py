"""Every format of tokenizers against its own library on odd texts: equal ids, or refused by name.

`FORMATS` has a row for each: how it is made, what GGUF calls it (`None`: no vocabulary), and whether a SavedModel can
have it in its graph (`None`: as a row above).
"""

# ruff: noqa: RUF001

import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
from odd_texts import ENGLISH, SCRIPTS, odd_texts
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import kerasllm
from kerasllm import Tokenizer
from kerasllm.interop.gguf_vocabulary import LLAMA3_WORDS
from kerasllm.interop.tokenizer_files import QWEN2_WORDS, tokenizer_of_directory

sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle of its models comes with the test extra")
transformers = pytest.importorskip("transformers", reason="the oracle of older files comes with the test extra")

pytestmark = pytest.mark.one_backend

ODD = odd_texts()
TEXTS = [
    "to be or not to be that is the question",
    "on the other hand it is a matter of time",
    "by the way it is a matter of taste, cats and dogs",
    "naïve café 123 456 1234567 <X> a  b",
    ENGLISH,
    " ".join(SCRIPTS),
] * 20


class Format(NamedTuple):
    """A row of the table: `make` writes the files and returns the library's own ids of texts."""

    make: Callable[[Path], Callable[[list[str]], list[list[int]]]]
    gguf: str | None = None
    graph: bool | None = False


def tokenizer_json(
    model, trainer, normalizer=None, pre_tokenizer=None, decoder=None, size=600, special=("</s>", "<unk>")
):
    def make(directory):
        tokenizer = tokenizers.Tokenizer(model())
        for name, part in (("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder)):
            if part is not None:
                setattr(tokenizer, name, part)
        options = {"initial_alphabet": LEVEL.alphabet()} if decoder is BYTES else {}
        options |= {"unk_token": "<unk>"} if trainer is trainers.UnigramTrainer else {}
        teach = trainer(vocab_size=size, special_tokens=list(special), show_progress=False, **options)
        tokenizer.train_from_iterator(TEXTS, teach)
        tokenizer.save(str(directory / "tokenizer.json"))
        return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return make


LEVEL, BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
MERGED = (models.BPE, trainers.BpeTrainer)


def whole():
    return models.BPE(ignore_merges=True)


def cut(words: str):
    split = pre_tokenizers.Split(tokenizers.Regex(words), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def piece_bpe():
    return models.BPE(unk_token="<unk>", fuse_unk=True)


PIECES = pre_tokenizers.Metaspace()
SPACES = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
BERT = {"normalizer": normalizers.BertNormalizer(), "pre_tokenizer": pre_tokenizers.BertPreTokenizer()}
TOKENIZER_JSON = {
    "BPE as GPT-2": Format(tokenizer_json(*MERGED, None, LEVEL, BYTES), "gpt-2", None),
    "BPE as GPT-2, space in front": Format(
        tokenizer_json(*MERGED, None, pre_tokenizers.ByteLevel(add_prefix_space=True), BYTES)
    ),
    "BPE as Llama 3": Format(tokenizer_json(whole, MERGED[1], None, cut(LLAMA3_WORDS), BYTES), "llama-bpe"),
    "BPE as Llama 3, merges first": Format(tokenizer_json(*MERGED, None, cut(LLAMA3_WORDS), BYTES), "smaug-bpe"),
    "BPE as Qwen2, no normalizer": Format(tokenizer_json(*MERGED, None, cut(QWEN2_WORDS), BYTES), "qwen2"),
    "BPE as Qwen2": Format(tokenizer_json(*MERGED, normalizers.NFC(), cut(QWEN2_WORDS), BYTES)),
    "BPE as SmolLM": Format(
        tokenizer_json(*MERGED, None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), LEVEL]), BYTES), "smollm"
    ),
    "BPE with words of its own": Format(tokenizer_json(*MERGED, None, cut(r"\p{L}+|\p{N}{1,2}|\s+|."), BYTES)),
    "BPE of pieces": Format(tokenizer_json(piece_bpe, MERGED[1], None, PIECES, decoders.Metaspace())),
    "BPE of pieces, whole texts": Format(tokenizer_json(piece_bpe, MERGED[1], SPACES, None, None)),
    "Unigram": Format(
        tokenizer_json(
            models.Unigram, trainers.UnigramTrainer, normalizers.NFKC(), PIECES, decoders.Metaspace(), size=250
        )
    ),
    "WordPiece": Format(
        tokenizer_json(
            lambda: models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer, decoder=decoders.WordPiece(), **BERT
        ),
        graph=None,
    ),
    "WordLevel": Format(
        tokenizer_json(
            lambda: models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, None, pre_tokenizers.Whitespace()
        )
    ),
    "char": Format(tokenizer_json(lambda: models.BPE(unk_token="<unk>"), trainers.BpeTrainer, size=10), graph=True),
}


def trained(model_type: str, **options) -> bytes:
    file = io.BytesIO()
    usual = {"vocab_size": 250, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=file,
        model_type=model_type,
        hard_vocab_limit=False,
        minloglevel=2,
        **{**usual, **options},
    )
    return file.getvalue()


def spiece(model_type: str, **options):
    def make(directory):
        (directory / "spiece.model").write_bytes(trained(model_type, **options))
        return sentencepiece.SentencePieceProcessor(model_file=str(directory / "spiece.model")).encode

    return make


IDENTITY = {"normalization_rule_name": "identity"}
ACROSS = {"split_by_whitespace": False, "allow_whitespace_only_pieces": True}
SYMBOLS = {"user_defined_symbols": ["<X>", "the", "at", "e", "1\ufe0f\u20e3"], "control_symbols": ["<c>", "of"]}
KEEP = {"remove_extra_whitespaces": False}
LLAMA = {"vocab_size": 600, "pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2, "byte_fallback": True}
LLAMA |= {"split_digits": True, "allow_whitespace_only_pieces": True, **IDENTITY, **KEEP}
SENTENCEPIECE = {
    "SentencePiece Unigram as T5": Format(spiece("unigram")),
    "SentencePiece Unigram, identity": Format(spiece("unigram", **IDENTITY)),
    "SentencePiece Unigram, nfkc_cf": Format(spiece("unigram", normalization_rule_name="nfkc_cf")),
    "SentencePiece Unigram across spaces": Format(spiece("unigram", **ACROSS, **KEEP)),
    "SentencePiece Unigram with bytes": Format(spiece("unigram", byte_fallback=True, vocab_size=500)),
    "SentencePiece Unigram with symbols": Format(spiece("unigram", **SYMBOLS)),
    "SentencePiece Unigram as Llama": Format(spiece("unigram", **LLAMA, **SYMBOLS)),
    "SentencePiece BPE": Format(spiece("bpe")),
    "SentencePiece BPE as Llama 2": Format(spiece("bpe", **LLAMA), "llama"),
    "SentencePiece BPE as Gemma": Format(spiece("bpe", **LLAMA, add_dummy_prefix=False), "llama"),
    "SentencePiece BPE with symbols": Format(spiece("bpe", **LLAMA, **SYMBOLS)),
    "SentencePiece BPE across spaces": Format(spiece("bpe", **ACROSS, **KEEP)),
    "SentencePiece char": Format(spiece("char")),
    "SentencePiece char, identity": Format(spiece("char", **IDENTITY, add_dummy_prefix=False)),
}


def write(**files: str):
    """Files by their names, with _ for the last dot."""

    def make(directory):
        for name, text in files.items():
            (directory / ".".join(name.rsplit("_", 1))).write_bytes(text.encode())

    return make


def older(their_class: str, config=None, **files: str):
    """Files that come before tokenizer.json, and the class of transformers that reads them."""

    def make(directory):
        write(**files)(directory)
        settings = {"tokenizer_class": their_class, **(config or {})}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        theirs = getattr(transformers, their_class).from_pretrained(directory)
        return lambda texts: theirs(texts, add_special_tokens=False)["input_ids"]

    return make


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] to be or not that is the question cats dogs To Be It ' s , . ( ) a b cafe café"
WORDS += " 猫 日 本 語 中 文 字 ##s ##a ##b 1 12 123 ##4 ##5 ##67 Σ σ ##ι ##ς ı ##i \u0301 Å a\u030a x [NEW]"


def bpe_files(*special: str) -> dict[str, str]:
    tokenizer = Tokenizer.train(TEXTS, vocabulary_size=600, special_tokens=special)
    model = json.loads(tokenizer.get_config()["tokenizer"])["model"]
    lines = ["#version: 0.2", *map(" ".join, model["merges"])]
    return {"vocab_json": json.dumps(model["vocab"]), "merges_txt": "\n".join(lines) + "\n"}


BPE_FILES = bpe_files("<|endoftext|>")
COUNT = len(json.loads(BPE_FILES["vocab_json"]))
NEW = {"added_tokens_json": json.dumps({"<new>": COUNT, "New Token": COUNT + 1})}
CASED = {"do_lower_case": False, "tokenize_chinese_chars": False}
OLDER = {
    "vocab.txt": Format(older("BertTokenizer", vocab_txt=WORDS.replace(" ", "\n") + "\n"), graph=None),
    "vocab.txt, cased": Format(older("BertTokenizer", CASED, vocab_txt=WORDS.replace(" ", "\n")), graph=True),
    "vocab.txt, accents kept": Format(
        older("BertTokenizer", {"strip_accents": False}, vocab_txt=WORDS.replace(" ", "\r\n")), graph=None
    ),
    "vocab.txt with other line ends in tokens": Format(
        older("BertTokenizer", vocab_txt=WORDS.replace(" ", "\n").replace("cafe", "\u2028\n\x85\n\x0c\ncafe")),
        graph=True,
    ),
    "vocab.json and merges.txt": Format(older("GPT2Tokenizer", **BPE_FILES), "gpt-2", True),
    "vocab.json, space in front": Format(older("GPT2Tokenizer", {"add_prefix_space": True}, **BPE_FILES)),
    "vocab.json and added_tokens.json": Format(older("GPT2Tokenizer", **BPE_FILES, **NEW), "gpt-2", None),
    "vocab.json as RoBERTa": Format(
        older("RobertaTokenizer", **bpe_files("<s>", "<pad>", "</s>", "<unk>", "<mask>")), "gpt-2", None
    ),
    "vocab.json as Qwen2": Format(older("Qwen2Tokenizer", **BPE_FILES)),
}

FORMATS = {**TOKENIZER_JSON, **SENTENCEPIECE, **OLDER}


@pytest.fixture(scope="module", params=FORMATS)
def opened(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    wanted = FORMATS[request.param].make(directory)
    return request.param, Tokenizer.from_preset(directory), wanted


def test_ids_are_those_of_its_own_library(opened):
    name, tokenizer, library = opened
    from_sentencepiece = name in SENTENCEPIECE
    # SentencePiece itself knows no text of a special token.
    made, wanted = tokenizer.encode(ODD, parse_special=not from_sentencepiece), library(ODD)
    other = [(text, ids) for text, ids, theirs in zip(ODD, made, wanted) if ids != theirs]
    if from_sentencepiece:
        # Its rules for characters are applied as tokenizers and transformers apply them: to whole graphemes.
        normalize = tokenizer._tokenizer.normalizer.normalize_str
        theirs = library.__self__
        odd_marks = {text for text, _ in other if theirs.normalize(text) != normalize(text)}
        assert len(odd_marks) <= (0 if "identity" in name or "Llama" in name or "Gemma" in name else 70)
        other = [text for text, ids in other if text not in odd_marks and not is_tie(theirs, text, ids)]
    assert other == []


def is_tie(processor, text: str, ids: list[int]) -> bool:
    """Whether other pieces have the score of SentencePiece's own, up to the rounding of its float32 sums."""
    sums = [sum(map(processor.get_score, row)) for row in (ids, processor.encode(text))]
    return "".join(map(processor.id_to_piece, ids)) and abs(sums[0] - sums[1]) < 1e-5 * max(map(abs, sums))


def test_what_is_saved_gives_the_same_ids(opened, tmp_path):
    _, tokenizer, _ = opened
    tokenizer.save_to_preset(tmp_path)
    again = Tokenizer.from_preset(tmp_path)
    for parse_special in (True, False):
        texts = ODD[::4]
        assert again.encode(texts, parse_special=parse_special) == tokenizer.encode(texts, parse_special=parse_special)


def test_gguf_has_what_llama_cpp_reads_alike(opened, tmp_path):
    gguf = pytest.importorskip("gguf")
    from kerasllm.interop.gguf import export_gguf
    from kerasllm.interop.gguf_vocabulary import write_vocabulary

    name, tokenizer, _ = opened
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write_vocabulary(writer, tokenizer, tokenizer.vocabulary_size + 3, [])
    (values,) = writer.kv_data
    kind = values["tokenizer.ggml.model"].value
    kind = values["tokenizer.ggml.pre"].value if kind == "gpt2" else {"no_vocab": None}.get(kind, kind)
    assert kind == FORMATS[name].gguf
    assert any("The GGUF file has no vocabulary" in str(warning.message) for warning in said) == (kind is None)
    if kind is None:
        return
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle of GGUF comes with the llama-cpp extra")
    config = kerasllm.TransformerConfig(
        tokenizer.vocabulary_size + 3, 16, num_layers=1, num_heads=1, hidden_dim=32, head_dim=32
    )
    export_gguf(kerasllm.CausalLM(config, tokenizer), tmp_path / "y.gguf", "f32")
    reads = llama_cpp.Llama(str(tmp_path / "y.gguf"), vocab_only=True, verbose=False)
    for parse_special in (False, True):
        theirs = [reads.tokenize(text.encode(), add_bos=False, special=parse_special) for text in ODD]
        wanted = tokenizer.encode(ODD, parse_special=parse_special)
        assert [text for text, ids, its in zip(ODD, wanted, theirs) if ids != its] == []


def test_graphs_are_exact_or_refused(opened):
    tf = pytest.importorskip("tensorflow")
    from kerasllm.serving.tf_tokenizers import graph_tokenizer

    name, tokenizer, _ = opened
    if FORMATS[name].graph is None:
        return
    if not FORMATS[name].graph:
        with pytest.raises(ValueError, match="no exact TensorFlow graph"):
            graph_tokenizer(tokenizer)
        return
    texts = sorted(ODD, key=len)[::20]  # All of them: tests/serving/test_tf_tokenizers.py.
    made = graph_tokenizer(tokenizer).encode(tf.constant([text.encode() for text in texts])).to_list()
    assert [text for text, ids, wanted in zip(texts, made, tokenizer.encode(texts)) if ids != wanted] == []


def spm_directory(directory, **options):
    (directory / "tokenizer.model").write_bytes(trained(**options))


VOCAB = WORDS.replace(" ", "\n")
CONFIG = "tokenizer_config.json"
GGUF_NAMES = {
    "an end that is not special": (["</s>", "<|endoftext|>"], ["<|endoftext|>"], "</s>"),
    "a special token of text": (["<|endoftext|>", "<|start|>"], ["<|endoftext|>", "<|start|>"], "<|start|>"),
}


@pytest.mark.parametrize(("tokens", "special", "name"), GGUF_NAMES.values(), ids=GGUF_NAMES)
def test_names_that_llama_cpp_takes_otherwise_leave_no_vocabulary(tokens, special, name, tmp_path):
    """llama.cpp tells some special tokens by their names alone."""
    gguf = pytest.importorskip("gguf")
    from kerasllm.interop.gguf_vocabulary import write_vocabulary

    values = json.loads(Tokenizer.train(TEXTS, special_tokens=tokens).get_config()["tokenizer"])
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(values)))
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    with pytest.warns(UserWarning, match=f"takes the token '{re.escape(name)}'"):
        write_vocabulary(writer, tokenizer, tokenizer.vocabulary_size, [])
    assert writer.kv_data[0]["tokenizer.ggml.model"].value == "no_vocab"


REFUSED = {
    "SentencePiece word": (lambda d: spm_directory(d, model_type="word"), "model_type: WORD"),
    "spaces behind words": (
        lambda d: spm_directory(d, model_type="unigram", treat_whitespace_as_suffix=True),
        "treat_whitespace_as_suffix",
    ),
    "a symbol that is normalized": (
        lambda d: spm_directory(d, model_type="unigram", user_defined_symbols=["①"]),
        "symbol '①'",
    ),
    "vocab.txt with a byte order mark": (write(vocab_txt="\ufeff" + VOCAB), "byte order mark"),
    "vocab.txt of another class": (
        write(vocab_txt=VOCAB, tokenizer_config_json='{"tokenizer_class": "BertJapaneseTokenizer"}'),
        "BertJapaneseTokenizer.*save_pretrained",
    ),
    "vocab.txt of another family": (write(vocab_txt=VOCAB, config_json='{"model_type": "esm"}'), "'esm'"),
    "no basic words": (
        write(vocab_txt=VOCAB, tokenizer_config_json='{"do_basic_tokenize": false}'),
        "do_basic_tokenize",
    ),
    "added token with another id": (
        write(vocab_txt=VOCAB, added_tokens_json='{"<a>": 999}'),
        "'<a>' with the id 999, and it has the id",
    ),
    "two tokens of one name": (write(vocab_txt=VOCAB + "\nto\nzz", added_tokens_json='{"<a>": 999}'), "'<a>'"),
    "merges of tokens that are not there": (
        write(vocab_json=BPE_FILES["vocab_json"], merges_txt="a b\nzz qq\n"),
        r"Line 1 of .*merges\.txt|Line 2 of",
    ),
    "vocab.json of CLIP": (
        write(**BPE_FILES, tokenizer_config_json='{"tokenizer_class": "CLIPTokenizer"}'),
        "CLIPTokenizer",
    ),
    "vocab.json that is none": (write(vocab_json="[1]", merges_txt=""), r"vocab\.json.*damaged"),
    "vocab.json without merges": (write(vocab_json=BPE_FILES["vocab_json"]), r"vocab\.json, which is not read"),
    "tekken.json": (write(tekken_json="{}"), r"tekken\.json, which is not read.*AutoTokenizer"),
    "a damaged list of added tokens": (
        write(vocab_txt=VOCAB, tokenizer_config_json='{"added_tokens_decoder": {"0": 3}}'),
        "damaged list of added tokens",
    ),
    "split_special_tokens": (
        write(vocab_txt=VOCAB, tokenizer_config_json='{"split_special_tokens": true}'),
        "split_special_tokens",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_read_wrongly_is_refused_by_name(make, message, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Tokenizer.from_preset(tmp_path)


@pytest.mark.parametrize("name", ["tekken.json", "sentencepiece.bpe.model", "vocab.json", "qwen.tiktoken"])
def test_a_model_whose_tokenizer_is_not_read_says_so(name, tmp_path):
    assert tokenizer_of_directory(tmp_path) is None
    (tmp_path / name).write_bytes(b"{}")
    with pytest.warns(UserWarning, match=rf"without its tokenizer.*{name}.*save_pretrained"):
        assert tokenizer_of_directory(tmp_path) is None


def test_a_prefix_space_that_the_files_disagree_on_is_refused(tmp_path):
    TOKENIZER_JSON["BPE as GPT-2"].make(tmp_path)
    for wanted, is_refused in ((None, False), (False, False), (True, True)):
        (tmp_path / CONFIG).write_text(json.dumps({"add_prefix_space": wanted}))
        if not is_refused:
            Tokenizer.from_preset(tmp_path)
            continue
        with pytest.raises(ValueError, match="add_prefix_space=True"):
            Tokenizer.from_preset(tmp_path)


FLAGS = {"lstrip": True, "rstrip": False, "single_word": False, "normalized": False, "special": True}
ADDED = {
    "named in the config": ({"eos_token": "the", "pad_token": "cats"}, {}, {}),
    "with flags": ({"added_tokens_decoder": {"6": {"content": "be", **FLAGS}}, "eos_token": "be"}, {}, {}),
    "an older map has the last word": ({"eos_token": "not"}, {"eos_token": {"content": "to", "lstrip": True}}, {}),
    "a newer config has the last word": (
        {"eos_token": "not", "added_tokens_decoder": {"8": {"content": "not", **FLAGS}}},
        {"eos_token": "to"},
        {},
    ),
    "added and extra": ({}, {"additional_special_tokens": ["<e>"]}, {"<e>": 54, "<plain>": 55}),
    "extra without an id": ({"extra_special_tokens": ["<e>", "<f>"]}, {}, {}),
}


@pytest.mark.parametrize(("config", "roles", "added"), ADDED.values(), ids=ADDED)
def test_tokens_that_other_files_add_are_those_of_transformers(config, roles, added, tmp_path):
    count = len(VOCAB.split("\n"))
    (tmp_path / "vocab.txt").write_text(VOCAB, encoding="utf-8")
    (tmp_path / CONFIG).write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    added = {token: count + number for number, token in enumerate(added)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_preset(tmp_path)
    texts = [*ODD[:200], "to be or not to be", "the <e> and <f> not<e>the <plain> to", "x  be  x not  to"]
    assert ours.encode(texts) == theirs(texts, add_special_tokens=False)["input_ids"]
    assert ours.role_tokens.get("eos_token") == theirs.eos_token
    special = {theirs.convert_tokens_to_ids(token) for token in theirs.all_special_tokens} - {ours.unk_token_id}
    known = [ids for ids in ours.encode(texts, parse_special=False) if special & {*ids}]
    assert known == []
