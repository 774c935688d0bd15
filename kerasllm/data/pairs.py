"""Where pairs of texts come from: tables with two columns, Python iterables, built-in tasks."""

import os
from collections.abc import Iterable, Iterator, Sequence

from kerasllm.data import tasks
from kerasllm.data.sources import refuse_tables, source_files
from kerasllm.data.tables import not_text, read_rows

Pair = tuple[str, str]
PairSource = str | os.PathLike | Iterable[Pair] | Iterable[str | os.PathLike]

COLUMNS = (("source", "target"), ("text", "label"))  # of tables, where none are given: the first two that are there
_NUM_GENERATED = {"train": 50_000, "validation": 1_000}


def read_pairs(source: PairSource, columns: Sequence[str] | None = None) -> list[Pair]:
    """The pairs of texts of a source: a text and its target, a text and its label, two texts that belong together.

    Args:
        source: one of

            - a table, `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`, perhaps compressed (`.gz`, `.bz2`,
              `.xz`, `.zst`), a folder or a glob of such files, a list of them, or `"hf:NAME"` or `"hf:NAME:SPLIT"` (a
              Hugging Face dataset): one pair a row;
            - `"builtin:dates"` or `"builtin:number-words"` (50,000 pairs), `"builtin:source-lines"`,
              `"builtin:source-lines-marked"` (with the `#` of comments) or `"builtin:docstrings"`, with
              `":validation"` after it for the held-out part (1,000 dates or numbers); see `kerasllm.data.tasks`;
            - an iterable of 2-tuples of strings.
        columns: the two columns of a table; `source` and `target`, or else `text` and `label`, when left out. A whole
            number in the second becomes its digits.

    Returns:
        List of `(source, target)`.

    Raises:
        FileNotFoundError: there is no such path, or no file matches.
        ValueError: a missing column, a value that is not text, a source without pairs, a file that is not UTF-8 text
            or is damaged. The message names the file and the place in it.
        ImportError: a format whose package is not installed.

    Example:

    ```python
    pairs = read_pairs([("3rd of May 2021", "2021-05-03")])
    held_out = read_pairs("builtin:dates:validation")
    ```
    """
    choices = COLUMNS if columns is None else (columns,)
    for names in choices:
        if isinstance(names, str) or len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise ValueError(f"`columns` must be the names of two columns. Received: {columns!r}")
    pairs = list(_read(source, choices))
    if not pairs:
        raise ValueError(f"There are no pairs in this source: it is empty. Received: {source!r}")
    return pairs


def _read(source: PairSource, choices: Sequence[Sequence[str]]) -> Iterator[Pair]:
    if not isinstance(source, str | os.PathLike):
        refuse_tables(source, 'list(zip(table["text"], table["label"]))')
        for index, item in enumerate(source):
            if isinstance(item, str | os.PathLike):
                yield from _read(item, choices)
            else:
                yield _check_pair(index, item)
    elif str(source).startswith("builtin:"):
        yield from _read_builtin(str(source))
    else:
        tables = [source] if str(source).startswith("hf:") else source_files(source)
        for table in tables:
            for place, row in read_rows(table, *choices, remedy="Say which hold the texts with columns=..."):
                first, second = next(names for names in choices if row.keys() >= set(names))
                yield _text(row[first], first, place), _text(_digits(row[second]), second, place)


def _check_pair(index: int, item: object) -> Pair:
    if not isinstance(item, tuple | list) or len(item) != 2 or not all(isinstance(text, str) for text in item):
        raise ValueError(
            "An iterable source must hold pairs of strings, or the paths of tables. "
            f"Received: {item!r} of type {type(item).__name__} at index {index}"
        )
    return tuple(item)


def _digits(value: object) -> object:
    """Labels are often numbers, which CSV has as text, and other tables as they are."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(value: object, column: str, place: str) -> str:
    # An empty cell of CSV is empty text; null is a hole in the table.
    if not isinstance(value, str):
        raise not_text(place, column, value)
    return value


def _read_builtin(name: str) -> list[Pair]:
    _, task, *rest = name.split(":")
    part = rest[0] if rest else "train"
    if task not in _BUILTIN or part not in _NUM_GENERATED or len(rest) > 1:
        raise ValueError(
            f"The built-in pairs are {', '.join(f'builtin:{task}' for task in _BUILTIN)}, each with nothing, ':train' "
            f"or ':validation' after it. Received: {name!r}"
        )
    return _BUILTIN[task](part)


_BUILTIN = {
    "dates": lambda part: tasks.dates(_NUM_GENERATED[part], part=part),
    "number-words": lambda part: tasks.number_words(_NUM_GENERATED[part], part=part),
    "source-lines": tasks.source_lines,
    "source-lines-marked": lambda part: tasks.source_lines(part, keep_marks=True),
    "docstrings": tasks.docstring_pairs,
}
