"""Text files as streams of characters: UTF-8, or what a byte order mark says; compressed ones, too."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

READ_BYTES = 1 << 18
LINE_CHARACTERS = 1 << 26  # of a table: a longer line or field is a broken file, not a document

_MARKS = {  # UTF-32's first: it begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def kind_of(path: Path) -> str:
    """The suffix that says what is in a file, without that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in _OPENERS


def decode(path: Path) -> Iterator[str]:
    """A text file in pieces; a byte order mark is dropped, line ends are kept as they are.

    Raises:
        ValueError: not text, or damaged; the message names the file and the byte.
        ImportError: a compression whose package is not installed.
    """
    decoder, offset = None, 0
    with _OPENERS.get(path.suffix.lower(), lambda path: open(path, "rb"))(path) as file:
        while True:
            data = _read(file, path)
            if decoder is None:
                encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
                decoder = codecs.getincrementaldecoder(encoding)()
            if encoding == "utf-8" and (position := data.find(b"\0")) >= 0:
                wide = data[:64].count(b"\0") * 3 > len(data[:64])
                like = " It looks like UTF-16 without a byte order mark: iconv -f utf-16le -t utf-8" if wide else ""
                raise ValueError(
                    f"{path} is not a text file: there is a NUL byte at offset {offset + position}. "
                    f"Expected UTF-8 text.{like}"
                )
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not {encoding.upper()} text: {error.reason} at byte offset "
                    f"{offset - pending + error.start}. Convert it, for example: iconv -f latin1 -t utf-8"
                ) from None
            if text:
                yield text if offset else text.removeprefix("\ufeff")
            if not data:
                return
            offset += len(data)


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, each with its end; only a line feed ends one."""
    rest = ""
    for chunk in decode(path):
        *whole, rest = (rest + chunk).split("\n")
        yield from (line + "\n" for line in whole)
        if len(rest) > LINE_CHARACTERS:
            raise ValueError(f"{path} has a line longer than {LINE_CHARACTERS:,} characters: is it a table of lines?")
    if rest:
        yield rest


def _read(file, path: Path) -> bytes:
    try:
        return file.read(READ_BYTES)
    except (EOFError, zlib.error, lzma.LZMAError, ValueError, OSError) as error:
        if not is_compressed(path) or getattr(error, "errno", None):
            raise
        raise ValueError(f"{path} is damaged, or is not compressed as its name says: {error}") from None


def _open_zstandard(path: Path):
    try:
        import pyarrow
    except ImportError:
        raise ImportError("Reading .zst needs pyarrow: pip install 'kerasllm[data]'") from None
    return pyarrow.input_stream(str(path), compression="zstd")


_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstandard}
