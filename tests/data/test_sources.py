import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasllm.data import sources
from kerasllm.data.sources import Piece, read_pieces, read_texts, source_fingerprint
from kerasllm.tokenizers import Tokenizer

pytestmark = pytest.mark.one_backend

DOCUMENTS = ['First, "quoted"\nand on a second line.', "Zweites Dokument: naïve ☃", "third"]


def write_csv(path, documents, column="text"):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["id", column], *([str(i), text] for i, text in enumerate(documents))])


def write_jsonl(path, documents, column="text"):
    path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in documents), "utf-8")


def write_parquet(path, documents, column="text"):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"id": list(range(len(documents))), column: documents}), path)


TABLES = {".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet}


@pytest.mark.parametrize("suffix", TABLES)
def test_tables(suffix, tmp_path):
    path = tmp_path / f"table{suffix}"
    TABLES[suffix](path, DOCUMENTS)
    assert list(read_pieces(path)) == [Piece(text, True) for text in DOCUMENTS]
    TABLES[suffix](path, DOCUMENTS, column="body")
    assert list(read_texts(str(path), column="body")) == DOCUMENTS
    with pytest.raises(ValueError, match=rf"table{suffix}.* no column 'text'. It has: id, body"):
        list(read_texts(path))


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("line\r\nnaïve ☃\n".encode())
    assert list(read_pieces(path)) == [Piece("line\r\nnaïve ☃\n", True)]


def test_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("hello".encode("utf-8-sig"))
    assert list(read_texts(path)) == ["hello"]


@pytest.mark.parametrize("piece_characters", [1, 7, 50])
def test_pieces_are_the_text_and_their_tokens_the_whole_texts_tokens(piece_characters, tmp_path, monkeypatch):
    text = "First Citizen:\n\nBefore we  proceed  \n any further,\thear me speak. " * 4 + "☃" * 60 + " end\n"
    path = tmp_path / "long.txt"
    path.write_text(text, "utf-8")
    monkeypatch.setattr(sources, "PIECE_CHARACTERS", piece_characters)
    pieces = list(read_pieces(path))
    assert len(pieces) > len(text) // (2 * piece_characters + 20)
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    if piece_characters == 50:
        text = text.replace("☃", "")
        path.write_text(text)
        for kind in ("char", "byte", "bpe", "wordpiece", "unigram"):
            size = {"bpe": 300, "wordpiece": 100, "unigram": 40}.get(kind)
            tokenizer = Tokenizer.train(text, kind=kind, vocabulary_size=size)
            in_pieces = [token for piece in read_texts(path) for token in tokenizer.encode(piece)]
            assert in_pieces == tokenizer.encode(text), kind


@given(text=st.text(alphabet="ab .\n\r\té☃", max_size=60))
def test_gpt2_splits_words_in_pieces_as_in_the_whole(text):
    tokenizers = pytest.importorskip("tokenizers")
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    cut = sources._cut(text)
    words = [word for part in (text[:cut], text[cut:]) for word, _ in split(part)]
    assert words == [word for word, _ in split(text)]


def test_folder_and_glob(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("one")
    (tmp_path / "a.md").write_text("two")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "image.png").write_bytes(b"\0\1")
    write_jsonl(tmp_path / "c.jsonl", ["three", "four"])
    assert list(read_texts(tmp_path)) == ["two", "one", "three", "four"]
    assert list(read_texts(str(tmp_path / "**" / "*.txt"))) == ["one"]
    with pytest.raises(FileNotFoundError, match="No file matches the glob"):
        list(read_texts(str(tmp_path / "*.rst")))
    with pytest.raises(FileNotFoundError, match=r"suffixes \.txt.*give a glob"):
        (tmp_path / "d").mkdir()
        list(read_texts(tmp_path / "d"))


def test_iterables_are_documents_and_are_drawn_one_by_one():
    assert list(read_pieces(DOCUMENTS)) == [Piece(text, True) for text in DOCUMENTS]
    drawn = []

    def documents():
        for text in DOCUMENTS:
            drawn.append(text)
            yield text

    assert next(read_texts(documents())) == DOCUMENTS[0]
    assert drawn == DOCUMENTS[:1]
    with pytest.raises(ValueError, match="of type int"):
        list(read_texts(["a", 3]))


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*nowhere\.txt'.*goes into a list"):
        list(read_texts(str(tmp_path / "nowhere.txt")))
    for name in ("empty.txt", "empty.csv", "empty.jsonl"):
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=rf"no text in .*{name}.*empty"):
            list(read_texts(tmp_path / name))
    for nothing in ([], [""]):
        with pytest.raises(ValueError, match="no text in this list"):
            list(read_texts(nothing))
    with pytest.raises(ValueError, match="only built-in source is 'builtin:pydoc'"):
        list(read_texts("builtin:bible"))


