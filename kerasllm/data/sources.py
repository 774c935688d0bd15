"""Where text comes from: files, folders, globs, tables, Hugging Face datasets, Python iterables.

Everything is read as a stream of pieces, in bounded memory. A piece is a document, or part of a long text
file.
"""

import codecs
import csv
import glob
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
PIECE_CHARACTERS = 1 << 18
LINE_CHARACTERS = 1 << 26  # of a table: a longer line or field is a broken file, not a document

Source = str | os.PathLike | Iterable[str]


class Piece(NamedTuple):
    """Part of a document: its text, and whether the document ends with it."""

    text: str
    ends_document: bool


def read_texts(source: Source, column: str | None = None) -> Iterator[str]:
    """The texts of a source, one after the other; what `Tokenizer.train` takes.

    Each is one document, except that a text file longer than about 256,000 characters comes in pieces, cut
    between words.

    Args:
        source: one of

            - a text file (one document), `.jsonl`, `.csv` or `.parquet` file (one document a row);
            - a folder: all files in it with those suffixes, `.md` and `.rst`, at any depth, in sorted order;
            - a glob such as `"books/**/*.txt"`;
            - `"hf:NAME"` or `"hf:NAME:SPLIT"`: a Hugging Face dataset, streamed;
            - `"builtin:pydoc"`: the documentation of the running Python;
            - an iterable of strings: each is a document, never a path.
        column: the field or column that holds the text. Defaults to `"text"`.

    Raises:
        FileNotFoundError: there is no such path, or no file matches.
        ValueError: a source without text, a file that is not UTF-8 text, a missing column, or a broken line
            of JSON. The message names the file and the place in it.
        ImportError: a format whose package is not installed.

    Example:

    ```python
    for text in read_texts(["first document", "second document"]):
        print(text)
    ```
    """
    return (piece.text for piece in read_pieces(source, column))


def read_pieces(source: Source, column: str | None = None) -> Iterator[Piece]:
    """The texts of a source as `Piece(text, ends_document)`; see `read_texts`.

    Example:

    ```python
    pieces = list(read_pieces(["first document", "second document"]))
    ```
    """
    empty = True
    for piece in _read(source, column or "text"):
        empty = empty and not piece.text
        yield piece
    if empty:
        raise ValueError(f"There is no text in {_name(source)}: it is empty.")


def source_files(source: Source) -> list[Path] | None:
    """The files that a source reads, or `None` if it is not on this disk."""
    if not isinstance(source, str | os.PathLike) or str(source).startswith(("hf:", "builtin:")):
        return None
    path, suffixes = Path(source), (*TEXT_SUFFIXES, *_TABLES)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()]
        if not files:
            raise FileNotFoundError(
                f"There are no files with the suffixes {', '.join(suffixes)} in the folder {path}. "
                f"For other text files, give a glob such as {str(path / '**' / '*.py')!r}."
            )
        return sorted(files)
    files = [Path(name) for name in glob.glob(str(source), recursive=True) if os.path.isfile(name)]
    if not files:
        what = "No file matches the glob" if glob.has_magic(str(source)) else "There is no file or folder"
        raise FileNotFoundError(f"{what} {str(source)!r}. To use a string as text, put it in a list: [text].")
    return sorted(files)


def source_fingerprint(source: Source, column: str | None = None) -> str | None:
    """Changes when the source does; `None` for an iterator, which cannot be looked at without using it up."""
    if (files := source_files(source)) is not None:
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        identity = json.dumps([stats, column])
    elif isinstance(source, str):
        identity = json.dumps([source, column, sys.version])
    elif isinstance(source, list | tuple):
        identity = json.dumps(source)
    else:
        return None
    return hashlib.sha256(identity.encode()).hexdigest()


def _read(source: Source, column: str) -> Iterator[Piece]:
    if (files := source_files(source)) is not None:
        for path in files:
            if path.suffix.lower() in _TABLES:
                yield from _read_table(path, column)
            else:
                yield from _read_text_file(path)
    elif not isinstance(source, str | os.PathLike):
        for text in source:
            if not isinstance(text, str):
                raise ValueError(
                    "An iterable source must hold strings, one for each document. "
                    f"Received: {text!r} of type {type(text).__name__}"
                )
            yield Piece(text, True)
    elif (name := str(source)) == "builtin:pydoc":
        from kerasllm.data.pydoc_corpus import read_pydoc

        yield from (Piece(text, True) for text in read_pydoc())
    elif name.startswith("hf:"):
        yield from _read_table(name, column)
    else:
        raise ValueError(f"The only built-in source is 'builtin:pydoc'. Received: {name!r}")


def _read_table(table: str | Path, column: str) -> Iterator[Piece]:
    for place, row in read_rows(table, (column,)):
        if not isinstance(row[column], str | None):
            raise not_text(place, column, row[column])
        yield Piece(row[column] or "", True)


