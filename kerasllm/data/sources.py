"""Where text comes from: files, folders, globs, tables, Hugging Face datasets, Python iterables.

Everything is read as a stream of pieces, in bounded memory. A piece is a document, or part of a long text
file.
"""

import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kerasllm.data.tables import TABLES, check_encodable, is_table, not_text, read_rows
from kerasllm.data.text_files import decode, kind_of

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
# Of the files in a folder. There a .json is more often a setting than a table: such a file is named by itself.
FOLDER_SUFFIXES = (*TEXT_SUFFIXES, *(suffix for suffix in TABLES if suffix != ".json"))
PIECE_CHARACTERS = 1 << 18

Source = str | os.PathLike | Iterable[str | os.PathLike]


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

            - a table, `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet` (one document a row; those without
              text are left out), or any other file, as text (one document). Text is UTF-8, or what a byte order mark
              says, and may be compressed: `.gz`, `.bz2`, `.xz`, `.zst`;
            - a folder: all files in it with those suffixes but `.json`, `.txt`, `.text`, `.md` and `.rst`, at any
              depth, in sorted order;
            - a glob such as `"books/**/*.txt"`;
            - `"hf:NAME"` or `"hf:NAME:SPLIT"`: a Hugging Face dataset, streamed;
            - `"builtin:pydoc"`: the documentation of the running Python;
            - an iterable of strings: each is a document, and never a path; or of `pathlib.Path`s.
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
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = [file for file in path.rglob("*") if kind_of(file) in FOLDER_SUFFIXES and file.is_file()]
        if not files:
            raise FileNotFoundError(
                f"There are no files with the suffixes {', '.join(FOLDER_SUFFIXES)} in the folder {path}. "
                f"For other text files, give a glob such as {str(path / '**' / '*.py')!r}."
            )
        return sorted(files)
    files = [Path(name) for name in glob.glob(str(source), recursive=True) if os.path.isfile(name)]
    if not files:
        what = "No file matches the glob" if glob.has_magic(str(source)) else "There is no file or folder"
        raise FileNotFoundError(f"{what} {str(source)!r}. In Python, text itself goes into a list: [text].")
    return sorted(files)


def source_fingerprint(source: Source, column: str | None = None) -> str | None:
    """Changes when the source does; `None` for an iterator, which cannot be looked at without using it up."""
    if (files := source_files(source)) is not None:
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        identity = json.dumps([stats, column])
    elif isinstance(source, str):
        identity = json.dumps([source, column, sys.version])
    elif isinstance(source, list | tuple):
        items = [item if isinstance(item, str) else source_fingerprint(item, column) for item in source]
        identity = json.dumps([items, column])
    else:
        return None
    return hashlib.sha256(identity.encode()).hexdigest()


def refuse_tables(source: object, remedy: str) -> None:
    """Raises ValueError for a dict, or a table of another library: iterated, they give the names of their columns."""
    if isinstance(source, Mapping) or hasattr(source, "columns") or hasattr(source, "column_names"):
        raise ValueError(f"A table in memory is given by its columns: {remedy}. Received: a {type(source).__name__}")


def _read(source: Source, column: str) -> Iterator[Piece]:
    if (files := source_files(source)) is not None:
        for path in files:
            yield from _read_table(path, column) if is_table(path) else _read_text_file(path)
    elif not isinstance(source, str | os.PathLike):
        refuse_tables(source, 'list(table["text"])')
        yield from _read_items(source, column)
    elif (name := str(source)) == "builtin:pydoc":
        from kerasllm.data.pydoc_corpus import read_pydoc

        yield from (Piece(text, True) for text in read_pydoc())
    elif name.startswith("hf:"):
        yield from _read_table(name, column)
    else:
        raise ValueError(f"The only built-in source is 'builtin:pydoc'. Received: {name!r}")


def _read_items(source: Iterable, column: str) -> Iterator[Piece]:
    for number, item in enumerate(source):
        if isinstance(item, os.PathLike):
            yield from _read(item, column)
            continue
        if not isinstance(item, str):
            raise ValueError(
                "An iterable source must hold strings, one for each document, or paths. "
                f"Received: {item!r} of type {type(item).__name__}"
            )
        if number == 0 and _is_file(item):
            raise ValueError(
                f"Each string of an iterable is a document, and this one is the name of a file: {item!r}. Give "
                "files as pathlib.Path, or as one glob."
            )
        check_encodable(item, f"Document {number}")
        yield Piece(item, True)


def _is_file(text: str) -> bool:
    return len(text) < 4096 and "\n" not in text and "\0" not in text and os.path.isfile(text)


def _read_table(table: str | Path, column: str) -> Iterator[Piece]:
    for place, row in read_rows(table, (column,), remedy="Say which holds the text with column=..."):
        if not isinstance(row[column], str | None):
            raise not_text(place, column, row[column])
        if row[column]:
            yield Piece(row[column], True)


def _read_text_file(path: Path) -> Iterator[Piece]:
    text = ""
    for chunk in decode(path):
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


def _name(source: Source) -> str:
    return repr(str(source)) if isinstance(source, str | os.PathLike) else f"this {type(source).__name__}"
