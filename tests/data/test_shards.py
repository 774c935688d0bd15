import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasllm.data import shards as shards_module
from kerasllm.data.shards import TokenShards, build_shards, open_shards, tokenize
from kerasllm.tokenizers import Tokenizer

pytestmark = pytest.mark.one_backend

BYTES = Tokenizer.train("any", kind="byte")
DOCUMENTS = ["first document", "second ☃", "", "third<|endoftext|>"]
END = BYTES.end_token_id


def expected_tokens(documents=DOCUMENTS):
    return [token for text in documents if text for token in [*text.encode(), END]]


def expected_offsets(documents=DOCUMENTS):
    return np.cumsum([0, *[len(text.encode()) + 1 for text in documents if text]])[:-1].tolist()


@pytest.fixture
def built(tmp_path):
    build_shards(DOCUMENTS, BYTES, tmp_path / "shards", shard_tokens=10)
    return tmp_path / "shards"


@pytest.mark.parametrize("shard_tokens", [1, 7, 10, 1000])
def test_shards_hold_every_token_and_document_start(shard_tokens, tmp_path):
    built = build_shards(DOCUMENTS, BYTES, tmp_path / "shards", shard_tokens=shard_tokens)
    for shards in (built, open_shards(tmp_path / "shards"), tokenize(DOCUMENTS, BYTES)):
        assert shards.read(0, len(shards)).tolist() == expected_tokens()
        assert shards.document_offsets.tolist() == expected_offsets()
        assert shards.bytes_per_token == sum(len(text.encode()) for text in DOCUMENTS) / len(expected_tokens())
        assert shards.tokenizer_fingerprint == BYTES.fingerprint
    sizes = [path.stat().st_size for path in sorted((tmp_path / "shards").glob("*.bin"))]
    assert sum(sizes) == 2 * len(expected_tokens()) and set(sizes[:-1]) <= {2 * shard_tokens}


def test_text_cannot_end_its_document(built):
    tokens = open_shards(built).read(0, len(expected_tokens()))
    assert (tokens == END).sum() == sum(bool(text) for text in DOCUMENTS)


def test_manifest(built):
    manifest = json.loads((built / "manifest.json").read_text())
    assert (manifest["tokens"], manifest["documents"]) == (len(expected_tokens()), 3)
    assert manifest["dtype"] == "<u2"
    assert set(manifest["files"]) == {path.name for path in built.iterdir()} - {"manifest.json"}


def test_large_vocabularies_take_four_bytes(tmp_path):
    tokenizer = Tokenizer.train("".join(map(chr, range(0x10000, 0x10000 + 65_537))), kind="char")
    text = chr(0x10000 + 65_536) + chr(0x10000)
    shards = build_shards([text], tokenizer, tmp_path / "shards")
    assert shards.read(0, 2).tolist() == [65_536, 0]
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["dtype"] == "<u4"


def test_a_long_file_is_one_document_however_it_is_cut(tmp_path, monkeypatch):
    text = "To be, or not to be:\n\n that is  the question\n" * 50
    (tmp_path / "a.txt").write_text(text)
    tokenizer = Tokenizer.train(text, vocabulary_size=300)
    monkeypatch.setattr("kerasllm.data.sources.PIECE_CHARACTERS", 100)
    monkeypatch.setattr(shards_module, "ENCODE_CHARACTERS", 250)
    shards = build_shards(tmp_path / "a.txt", tokenizer, tmp_path / "shards")
    assert shards.read(0, len(shards)).tolist() == [*tokenizer.encode(text), tokenizer.end_token_id]
    assert shards.document_offsets.tolist() == [0]


