"""Rows of tables: CSV, TSV, JSON Lines, JSON, Parquet, Hugging Face datasets; each with its place, for messages."""

import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kerasllm.data import text_files
from kerasllm.data.text_files import decode, is_compressed, kind_of, lines

DELIMITERS = ",;\t|"
_SPACE = re.compile(r"\s*")

Row = tuple[str, dict]
Choices = Sequence[Sequence[str]]


class MissingColumn(ValueError):
    """A table lacks columns.

    Attributes:
        found: the sentence that says which, and which there are, without what to do about it.
    """

    def __init__(self, found: str, remedy: str):
        super().__init__(f"{found} {remedy}".strip())
        self.found = found


def read_rows(
    table: str | os.PathLike, *choices: Sequence[str], optional: Sequence[str] = (), remedy: str = ""
) -> Iterator[Row]:
    """The rows of a table, one after the other, each with its place in the table for messages.

    Args:
        table: a file whose name ends with one of `TABLES`, perhaps compressed, or `"hf:NAME:SPLIT"`.
        choices: the columns that each row must have; of several sets, it must have one.
        optional: columns that it may have beside them. Values are as the table has them, in CSV text.
        remedy: what the error of a missing column says to do.

    Raises:
        MissingColumn: a row has none of the sets of columns.
        ValueError: a table that cannot be read: a broken line, a row with more or fewer cells than the header, two
            wanted columns of one name. The message names the file and the line.

    Example:

    ```python
    texts = [row["text"] for place, row in read_rows("examples.jsonl", ["text"])]
    ```
    """
    if str(table).startswith("hf:"):
        return _hugging_face_rows(str(table), choices, remedy)
    path = Path(table)
    if not is_table(path):
        raise ValueError(f"A table is a file that ends with {', '.join(TABLES)}. Received: {path}")
    return TABLES[kind_of(path)](path, choices, optional, remedy)


def is_table(path: Path) -> bool:
    return kind_of(path) in TABLES


def not_text(place: str, column: str, value: object) -> ValueError:
    """The error that says that a row's value is not text."""
    return ValueError(
        f"{place}: the column {column!r} must hold text. Received: {value!r} of type {type(value).__name__}"
    )


def check_encodable(text: str, place: str) -> None:
    """Raises ValueError for text that has half of a surrogate pair, which is not a character."""
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} has half of a surrogate pair, {text[error.start]!a}, which is not a character. Write the whole "
            "pair, or leave it out."
        ) from None


# CSV ----------------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, choices: Choices, optional, remedy: str) -> Iterator[Row]:
    csv.field_size_limit(text_files.LINE_CHARACTERS)
    rest = enumerate(lines(path))
    blank, first = next(((number, line) for number, line in rest if line.strip()), (0, ""))
    if not first:
        return
    delimiter = "\t" if kind_of(path) == ".tsv" else _delimiter(first, choices)
    # Strict: a quote that is never closed would make one cell of all lines after it.
    reader = csv.reader(itertools.chain([first], (line for _, line in rest)), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        _check_names(_found(choices, header, path, remedy), header, path)
        for row in reader:
            place = f"{path}, line {blank + reader.line_num}"
            if row and len(row) != len(header):
                raise ValueError(
                    f"{place}: the header has {len(header)} columns ({', '.join(header)}), and this row {len(row)}. A "
                    f"cell with {delimiter!r} in it must be in double quotes."
                )
            if row:
                yield place, dict(zip(header, row))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {blank + reader.line_num} is not CSV: {error}. A cell that begins with a double quote "
            "ends with one, and has those in it doubled."
        ) from None


def _delimiter(header: str, choices: Choices) -> str:
    """The one with which the header has the columns; a comma if none does."""
    for delimiter in DELIMITERS:
        try:
            names = {name.strip() for name in next(csv.reader([header], delimiter=delimiter, strict=True))}
        except csv.Error:
            continue
        if any(names.issuperset(choice) for choice in choices):
            return delimiter
    return ","


# JSON ---------------------------------------------------------------------------------------------------------------


def _json_rows(path: Path, choices: Choices, optional, remedy: str) -> Iterator[Row]:
    """One object a line, or an array of objects, whatever the file is called."""
    rows = _array(path) if _Ahead(decode(path)).peek() == "[" else _json_lines(path)
    for place, text, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{place} must be a JSON object. Received: {text.strip()[:80]}")
        if "\\ud" in text or "\\uD" in text:  # the only way to spell half of a pair
            check_encodable(json.dumps(row, ensure_ascii=False), place)
        _found(choices, row, place, remedy)
        yield place, row


