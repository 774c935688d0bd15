"""Tables as people have them: read rightly, or refused with the file, the line and what to do."""

import bz2
import gzip
import json
import lzma
import re

import numpy as np
import pytest

from kerasllm.chat.tokens import encode_conversation
from kerasllm.data import read_conversations, read_pairs, read_texts, text_files
from kerasllm.tokenizers import Tokenizer

pytestmark = pytest.mark.one_backend

PAIRS = [("good, loved it", "pos"), ('said "no"', "neg"), ("naïve ☃ 😀", "neg")]
CSV = 'id,source,target\n1,"good, loved it",pos\n2,"said ""no""",neg\n3,naïve ☃ 😀,neg\n'
OBJECTS = [{"source": a, "target": b} for a, b in PAIRS]
JSONL = "".join(json.dumps(row) + "\n" for row in OBJECTS)

# Name of the file, its bytes.
READ = {
    "comma": ("a.csv", CSV.encode()),
    "semicolon": ("a.csv", CSV.replace(",", ";").replace("good;", "good,").encode()),
    "tab in .csv": ("a.csv", CSV.replace(",", "\t").replace("good\t", "good,").encode()),
    "bar": ("a.csv", CSV.replace(",", "|").replace("good|", "good,").encode()),
    "tab": ("a.tsv", CSV.replace(",", "\t").replace("good\t", "good,").encode()),
    "CRLF": ("a.csv", CSV.replace("\n", "\r\n").encode()),
    "no last line end": ("a.csv", CSV.rstrip("\n").encode()),
    "blank lines": ("a.csv", b"\n\n" + CSV.replace("\n", "\n\n").encode()),
    "spaces in the header": ("a.csv", CSV.replace("id,source,target", "id, source , target").encode()),
    "UTF-8 mark": ("a.csv", CSV.encode("utf-8-sig")),
    "UTF-16": ("a.csv", CSV.encode("utf-16")),
    "UTF-16 BE": ("a.csv", b"\xfe\xff" + CSV.encode("utf-16-be")),
    "UTF-32": ("a.jsonl", JSONL.encode("utf-32")),
    "JSON Lines": ("a.jsonl", JSONL.encode()),
    "ndjson": ("a.ndjson", JSONL.encode()),
    "lines in .json": ("a.json", JSONL.encode()),
    "array in .json": ("a.json", json.dumps(OBJECTS).encode()),
    "indented array": ("a.JSON", json.dumps(OBJECTS, indent=2, ensure_ascii=False).encode() + b"\n"),
    "array in .jsonl": ("a.jsonl", b"\n " + json.dumps(OBJECTS).encode()),
    "gzip": ("a.v2.csv.gz", gzip.compress(CSV.encode())),
    "bzip2": ("a.jsonl.bz2", bz2.compress(JSONL.encode())),
    "xz": ("a.json.xz", lzma.compress(json.dumps(OBJECTS).encode())),
}


@pytest.mark.parametrize("how", READ)
def test_read(how, tmp_path, monkeypatch):
    name, content = READ[how]
    (tmp_path / name).write_bytes(content)
    assert read_pairs(tmp_path / name) == PAIRS
    monkeypatch.setattr(text_files, "READ_BYTES", 5)  # Whatever is cut in the middle.
    assert read_pairs(str(tmp_path / name)) == PAIRS
    assert list(read_texts(tmp_path / name, "source")) == [text for text, _ in PAIRS]
    in_folder = FileNotFoundError if ".json" in name.lower() and "jsonl" not in name else None
    if in_folder:
        with pytest.raises(in_folder):
            read_pairs(tmp_path)
    else:
        assert read_pairs(tmp_path) == PAIRS