def _read_text_file(path: Path) -> Iterator[Piece]:
    text = ""
    for chunk in _decode(path):
        text += chunk
        while len(text) > PIECE_CHARACTERS:
            cut = _cut(text[:PIECE_CHARACTERS])
            yield Piece(text[:cut], False)
            text = text[cut:]
    if text:
        yield Piece(text, True)


def _cut(text: str) -> int:
    """Where to cut: before the last run of white space.

    No token reaches over that place in GPT-2's splitting of words (white space goes with the word after it),
    in WordPiece or in Unigram, so the pieces give the tokens of the whole. Without white space: at the end.
    """
    end = max(text.rfind(" "), text.rfind("\n"))
    return len(text[: max(end, 0)].rstrip()) or len(text)


def _decode(path: Path) -> Iterator[str]:
    """A UTF-8 file in pieces; a byte order mark is dropped, line ends are kept as they are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open(path, "rb") as file:
        while True:
            data = file.read(PIECE_CHARACTERS)
            if (position := data.find(b"\0")) >= 0:
                raise ValueError(
                    f"{path} is not a text file: there is a NUL byte at offset {offset + position}. "
                    "Expected UTF-8 text."
                )
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 text: {error.reason} at byte offset "
                    f"{offset - pending + error.start}. Convert it, for example: iconv -f latin1 -t utf-8"
                ) from None
            if text:
                yield text if offset else text.removeprefix("\ufeff")
            if not data:
                return
            offset += len(data)


def _lines(path: Path) -> Iterator[str]:
    rest = ""
    for chunk in _decode(path):
        *lines, rest = (rest + chunk).split("\n")
        yield from (line + "\n" for line in lines)
        if len(rest) > LINE_CHARACTERS:
            raise ValueError(f"{path} has a line longer than {LINE_CHARACTERS:,} characters: is it a table of lines?")
    if rest:
        yield rest


def read_rows(table: str | os.PathLike, columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """The rows of a table, one after the other, each with its place in the table for messages.

    Args:
        table: a `.jsonl`, `.csv` or `.parquet` file, or `"hf:NAME:SPLIT"`.
        columns: the columns that each row must have; rows may have others, too. Values are as the table has them.

    Raises:
        ValueError: a missing column, or a table that cannot be read; see `read_texts`.

    Example:

    ```python
    rows = [row["text"] for place, row in read_rows("examples.jsonl", ["text"])]
    ```
    """
    if str(table).startswith("hf:"):
        return _hugging_face_rows(str(table), columns)
    path = Path(table)
    if path.suffix.lower() not in _TABLES:
        raise ValueError(f"A table is a file that ends with {', '.join(_TABLES)}. Received: {path}")
    return _TABLES[path.suffix.lower()](path, columns)


def not_text(place: str, column: str, value: object) -> ValueError:
    """The error that says that a row's value is not text."""
    return ValueError(
        f"{place}: the column {column!r} must hold text. Received: {value!r} of type {type(value).__name__}"
    )


def _jsonl_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{place} must be a JSON object. Received: {line.strip()[:80]}")
        _check_columns(columns, row, place)
        yield place, row


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    csv.field_size_limit(LINE_CHARACTERS)
    reader = csv.DictReader(_lines(path))
    try:
        if reader.fieldnames is not None:
            _check_columns(columns, reader.fieldnames, path)
        for row in reader:
            yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError("Reading Parquet needs pyarrow: pip install 'kerasllm[data]'") from None
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged or is not a Parquet file: {error}") from None
    with file:
        _check_columns(columns, file.schema_arrow.names, path)
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=list(dict.fromkeys(columns)) or None):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def _hugging_face_rows(name: str, columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    try:
        import datasets
    except ImportError:
        raise ImportError("Hugging Face datasets need: pip install 'kerasllm[data]'") from None
    _, dataset, split, *_ = [*name.split(":"), "train"]
    try:
        rows = iter(datasets.load_dataset(dataset, split=split or "train", streaming=True))
        first = next(rows, None)
    except Exception as error:
        raise ValueError(
            f"Could not open the Hugging Face dataset {dataset!r}, split {split!r}. Its name is wrong, or "
            "the network is not there; a downloaded copy can be given as a path. "
            f"({type(error).__name__}: {error})"
        ) from error
    for row in () if first is None else itertools.chain([first], rows):
        _check_columns(columns, row, name)
        yield name, row


def _check_columns(columns: Sequence[str], present: Iterable[str], place: object) -> None:
    for column in columns:
        if column not in present:
            which = "which holds the text with column" if len(columns) == 1 else "which hold the texts with columns"
            raise ValueError(
                f"{place} has no column {column!r}. It has: {', '.join(map(str, present))}. Say {which}=..."
            )


def _name(source: Source) -> str:
    return repr(str(source)) if isinstance(source, str | os.PathLike) else f"this {type(source).__name__}"


_TABLES = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
