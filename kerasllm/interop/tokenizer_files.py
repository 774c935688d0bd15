"""Tokenizers in the files that came before tokenizer.json: BERT's vocab.txt and SentencePiece's spiece.model."""

from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from kerasllm.interop.sentencepiece import CONTROL, UNIGRAM, UNKNOWN, USER_DEFINED, read_model

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
    """T5's spiece.model: a Unigram model, and a hundred sentinels after it; Kudo and Richardson (2018)."""
    model = read_model(path)
    if model.model_type != UNIGRAM:
        raise ValueError(
            f"{str(path)!r} is not a Unigram model. Save it with transformers, which writes a tokenizer.json to read."
        )
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    special = [piece.text for piece in model.pieces if piece.kind in (CONTROL, UNKNOWN)]
    extra = config.get("extra_ids", 100)
    if not isinstance(extra, int) or not 0 <= extra <= MAX_EXTRA_IDS:
        raise ValueError(f"extra_ids in tokenizer_config.json must be at most {MAX_EXTRA_IDS}. Received: {extra!r}")
    known = {text for text, _ in pieces}
    sentinels = [name for i in reversed(range(extra)) if (name := f"<extra_id_{i}>") not in known]
    pieces += [(name, 0.0) for name in sentinels]
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)

    tokenizer = RustTokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=model.byte_fallback))
    steps = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    spaces = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), spaces]) if model.byte_fallback else spaces
    tokenizer.add_special_tokens(special + sentinels)
    tokenizer.add_tokens([AddedToken(p.text, normalized=False) for p in model.pieces if p.kind == USER_DEFINED])
    if "</s>" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
        )
    return tokenizer


READERS = {"spiece.model": _sentencepiece, "vocab.txt": _wordpiece}
