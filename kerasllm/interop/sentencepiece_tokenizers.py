"""Tokenizers of SentencePiece's model files, which give SentencePiece's ids; Kudo and Richardson (2018)."""

import re
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from kerasllm.interop.sentencepiece import (
    CHAR,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Model,
    merges,
    read_model,
)

MAX_EXTRA_IDS = 10_000
_BYTE = "<0x[0-9A-F]{2}>"
# Where a text that spells a byte's piece is cut, and what is in front of the cut. Only a byte that no piece has is one.
_CUTS = {"<0": f"<(?={_BYTE[1:]})", "0x": f"(?<=<)0(?={_BYTE[2:]})"}


def read_sentencepiece(path: Path, config: dict) -> tuple[RustTokenizer, list[str], list[str]]:
    """A SentencePiece model as a tokenizer, and the tokens that begin and end a text.

    Args:
        path: of a spiece.model or tokenizer.model.
        config: the contents of the tokenizer_config.json beside it.

    Raises:
        ValueError: the file is damaged or has what is not read; says what.
    """
    model = read_model(path)
    tokenizer = _unigram(path, model, config) if model.model_type == UNIGRAM else _bpe(path, model)
    tokenizer.add_special_tokens([piece.text for piece in model.pieces if piece.kind in (CONTROL, UNKNOWN)])
    if _is_t5(path):
        return tokenizer, [], ["</s>"]
    starts = [_named(config, "bos_token", "<s>")] if config.get("add_bos_token", True) else []
    return tokenizer, starts, [_named(config, "eos_token", "</s>")] if config.get("add_eos_token", False) else []


def _is_t5(path: Path) -> bool:
    return path.name == "spiece.model"


def _named(config: dict, role: str, usual: str) -> str:
    token = config.get(role) or usual
    return token.get("content", usual) if isinstance(token, dict) else token


def _unigram(path: Path, model: Model, config: dict) -> RustTokenizer:
    """T5's, where a hundred sentinels follow the pieces, and others."""
    extra = config.get("extra_ids", 100 if _is_t5(path) else 0)
    if not isinstance(extra, int) or not 0 <= extra <= MAX_EXTRA_IDS:
        raise ValueError(f"extra_ids in tokenizer_config.json must be at most {MAX_EXTRA_IDS}. Received: {extra!r}")
    # An empty piece matches nothing, as what is unused must not.
    pieces = [("" if piece.kind == UNUSED else piece.text, piece.score) for piece in model.pieces]
    known = {text for text, _ in pieces}
    sentinels = [name for i in reversed(range(extra)) if (name := f"<extra_id_{i}>") not in known]
    pieces += [(name, 0.0) for name in sentinels]
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)

    tokenizer = RustTokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=model.byte_fallback))
    tokenizer.normalizer = _normalizer(path, model)
    cuts = _cuts(path, model)
    if not _crosses_spaces(model):
        cuts.append(pre_tokenizers.Metaspace(prepend_scheme="never"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    spaces = decoders.Metaspace(prepend_scheme="always" if model.add_dummy_prefix else "never")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), spaces]) if model.byte_fallback else spaces
    tokenizer.add_special_tokens(sentinels)
    return tokenizer


def _bpe(path: Path, model: Model) -> RustTokenizer:
    """Llama 2's: a text is one word, whose spaces are characters. A char model is one that joins nothing."""
    vocabulary = {piece.text: i for i, piece in enumerate(model.pieces)}
    unknown = next((piece.text for piece in model.pieces if piece.kind == UNKNOWN), None)
    settings = {
        "vocab": vocabulary,
        "merges": [] if model.model_type == CHAR else merges(model.pieces),
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
    }
    symbols = any(len(text) > 1 for text in _user_defined(model))
    if symbols:
        _check_merges(path, model, models.BPE(**settings))
    tokenizer = RustTokenizer(models.BPE(**settings, ignore_merges=symbols))
    tokenizer.normalizer = _normalizer(path, model)
    if cuts := _cuts(path, model, byte_pieces=symbols):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence([*steps, *strip])
    return tokenizer


def _normalizer(path: Path, model: Model) -> normalizers.Normalizer:
    """What is done to a whole text: its characters, its spaces, and one space more in front."""
    steps = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if steps and (space := steps[0].normalize_str("\r")) != "\r":
        # The library looks at whole graphemes, and "\r\n" is one: its second half would be lost.
        steps.insert(0, normalizers.Replace("\r", space))
    for text in _user_defined(model):
        if steps and (changed := steps[-1].normalize_str(text)) != text:
            raise ValueError(
                f"{str(path)!r} is a SentencePiece model with a symbol {text!r} that its own rules normalize to "
                f"{changed!r}. That is not read: its tokens would be others."
            )
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    steps.append(normalizers.Replace(" ", "▁"))
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"▁+\z"), ""))
    return normalizers.Sequence(steps)


def _cuts(path: Path, model: Model, byte_pieces: bool = True) -> list[pre_tokenizers.PreTokenizer]:
    """Where a normalized text is cut for sure: around symbols of the user's, and inside what only spells a byte.

    As added tokens, symbols would cut the text before it is normalized, and each part would get a space in front.
    """
    cuts = []
    if symbols := _user_defined(model):
        longest_first = sorted((re.escape(text) for text in symbols), key=len, reverse=True)
        cuts.append(pre_tokenizers.Split(Regex("|".join(longest_first)), "isolated"))
    if model.byte_fallback and byte_pieces:
        texts = [piece.text for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED)]
        place = next((pair for pair in _CUTS if not any(pair in text for text in texts)), None)
        if place is None:
            raise ValueError(
                f"{str(path)!r} is a SentencePiece model with bytes whose pieces also have {' and '.join(_CUTS)}. That "
                "is not read: text that spells a byte's piece would become that byte."
            )
        cuts.append(pre_tokenizers.Split(Regex(_CUTS[place]), "merged_with_previous"))
    return cuts


def _crosses_spaces(model: Model) -> bool:
    """Whether a piece may reach from one word into another, so that a text cannot be cut at its spaces."""
    texts = [piece.text for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED)]
    return "▁" not in texts or any("▁" in text[1:] for text in texts)


def _check_merges(path: Path, model: Model, bpe: models.BPE) -> None:
    """Whole symbols are found as whole words, so other pieces must be what merging makes of them, too."""
    for i, piece in enumerate(model.pieces):
        if piece.kind == NORMAL and [token.id for token in bpe.tokenize(piece.text)] != [i]:
            raise ValueError(
                f"{str(path)!r} is a SentencePiece BPE with symbols of the user's and a piece {piece.text!r} that "
                "merging never makes. That is not read: its tokens would be others."
            )


def _user_defined(model: Model) -> list[str]:
    """Pieces that are never cut."""
    return [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
