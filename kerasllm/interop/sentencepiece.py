"""SentencePiece's model files, read field by field: what is in one is data, and sizes are checked as they come.

The file is a protocol buffer, `ModelProto` of sentencepiece_model.proto (Kudo and Richardson, 2018): a run of fields,
each a number, a wire type and a value.
"""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

from kerasllm.config import MAX_SIZE

UNIGRAM, BPE, WORD, CHAR = range(1, 5)  # of trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # of a piece's type


@dataclasses.dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True)
class Model:
    """What a tokenizer needs of a `ModelProto`; `charsmap` is its table of characters to normalize."""

    pieces: list[Piece]
    model_type: int
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read_model(path: Path) -> Model:
    """Reads a spiece.model or tokenizer.model.

    Raises:
        ValueError: the file is damaged, is not a SentencePiece model, or sets what is not read; says which.
    """
    try:
        pieces, trainer, normalizer, denormalizer = [], {}, {}, {}
        specs = {2: trainer, 3: normalizer, 5: denormalizer}
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                pieces.append(_piece(dict(_fields(_bytes(value)))))
            elif number in specs:
                specs[number].update(_fields(_bytes(value)))
        if not 0 < len(pieces) <= MAX_SIZE:
            raise ValueError(f"it has {len(pieces)} pieces")
        model = Model(
            pieces,
            model_type=trainer.get(3, UNIGRAM),
            byte_fallback=bool(trainer.get(35, False)),
            charsmap=_bytes(normalizer.get(2, b"")),
            add_dummy_prefix=bool(normalizer.get(3, True)),
            remove_extra_whitespaces=bool(normalizer.get(4, True)),
        )
    except (ValueError, struct.error) as error:
        raise ValueError(f"{str(path)!r} is damaged or not a SentencePiece model: {error}") from None
    unread = {
        "model_type: WORD": model.model_type not in (UNIGRAM, BPE, CHAR),
        "treat_whitespace_as_suffix: true": trainer.get(24, False),
        "escape_whitespaces: false": not normalizer.get(5, True),
        "a denormalizer_spec with rules": denormalizer.get(2, b""),
        "unused pieces in a BPE": model.model_type == BPE and any(piece.kind == UNUSED for piece in pieces),
    }
    if found := [name for name, is_set in unread.items() if is_set]:
        raise ValueError(
            f"{str(path)!r} is a SentencePiece model with {' and '.join(found)}, which is not read: its tokens "
            "would be others. Make token ids with the sentencepiece library, and give the model these."
        )
    return model


def merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """The pairs of pieces that a BPE model joins, the first that it would join in front.

    The file does not list them: SentencePiece joins the two neighbours whose joined text is the piece of the highest
    score, so a piece's pairs are all ways to cut it into two others. (Of equal scores it takes the leftmost pair,
    which a list cannot say; it matters for runs of one character only.)
    """
    scores = {piece.text: piece.score for piece in pieces if piece.kind in (NORMAL, USER_DEFINED, UNUSED)}
    found = [
        (-scores[text], cut, text)
        for text in scores
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [(text[:cut], text[cut:]) for _, cut, text in sorted(found)]


def _piece(fields: dict) -> Piece:
    score = struct.unpack("<f", _bytes(fields.get(2, b"\0\0\0\0")))[0]
    return Piece(_bytes(fields.get(1, b"")).decode(), score, fields.get(3, NORMAL))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message: an int, or bytes that mean what the number says."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire_type, len(data))
        if at + size > len(data):
            raise ValueError(f"field {number} at byte {at} ends after the file")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends in the middle of a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise ValueError(f"the number at byte {at} has no end")


def _bytes(value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"expected bytes, found the number {value}")
    return value