@pytest.mark.parametrize("position", [0, 5, 300_000])
def test_binary_files_are_named_with_the_offset(position, tmp_path, monkeypatch):
    path = tmp_path / "binary.txt"
    text = b"\xc3\xa9" * 200_000
    path.write_bytes(text[:position] + b"\0" + text[position:])
    with pytest.raises(ValueError, match=rf"binary\.txt is not a text file.* NUL byte at offset {position}\."):
        list(read_texts(path))
    position += position % 2
    path.write_bytes(text[:position] + b"\xff" + text[position:])
    with pytest.raises(ValueError, match=rf"binary\.txt is not UTF-8.* byte offset {position}\."):
        list(read_texts(path))
    path.write_bytes(text[:3])
    with pytest.raises(ValueError, match=r"byte offset 2\."):
        list(read_texts(path))


def test_broken_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3 is not JSON"):
        list(read_texts(path))
    path.write_text('{"text": "a"}\n[1]\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 must be a JSON object. Received: \[1\]"):
        list(read_texts(path))
    path.write_text('{"text": "a"}\n{"body": "a"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 has no column 'text'. It has: body"):
        list(read_texts(path))
    path.write_text('{"text": 7}\n')
    with pytest.raises(ValueError, match=r"line 1: the column 'text' must hold text. Received: 7 of type int"):
        list(read_texts(path))
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no")
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"rows\.parquet is damaged"):
        list(read_texts(tmp_path / "rows.parquet"))


def test_long_lines_in_tables(tmp_path):
    text = "word " * 200_000
    for suffix in (".csv", ".jsonl"):
        TABLES[suffix](tmp_path / f"long{suffix}", [text])
        assert list(read_texts(tmp_path / f"long{suffix}")) == [text]


def test_hugging_face_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        if name == "nobody/nothing":
            raise ConnectionError("offline")
        return [{"text": text, "body": "other"} for text in DOCUMENTS]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_texts("hf:some/corpus")) == DOCUMENTS
    assert list(read_texts("hf:some/corpus:test", column="body")) == ["other"] * 3
    assert asked == [("some/corpus", "train", True), ("some/corpus", "test", True)]
    with pytest.raises(ValueError, match=r"'nobody/nothing', split 'train'.*network.*offline"):
        list(read_texts("hf:nobody/nothing"))
    with pytest.raises(ValueError, match=r"no column 'story'\. It has: text, body"):
        list(read_texts("hf:some/corpus", column="story"))


@pytest.mark.parametrize("module, source", [("datasets", "hf:name"), ("pyarrow", "a.parquet")])
def test_packages_that_are_not_installed_are_named(module, source, tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"kerasllm\[data\]"):
        list(read_texts(source))


def test_pydoc_corpus_is_english_and_always_the_same():
    texts = list(read_texts("builtin:pydoc"))
    corpus = "\n".join(texts)
    assert 1e6 < len(corpus) < 3e6
    assert corpus.count(" the ") > 10_000
    assert ">>>" not in corpus
    assert sum(character.isalpha() or character in " \n" for character in corpus) > 0.9 * len(corpus)
    code = """
import sys
from kerasllm.data import read_texts
corpus = "\\n".join(read_texts("builtin:pydoc"))
assert not {"keras", "antigravity", "tkinter"} & set(sys.modules)
print(corpus == sys.stdin.read())
"""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code],
        input=corpus,
        cwd=root,
        capture_output=True,
        encoding="utf-8",
    )
    assert run.stdout == "True\n", run.stderr


def test_fingerprints_change_with_the_source(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = source_fingerprint(path)
    assert first == source_fingerprint(str(path)) != source_fingerprint(path, "body")
    path.write_text("three")
    assert source_fingerprint(path) != first
    assert source_fingerprint(["a"]) == source_fingerprint(["a"]) != source_fingerprint(["b"])
    assert source_fingerprint(iter(["a"])) is None