def _json_lines(path: Path) -> Iterator[tuple[str, str, object]]:
    hint = " A .json file holds an array of objects, or one object a line." if kind_of(path) == ".json" else ""
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place} is not JSON: {error}.{hint}") from None
            yield place, line, row


def _array(path: Path) -> Iterator[tuple[str, str, object]]:
    """The elements of an array, which may be larger than memory."""
    decoder, text, number = json.JSONDecoder(), _Ahead(decode(path)), 0
    while True:
        place = f"{path}, row {number + 1}"
        mark = text.next_mark()
        if number == 0 and text.peek() == "]":
            mark = text.next_mark()
        if mark == "]":
            if text.peek():
                raise ValueError(f"{path} goes on after the end of its array.")
            return
        if mark != (separator := "," if number else "["):
            raise ValueError(
                f"{place} is not JSON: expected {separator!r}, or the end of the array. Received: {mark!r}"
            )
        is_object = text.peek() == "{"
        while True:
            try:
                value, stop = decoder.raw_decode(text.text, text.position)
                break
            except (ValueError, RecursionError) as error:
                # An object that is cut off is read further. (Other values are refused as they are.)
                if not is_object or len(text.text) > text_files.LINE_CHARACTERS or not text.read():
                    raise ValueError(f"{place} is not JSON: {error}") from None
        number += 1
        yield place, text.text[text.position : stop], value
        text.position = stop


class _Ahead:
    """Text that is read as far as it is looked at."""

    def __init__(self, chunks: Iterator[str]):
        self.chunks, self.text, self.position = chunks, "", 0

    def read(self) -> bool:
        """Reads on, at least as much as is there, so that a long element is begun a few times only."""
        rest = self.text[self.position :]
        parts, length = [rest], 0
        for chunk in self.chunks:
            parts.append(chunk)
            length += len(chunk)
            if length >= len(rest):
                break
        self.text, self.position = "".join(parts), 0
        return length > 0

    def peek(self) -> str:
        """The next character that is not white space; nothing at the end."""
        while True:
            self.position = _SPACE.match(self.text, self.position).end()
            if self.position < len(self.text) or not self.read():
                return self.text[self.position : self.position + 1]

    def next_mark(self) -> str:
        mark = self.peek()
        self.position += len(mark)
        return mark


# Parquet and datasets -----------------------------------------------------------------------------------------------


def _parquet_rows(path: Path, choices: Choices, optional, remedy: str) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError("Reading Parquet needs pyarrow: pip install 'kerasllm[data]'") from None
    if is_compressed(path):
        raise ValueError(f"Parquet is compressed inside, and is read as it is: unpack {path} first.")
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged or is not a Parquet file: {error}") from None
    with file:
        names = file.schema_arrow.names
        wanted = [*_found(choices, names, path, remedy), *(name for name in optional if name in names)]
        _check_names(wanted, names, path)
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=list(dict.fromkeys(wanted))):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def _hugging_face_rows(name: str, choices: Choices, remedy: str) -> Iterator[Row]:
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
        _found(choices, row, name, remedy)
        yield name, row


# Columns ------------------------------------------------------------------------------------------------------------


def _found(choices: Choices, present: Iterable[str], place: object, remedy: str) -> Sequence[str]:
    """The first of the sets of columns that is there."""
    for choice in choices:
        if all(column in present for column in choice):
            return choice
    if len(choices) == 1:
        lacks = f"has no column {next(column for column in choices[0] if column not in present)!r}"
    else:
        lacks = f"must have {', or '.join(map(_named, choices))}"
    raise MissingColumn(f"{place} {lacks}. It has: {', '.join(map(str, present))}.", remedy)


def _named(columns: Sequence[str]) -> str:
    names = " and ".join(map(repr, columns))
    return f"a column {names}" if len(columns) == 1 else f"the columns {names}"


def _check_names(wanted: Iterable[str], names: Sequence[str], path: Path) -> None:
    for column in wanted:
        if names.count(column) > 1:
            raise ValueError(f"{path} has {names.count(column)} columns of the name {column!r}. Give them other names.")


TABLES = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
