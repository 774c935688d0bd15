"""Tokenizers in the files that came before tokenizer.json: BERT's vocab.txt and SentencePiece's models."""

import re
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from kerasllm.interop.sentencepiece import BPE, CONTROL, UNIGRAM, UNKNOWN, USER_DEFINED, Model, merges, read_model

MAX_BYTES = 1 << 26
MAX_EXTRA_IDS = 10_000


def has_tokenizer(directory) -> bool:
    """Whether a directory has a tokenizer that `Tokenizer.from_preset` reads."""
    return any((Path(directory) / name).is_file() for name in ("tokenizer.json", *READERS))


def read_older(directory, config: dict) -> RustTokenizer | None:
    """The tokenizer of a directory without a tokenizer.json; `None` if it has none of the older files.

    Args:
        directory: where to look.
        config: the contents of its tokenizer_config.json.

    Raises:
        ValueError: a file is damaged, too large or of a kind that is not read.
    """
    for name, reader in READERS.items():
        path = Path(directory) / name
        if path.is_file():
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"{str(path)!r} is larger than {MAX_BYTES} bytes, which no vocabulary is.")
            return reader(path, config)
    return None


def _wordpiece(path: Path, config: dict) -> RustTokenizer:
    """BERT's vocab.txt, a token a line; Devlin et al. (2018)."""
    try:
        tokens = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from None
    if "[UNK]" not in tokens:
        raise ValueError(f"{str(path)!r} is no vocabulary of a BERT: it lacks [UNK].")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = RustTokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocabulary]
    tokenizer.add_special_tokens(special)
    if {"[CLS]", "[SEP]"} <= vocabulary.keys():
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
        )
    return tokenizer


def _sentencepiece(path: Path, config: dict) -> RustTokenizer:
    """T5's spiece.model and Llama's tokenizer.model; Kudo and Richardson (2018)."""
    model = read_model(path)
    if model.model_type not in _SENTENCEPIECES:
        raise ValueError(
            f"{str(path)!r} is neither a Unigram nor a BPE model. Save it with transformers, which writes a "
            "tokenizer.json to read."
        )
    tokenizer = _SENTENCEPIECES[model.model_type](model, config)
    tokenizer.add_special_tokens([piece.text for piece in model.pieces if piece.kind in (CONTROL, UNKNOWN)])
    return tokenizer


def _unigram(model: Model, config: dict) -> RustTokenizer:
    """T5's: the end token follows each text, and a hundred sentinels the pieces."""
    extra = config.get("extra_ids", 100)
    if not isinstance(extra, int) or not 0 <= extra <= MAX_EXTRA_IDS:
        raise ValueError(f"extra_ids in tokenizer_config.json must be at most {MAX_EXTRA_IDS}. Received: {extra!r}")
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    known = {text for text, _ in pieces}
    sentinels = [name for i in reversed(range(extra)) if (name := f"<extra_id_{i}>") not in known]
    pieces += [(name, 0.0) for name in sentinels]
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)

    tokenizer = RustTokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=model.byte_fallback))
    tokenizer.normalizer = normalizers.Sequence(_cleaning(model))
    scheme = "always" if model.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    spaces = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), spaces]) if model.byte_fallback else spaces
    tokenizer.add_special_tokens(sentinels)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _user_defined(model)])
    return _between(tokenizer, [], ["</s>"], known)


def _bpe(model: Model, config: dict) -> RustTokenizer:
    """Llama 2's: a text is one word, whose spaces are characters, and the start token precedes it."""
    vocabulary = {piece.text: i for i, piece in enumerate(model.pieces)}
    whole = _user_defined(model)
    unknown = next((piece.text for piece in model.pieces if piece.kind == UNKNOWN), None)
    tokenizer = RustTokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges(model.pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
            ignore_merges=bool(whole),
        )
    )
    prefix = [normalizers.Prepend("▁")] if model.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*_cleaning(model), *prefix, normalizers.Replace(" ", "▁")])
    if whole:  # As added tokens they would cut the text before it is normalized, and each part would get a prefix.
        longest_first = sorted(map(re.escape, whole), key=len, reverse=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(longest_first)), "isolated")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    starts = ["<s>"] if config.get("add_bos_token", True) else []
    return _between(tokenizer, starts, ["</s>"] if config.get("add_eos_token", False) else [], vocabulary)


_SENTENCEPIECES = {UNIGRAM: _unigram, BPE: _bpe}


def _cleaning(model: Model) -> list[normalizers.Normalizer]:
    """What is done to a text before its spaces are looked at."""
    steps = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


def _user_defined(model: Model) -> list[str]:
    """Pieces that are never cut."""
    return [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]


def _between(tokenizer: RustTokenizer, starts: list[str], ends: list[str], known) -> RustTokenizer:
    """The tokenizer, which then puts a text between these tokens, as far as they are known."""
    starts, ends = ([token for token in tokens if token in known] for tokens in (starts, ends))
    if starts or ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*starts, "$A", *ends],
            pair=[*starts, "$A", *ends, *(f"{start}:1" for start in starts), "$B:1", *(f"{end}:1" for end in ends)],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (*starts, *ends)],
        )
    return tokenizer


READERS = {"spiece.model": _sentencepiece, "tokenizer.model": _sentencepiece, "vocab.txt": _wordpiece}
