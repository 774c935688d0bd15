import csv
import json

import pytest

from kerasllm.data import tasks, text_files
from kerasllm.data.pairs import read_pairs

pytestmark = pytest.mark.one_backend

PAIRS = [("3rd of May", '05-03, "ISO"'), ("two\nlines, naïve ☃", "zwei"), ("", "empty source")]


def write_csv(path, pairs, columns=("source", "target")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", *columns], *(("7", *pair) for pair in pairs)])


def write_jsonl(path, pairs, columns=("source", "target")):
    rows = [{"id": 7} | dict(zip(columns, pair)) for pair in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_parquet(path, pairs, columns=("source", "target")):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {"id": [7] * len(pairs)} | dict(zip(columns, map(list, zip(*pairs))))
    parquet.write_table(pyarrow.table(table), path)


TABLES = {".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet}


@pytest.mark.parametrize("suffix", TABLES)
def test_tables(suffix, tmp_path):
    path = tmp_path / f"table{suffix}"
    TABLES[suffix](path, PAIRS)
    assert read_pairs(path) == read_pairs(str(path)) == PAIRS
    assert read_pairs(path, columns=["target", "source"]) == [pair[::-1] for pair in PAIRS]
    assert read_pairs(path, columns=("target", "target")) == [(target, target) for _, target in PAIRS]
    TABLES[suffix](path, PAIRS, columns=("text", "label"))
    assert read_pairs(path) == read_pairs(path, columns=("text", "label")) == PAIRS
    with pytest.raises(ValueError, match=r"no column 'target'. It has: id, text, label. .*columns="):
        read_pairs(path, columns=("text", "target"))
    TABLES[suffix](path, PAIRS, columns=("a", "label"))
    expected = (
        rf"table{suffix}.* columns 'source' and 'target', or the columns 'text' and 'label'. It has: id, a, label"
    )
    with pytest.raises(ValueError, match=expected):
        read_pairs(path)


def test_lists_of_files_folders_and_globs(tmp_path):
    write_csv(tmp_path / "a.csv", PAIRS[:1])
    write_jsonl(tmp_path / "b.jsonl", PAIRS[1:])
    assert read_pairs([tmp_path / "b.jsonl", str(tmp_path / "a.csv")]) == PAIRS[1:] + PAIRS[:1]
    assert read_pairs(tmp_path) == read_pairs(str(tmp_path / "*.*")) == PAIRS


def test_iterables_of_pairs():
    assert read_pairs(PAIRS) == read_pairs(iter(PAIRS)) == read_pairs([list(pair) for pair in PAIRS]) == PAIRS
    for item in (("a",), ("a", "b", "c"), ("a", 1), ("a", None), 3, {"source": "a"}, b"ab"):
        with pytest.raises(ValueError, match=r"pairs of strings.* Received: .* at index 1"):
            read_pairs([("a", "b"), item])


@pytest.mark.parametrize("part", ["train", "validation"])
def test_builtin_tasks(part):
    suffix = "" if part == "train" else ":validation"
    count = 50_000 if part == "train" else 1_000
    assert read_pairs("builtin:dates" + suffix) == tasks.dates(count, part=part)
    assert read_pairs("builtin:number-words" + suffix) == tasks.number_words(count, part=part)
    assert read_pairs("builtin:source-lines" + suffix) == tasks.source_lines(part)
    assert read_pairs("builtin:source-lines-marked" + suffix) == tasks.source_lines(part, keep_marks=True)
    assert read_pairs(f"builtin:docstrings:{part}") == tasks.docstring_pairs(part)


@pytest.mark.parametrize("name", ["builtin:pydoc", "builtin:dates:test", "builtin:dates:train:5", "builtin:"])
def test_unknown_builtin_tasks_are_told_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"builtin:dates, builtin:number-words, .*':validation'.* Received: '{name}'"):
        read_pairs(name)


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*nowhere\.csv'"):
        read_pairs(tmp_path / "nowhere.csv")
    for name, text in (("a.csv", ""), ("b.csv", "source,target\n"), ("a.jsonl", ""), ("b.jsonl", "\n\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"no pairs in this source.* Received: .*{name}"):
            read_pairs(tmp_path / name)
    with pytest.raises(ValueError, match=r"no pairs in this source.* Received: \[\]"):
        read_pairs([])
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"ends with \.jsonl, .*\.parquet. Received: .*a\.txt"):
        read_pairs(tmp_path / "a.txt")


@pytest.mark.parametrize("columns", ["ab", ("source",), ("a", "b", "c"), (0, 1)])
def test_two_columns_are_named(columns):
    with pytest.raises(ValueError, match=r"names of two columns. Received: "):
        read_pairs(PAIRS, columns=columns)


@pytest.mark.parametrize(
    "value, name",
    [(0.5, "0.5 of type float"), (True, "True of type bool"), (None, "None of type NoneType"), (["a"], "of type list")],
)
def test_values_that_are_not_text(value, name, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [("a", "b"), ("c", value)])
    with pytest.raises(
        ValueError, match=rf"rows\.jsonl, line 2: the column 'target' must hold text. Received: .*{name}"
    ):
        read_pairs(path)
    if not isinstance(value, list):
        write_parquet(tmp_path / "rows.parquet", [("a", value)] * 2)
        with pytest.raises(ValueError, match=rf"rows\.parquet, row 1: the column 'target' .*{name}"):
            read_pairs(tmp_path / "rows.parquet")


def test_broken_files_are_named_with_the_place(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("source,target\na,b\nonly a source\n")
    with pytest.raises(
        ValueError, match=r"rows\.csv, line 3: the header has 2 columns \(source, target\), and this row 1"
    ):
        read_pairs(path)
    path.write_bytes("source,target\nnaïve,b\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"rows\.csv is not UTF-8.* byte offset 16"):
        read_pairs(path)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"source": "a", "target": "b"}\n{"source": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not JSON"):
        read_pairs(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 1 is not JSON"):
        read_pairs(path)


def test_lines_and_fields_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "READ_BYTES", 100)
    monkeypatch.setattr(text_files, "LINE_CHARACTERS", 1000)
    write_jsonl(tmp_path / "rows.jsonl", [("a" * 5000, "b")])
    with pytest.raises(ValueError, match=r"rows\.jsonl has a line longer than 1,000 characters"):
        read_pairs(tmp_path / "rows.jsonl")
    # A quote that is never closed makes one field of all lines after it.
    (tmp_path / "rows.csv").write_text('source,target\n"a,b\n' + "c,d\n" * 1000)
    with pytest.raises(ValueError, match=r"rows\.csv, line \d+ is not CSV: field larger"):
        read_pairs(tmp_path / "rows.csv")