def test_built_once(tmp_path, monkeypatch):
    path, directory = tmp_path / "a.txt", tmp_path / "shards"
    path.write_text("some text")
    build_shards(path, BYTES, directory)
    built = (directory / "manifest.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "read_pieces", None)  # reading the source again would fail
        assert len(build_shards(path, BYTES, directory)) == 10
    assert (directory / "manifest.json").stat().st_mtime_ns == built

    other = Tokenizer.train("some text", kind="bpe", vocabulary_size=258)
    assert build_shards(path, other, directory).tokenizer_fingerprint == other.fingerprint
    path.write_text("another text")
    assert len(build_shards(path, BYTES, directory)) == 13
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.txt", "shards"]


def test_an_iterator_is_always_read(tmp_path):
    assert len(build_shards(iter(["abc"]), BYTES, tmp_path / "shards")) == 4
    assert len(build_shards(iter(["abcdef"]), BYTES, tmp_path / "shards")) == 7


def test_other_peoples_files_are_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files than token shards"):
        build_shards(["text"], BYTES, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["shard-00001.bin", "shard-00000.idx", "shard-00003.bin"])
def test_tampered_files_are_named(name, built):
    contents = (built / name).read_bytes()
    (built / name).write_bytes(bytes([contents[0] ^ 1]) + contents[1:])
    with pytest.raises(ValueError, match=rf"{name} was changed: its SHA-256"):
        open_shards(built)
    with pytest.raises(ValueError, match=rf"{name} was changed"):
        build_shards(DOCUMENTS, BYTES, built)
    (built / name).write_bytes(contents[:-1])
    with pytest.raises(ValueError, match=rf"{name} has {len(contents) - 1} bytes .* says {len(contents)}"):
        open_shards(built, verify=False)
    (built / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        open_shards(built, verify=False)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"dtype": "<f8"},
        {"bytes": "many"},
        {"files": None},
        {"files": {"../../secret.bin": {}, "../../secret.idx": {}}},
        {"files": {"shard-00000.bin": {}, "shard-00000.idx": {}}},
    ],
)
def test_damaged_manifests(change, built):
    manifest = json.loads((built / "manifest.json").read_text())
    (built / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        open_shards(built)


def test_broken_missing_and_newer_manifests(built, tmp_path):
    manifest = json.loads((built / "manifest.json").read_text())
    (built / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(ValueError, match=r"reads version 1\. Received: 99"):
        open_shards(built)
    (built / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        open_shards(built)
    with pytest.raises(FileNotFoundError, match=r"no token shards in .*: manifest\.json is missing"):
        open_shards(tmp_path)


def test_another_tokenizer_is_refused(built):
    with pytest.raises(ValueError, match="made by another tokenizer"):
        open_shards(built, tokenizer=Tokenizer.train("abc", kind="char"))


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_full_disk_leaves_nothing_half_written(fail_at, rebuild, tmp_path, monkeypatch):
    if rebuild:
        build_shards(["what was there before"], BYTES, tmp_path / "shards")
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"Could not build token shards in .*No space left.*MB free") as raised:
        build_shards(["some text"], BYTES, tmp_path / "shards")
    assert raised.value.errno == errno.ENOSPC
    assert len(calls) == fail_at
    assert [item.name for item in tmp_path.iterdir()] == (["shards"] if rebuild else [])
    if rebuild:
        assert len(open_shards(tmp_path / "shards")) == 22


def test_a_bad_source_leaves_nothing(tmp_path):
    for source, error in [(["text", 3], "of type int"), ([""], "no text"), (["a\ud800"], "surrogate")]:
        with pytest.raises(ValueError, match=error):
            build_shards(source, BYTES, tmp_path / "shards")
    wordpiece = Tokenizer.train("some text", kind="wordpiece")
    with pytest.raises(ValueError, match="only white space"):
        build_shards([" \n"], wordpiece, tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []


@given(
    documents=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6),
    cuts=st.lists(st.integers(0, 36), max_size=3),
    data=st.data(),
)
def test_read_and_slice_are_those_of_one_list(documents, cuts, data):
    tokens = [token for document in documents for token in document]
    offsets = np.cumsum([0, *[len(document) for document in documents if document]])[:-1]
    arrays = np.split(np.array(tokens, np.uint16), sorted(min(cut, len(tokens)) for cut in cuts))
    shards = TokenShards(arrays, offsets)
    assert TokenShards.from_arrays(documents).document_offsets.tolist() == (offsets.tolist() if tokens else [])
    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    assert shards.read(start, stop).tolist() == tokens[start:stop]
    part = shards.slice(start, stop)
    assert part.read(0, len(part)).tolist() == tokens[start:stop]
    assert part.document_offsets.tolist() == [
        place - start for place in range(start, stop) if place == start or place in offsets
    ]
    with pytest.raises(IndexError, match="Expected a range"):
        shards.read(start, len(tokens) + 1)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    megabytes = 30
    line = "It was the best of times, it was the worst of times, it was the age of wisdom.\n"
    with open(tmp_path / "big.txt", "w") as file:
        for _ in range(megabytes):
            file.write(line * (1_000_000 // len(line)))
    code = """
import resource, sys
from kerasllm.data import build_shards
from kerasllm.tokenizers import Tokenizer
tokenizer = Tokenizer.train("It was the best of times, it was the worst", vocabulary_size=270)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shards = build_shards("big.txt", tokenizer, "shards", shard_tokens=5_000_000)
print(len(shards), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    tokens, grown_megabytes = map(int, run.stdout.split())
    assert tokens > megabytes * 200_000
    assert grown_megabytes < 300  # the tokens alone, as a list of Python integers, would take more


def test_several_builders_at_once_leave_one_whole_directory(tmp_path):
    source, directory = tmp_path / "a.txt", tmp_path / "shards"
    source.write_text("some text " * 1000)
    for again in range(3):
        with ThreadPoolExecutor(4) as pool:
            built = list(pool.map(lambda _: build_shards(source, BYTES, directory), range(4)))
        assert len({len(shards) for shards in built}) == 1
        assert len(open_shards(directory)) == len(built[0])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "shards"]
        source.write_text("other text " * (1000 + again))