def test_zstandard(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.output_stream(str(tmp_path / "a.csv.zst"), compression="zstd") as file:
        file.write(CSV.encode())
    assert read_pairs(tmp_path / "a.csv.zst") == PAIRS
    (tmp_path / "b.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd no")
    with pytest.raises(ValueError, match=r"b\.txt\.zst is damaged"):
        list(read_texts(tmp_path / "b.txt.zst"))


def test_text_of_other_encodings(tmp_path):
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "a.txt").write_bytes("naïve ☃ 😀\r\n".encode(encoding))
        assert list(read_texts(tmp_path / "a.txt")) == ["naïve ☃ 😀\r\n"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some text"))
    assert list(read_texts(tmp_path / "a.txt.gz")) == ["some text"]


# Name of the file, its bytes, what the error says.
REFUSED = {
    "more cells": ("a.csv", b"source,target\na,b\ngood, loved it,pos\n", r"a\.csv, line 3: .* 2 columns .*this row 3"),
    "fewer cells": ("a.csv", b"source,target\na\n", r"a\.csv, line 2: .* 2 columns \(source, target\).*this row 1"),
    "more cells, tabs": ("a.tsv", b"source\ttarget\na\tb\tc\n", r"a\.tsv, line 2: .*'\\t' in it must be in double"),
    "open quote": ("a.csv", b'source,target\na,"b\nc,d\n', r"a\.csv, line 3 is not CSV: .*double quote"),
    "open quotes, tabs": ("a.tsv", b'source\ttarget\n"a\tb\n"c\td\n', r"a\.tsv, line 3 is not CSV"),
    "two of a name": ("a.csv", b"source,target,source\na,b,c\n", r"a\.csv has 2 columns of the name 'source'"),
    "header only": ("a.csv", b"source,target\n", "no pairs"),
    "blank": ("a.csv", b" \n\n", "no pairs"),
    "empty": ("a.json", b"", "no pairs"),
    "empty array": ("a.json", b" [ ] ", "no pairs"),
    "null": ("a.jsonl", b'{"source": "a", "target": null}', r"line 1: the column 'target' must hold text"),
    "NaN": ("a.jsonl", b'{"source": "a", "target": NaN}', r"line 1: the column 'target' must hold text.*nan"),
    "one object": (
        "a.json",
        b'{\n"data": []}',
        r"line 1 is not JSON: .*holds an array of objects, or one object a line",
    ),
    "object of lists": ("a.json", b'{"text": ["a"], "label": ["b"]}', "line 1: the column 'text' must hold text"),
    "array of strings": ("a.json", b'["a", "b"]', r"a\.json, row 1 must be a JSON object. Received: \"a\""),
    "array cut off": ("a.json", b'[{"source": "a", "target": "b"}', r"row 2 is not JSON: expected ','"),
    "element cut off": ("a.json", b'[{"source": "a", "target": "b"},{"sou', "row 2 is not JSON"),
    "after the array": ("a.json", b'[{"source": "a", "target": "b"}] x', r"a\.json goes on after the end"),
    "half a pair": (
        "a.jsonl",
        b'\n{"source": "\\ud83d", "target": "b"}',
        r"line 2 has half of a surrogate pair.*ud83d",
    ),
    "half, array": ("a.json", b'[{"source": "\\uDE00", "target": "b"}]', r"row 1 has half of a surrogate pair"),
    "UTF-16 unmarked": ("a.csv", CSV.encode("utf-16-le"), r"NUL byte at offset 1\..*iconv -f utf-16le"),
    "UTF-16 cut off": ("a.csv", CSV.encode("utf-16")[:-1], r"is not UTF-16 text: .* byte offset \d+"),
    "no gzip": ("a.csv.gz", CSV.encode(), r"a\.csv\.gz is damaged, or is not compressed as its name says"),
    "gzip cut off": ("a.csv.gz", gzip.compress(CSV.encode())[:-9], r"a\.csv\.gz is damaged"),
    "xz damaged": ("a.csv.xz", lzma.compress(CSV.encode())[:40], r"a\.csv\.xz is damaged"),
    "binary": ("a.csv", b"PK\x03\x04\0\0", "NUL byte"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_refused(how, tmp_path):
    name, content, message = REFUSED[how]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / name)


def test_texts_are_refused_as_pairs_are(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\ngood, loved it,pos\n")
    with pytest.raises(ValueError, match="line 2: the header has 2 columns"):
        list(read_texts(tmp_path / "a.csv"))


def test_rows_without_text_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": ""}\n{"text": "b"}\n')
    assert list(read_texts(tmp_path / "a.jsonl")) == ["a", "b"]


def test_whole_numbers_are_labels(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 12}\n')
    (tmp_path / "a.csv").write_text("text,label\na,0\nb,12\n")
    assert read_pairs(tmp_path / "a.jsonl") == read_pairs(tmp_path / "a.csv") == [("a", "0"), ("b", "12")]
    (tmp_path / "a.jsonl").write_text('{"text": 3, "label": 0}\n')
    with pytest.raises(ValueError, match="the column 'text' must hold text"):
        read_pairs(tmp_path / "a.jsonl")


class Frame(dict):
    """Like a DataFrame: iterated, it gives names."""

    columns = ("text", "label")


@pytest.mark.parametrize("table", [{"text": ["a"]}, Frame(text=["a"])], ids=["dict", "frame"])
@pytest.mark.parametrize("read", [lambda t: list(read_texts(t)), read_pairs, read_conversations])
def test_tables_in_memory_are_refused(read, table):
    with pytest.raises(ValueError, match=rf"given by its columns: .* Received: a {type(table).__name__}"):
        read(table)


def test_lists_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    assert list(read_texts([tmp_path / "b.txt", tmp_path / "a.txt", "three"])) == ["two", "one", "three"]
    for names in (["a.txt", "b.txt"], iter([str(tmp_path / "a.txt")])):
        with pytest.raises(ValueError, match=r"name of a file: .*a\.txt'.*pathlib\.Path"):
            list(read_texts(names))


def test_half_of_a_pair_in_a_list():
    with pytest.raises(ValueError, match="Document 1 has half of a surrogate pair"):
        list(read_texts(["a", "\ud83d"]))


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize("weight", [-1, 0.5, "0", True, float("nan"), [0]], ids=repr)
def test_a_weight_is_0_or_1(weight):
    with pytest.raises(ValueError, match=rf"message 2: the weight is 1 .*{re.escape(repr(weight))}"):
        read_conversations([[TALK[0], TALK[1] | {"weight": weight}]])


def test_an_answer_of_weight_0_is_not_learned(tmp_path):
    tokenizer = Tokenizer.train("<|user|>", kind="byte")
    talk = [*TALK, TALK[0], {"role": "assistant", "content": "He"}]
    ids, whole = encode_conversation(tokenizer, talk)
    block = "{% generation %}{{ m.content }}{% endgeneration %}"
    template = "{% for m in messages %}{% if m.role == 'assistant' %}" + block + "{% else %}Q{% endif %}{% endfor %}"
    for number, text in ((1, "Ho"), (3, "He")):
        weighted = [m | {"weight": int(i != number)} for i, m in enumerate(talk)]
        found, part = encode_conversation(tokenizer, weighted)
        np.testing.assert_array_equal(found, ids)
        assert text in tokenizer.decode(ids[whole & ~part]) and part.sum() * 2 == whole.sum()
        tokenizer.chat_template = template
        ids_of_blocks, part = encode_conversation(tokenizer, weighted)
        assert tokenizer.decode(ids_of_blocks[part]) == ("He" if number == 1 else "Ho")
        tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"nothing to learn.*assistant \(weight 0\)"):
        read_conversations([[TALK[0], TALK[1] | {"weight": 0}]])
    (tmp_path / "a.csv").write_text("prompt,response,weight\nHi,Ho,1\n")
    assert [m.get("weight") for m in read_conversations(tmp_path / "a.csv")[0]] == [None, 1]
    (tmp_path / "a.csv").write_text("prompt,response,weight\nHi,Ho,0\n")
    with pytest.raises(ValueError, match=r"line 2 has no assistant turn"):
        read_conversations(tmp_path / "a.csv")
