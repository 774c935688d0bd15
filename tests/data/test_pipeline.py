import json

import numpy as np
import pytest

import kerasllm.data
from kerasllm.data import pipeline
from kerasllm.data.pipeline import from_text
from kerasllm.objectives import OBJECTIVES
from kerasllm.tokenizers import Tokenizer

pytestmark = pytest.mark.one_backend

BYTES = Tokenizer.train("any", kind="byte")
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 40


def test_the_split_of_tiny_shakespeare_is_nanogpts(shakespeare):
    text = shakespeare.read_text()
    tokenizer = Tokenizer.train(text, kind="char")
    train, validation = from_text(str(shakespeare), tokenizer, sequence_length=64, batch_size=12)
    assert (len(train.shards), len(validation.shards)) == (1_003_854, 111_540)
    cut = int(len(text) * 0.9)
    assert tokenizer.decode(train.shards.read(cut - 20, cut)) == text[cut - 20 : cut]
    assert tokenizer.decode(validation.shards.read(0, 20)) == text[cut : cut + 20]
    assert tokenizer.decode(validation.shards.read(111_530, 111_540)) == text[-10:]
    assert train.tokens_per_batch == 768
    assert train.bytes_per_token == 1.0
    x, y = train[5]
    assert tokenizer.decode(x["token_ids"][0])[1:] == tokenizer.decode(y[0])[:-1]
    assert x["token_ids"].shape == y.shape == (12, 64)


def test_documents_are_split_between_documents():
    documents = [f"document {i} " * (1 + i % 3) for i in range(50)]
    train, validation = from_text(
        documents, BYTES, sequence_length=64, batch_size=2, validation_fraction=0.2, packing="documents"
    )
    in_train, in_validation = len(train.shards.document_offsets), len(validation.shards.document_offsets)
    assert in_train + in_validation == 50
    assert abs(len(validation.shards) / (len(train.shards) + len(validation.shards)) - 0.2) < 0.02
    first = validation.shards.read(0, len(documents[in_train]))
    assert BYTES.decode(first) == documents[in_train]
    x, y, weight = train[0]
    assert set(x) == {"token_ids", "document_ids", "positions"}
    assert weight.shape == y.shape == (2, 64)


def test_no_validation():
    train, validation = from_text([TEXT], BYTES, sequence_length=16, validation_fraction=0)
    assert validation is None
    assert len(train.shards) == len(TEXT) + 1


def test_validation_keeps_its_order_and_training_does_not():
    train, validation = from_text([TEXT], BYTES, sequence_length=16, batch_size=4)
    assert train.shuffle and not validation.shuffle
    ordered, _ = from_text([TEXT], BYTES, sequence_length=16, batch_size=4, shuffle=False)
    x, y = ordered[0]
    assert BYTES.decode(x["token_ids"].ravel()) == TEXT[:64]
    assert not np.array_equal(train[0][1], y)
    again, _ = from_text([TEXT], BYTES, sequence_length=16, batch_size=4)
    other, _ = from_text([TEXT], BYTES, sequence_length=16, batch_size=4, seed=1)
    assert np.array_equal(train[0][1], again[0][1])
    assert not np.array_equal(train[0][1], other[0][1])


def test_shards_are_cached(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT)
    in_memory, _ = from_text(tmp_path / "a.txt", BYTES, sequence_length=16)
    on_disk, _ = from_text(tmp_path / "a.txt", BYTES, sequence_length=16, cache_dir=tmp_path / "cache")
    assert np.array_equal(in_memory[3][1], on_disk[3][1])
    (directory,) = (tmp_path / "cache").iterdir()
    assert json.loads((directory / "manifest.json").read_text())["tokenizer"] == BYTES.fingerprint

    other = Tokenizer.train(TEXT, vocabulary_size=260)
    from_text(tmp_path / "a.txt", other, sequence_length=16, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_large_files_go_to_the_cache_by_themselves(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT)
    monkeypatch.setattr(pipeline, "MEMORY_BYTES", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    from_text(tmp_path / "a.txt", BYTES, sequence_length=16)
    (directory,) = (tmp_path / "xdg" / "kerasllm").iterdir()
    shard = directory / "shard-00000.bin"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"shard-00000\.bin was changed"):
        from_text(tmp_path / "a.txt", BYTES, sequence_length=16)


def test_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": TEXT}) + "\n")
    train, _ = from_text(tmp_path / "a.jsonl", BYTES, sequence_length=16, column="body", validation_fraction=0)
    assert len(train.shards) == len(TEXT) + 1


def test_clear_errors():
    for options, message in [
        ({"objective": "mask"}, "`objective` must be one of causal, masked.*Received: objective='mask'"),
        ({"objective": "masked"}, r"needs a mask token.*special_tokens=\[\.\.\., \"\[MASK\]\"\]"),
        ({"objective": "span"}, "needs sentinels.*<extra_id_0>"),
        ({"validation_fraction": 1.0}, r"in \[0, 1\).*validation_fraction=1.0"),
        ({"validation_fraction": -0.1}, r"validation_fraction=-0.1"),
        ({"validation_fraction": 0.99}, "training part: The text has 18 tokens, and a sequence of 32 needs"),
        (
            {"sequence_length": 5000},
            "training part: The text has 1620 tokens, and a sequence of 5000 needs.*5001",
        ),
        ({"validation_fraction": 1e-9}, "validation part: The text has 1 tokens"),
        ({"sequence_length": 0}, "sequence_length=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1000}, "fewer than a batch of 1000"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_text([TEXT], BYTES, **{"sequence_length": 32, **options})


def test_every_objective_by_name():
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"<extra_id_{i}>" for i in range(9))]
    special += ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    tokenizer = Tokenizer.train(TEXT, kind="byte", special_tokens=special)
    for name in OBJECTIVES:
        train, validation = from_text([TEXT], tokenizer, objective=name, sequence_length=32, batch_size=4)
        for dataset in (train, validation):
            for x, y, *weights in dataset:
                length = {"encoder_token_ids": 32} if name == "span" else {"token_ids": 32}
                assert {key: x[key].shape for key in length} == {key: (4, n) for key, n in length.items()}
                targets, *rest = (y["next_sentence"],) if name == "next_sentence" else (y, *weights)
                assert len(targets) == 4 and all(w.shape == targets.shape for w in rest)


def test_an_objective_of_ones_own():
    train, _ = from_text([TEXT], BYTES, objective=lambda rows: (rows.tokens, rows.keys), sequence_length=16)
    assert train[0][0].shape == (16, 17) and train[0][1].dtype == np.uint64


def test_one_document_cannot_be_split_between_documents():
    train, validation = from_text([TEXT], BYTES, sequence_length=32, packing="documents")
    assert len(train.shards) + len(validation.shards) == len(TEXT) + 1


def test_names_are_loaded_on_use():
    assert kerasllm.data.from_text is from_text
    assert set(kerasllm.data.__all__) <= set(dir(kerasllm.data))
    for name in kerasllm.data.__all__:
        assert getattr(kerasllm.data, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kerasllm.data.nothing
