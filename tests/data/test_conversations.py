"""Conversations from tables and lists: read, checked, cut, packed."""

import json

import numpy as np
import pytest

from kerasllm.data import from_conversations, read_conversations
from kerasllm.data.tasks import conversations
from kerasllm.tokenizers import Tokenizer

pytestmark = pytest.mark.one_backend

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train("<|user|>", kind="byte")


def test_tables_and_lists_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"messages": TALK, "id": 3}) + "\n\n" + json.dumps({"prompt": "Hi", "response": "Ho"}) + "\n"
    )
    (tmp_path / "b.csv").write_text('prompt,response\n"Hi","Ho"\n')
    assert read_conversations(tmp_path) == [TALK] * 3
    assert read_conversations([TALK, {"messages": TALK}, {"prompt": "Hi", "response": "Ho"}]) == [TALK] * 3
    assert read_conversations([tmp_path / "a.jsonl", TALK]) == [TALK] * 3
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"messages": [TALK], "other": [1]}), tmp_path / "c.parquet")
    assert read_conversations(tmp_path / "c.parquet") == [TALK]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": TALK[:1]}, "no assistant turn.*Roles: user"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 1: the role must be one of.*'bot'"),
        ({"messages": [*TALK, {"role": "assistant", "content": None}]}, "message 3: the content must be text"),
        ({"messages": "Hi"}, "must be a list of messages"),
        ({"prompt": "Hi", "response": 3}, "'response' must hold text"),
        ({"prompt": "Hi"}, "'messages', or the columns 'prompt' and 'response'. It has: prompt"),
    ],
)
def test_a_bad_row_is_named_with_its_line(row, message, tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=f"talks.jsonl, line 2.*{message}"):
        read_conversations(path)
    with pytest.raises(ValueError, match=f"Conversation 1.*{message}"):
        read_conversations([TALK, row])


def test_sources_without_conversations_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no conversations"):
        read_conversations(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="builtin:conversations"):
        read_conversations("builtin:talks")


def test_cut_responses_are_counted(tokenizer):
    long = [*TALK, {"role": "user", "content": "x" * 30}, {"role": "assistant", "content": "y" * 30}]
    hopeless = [{"role": "user", "content": "x" * 60}, TALK[1]]
    with pytest.warns(UserWarning, match="60 tokens cuts responses: 2 in 3 conversations, of which 1 are"):
        train, _ = from_conversations(
            [TALK, long, hopeless], tokenizer, sequence_length=60, batch_size=2, validation_fraction=0
        )
    _, y, weights = train[0]
    assert sorted(bytes(row[w > 0].astype("uint8")[:2].tolist()) for row, w in zip(y, weights)) == [b"Ho", b"Ho"]
    with pytest.raises(ValueError, match="1 in 1 conversations, of which 1 are dropped"):
        from_conversations([hopeless], tokenizer, sequence_length=60, validation_fraction=0)
    with pytest.raises(ValueError, match="too few examples"):
        from_conversations([TALK], tokenizer)


def test_all_that_fits_is_learned_once(tokenizer):
    """Packed or not, in one pass every answer is a target once, and conversations do not see one another."""
    talks = conversations(40, seed=1)
    train, validation = from_conversations(talks, tokenizer, sequence_length=400, batch_size=4, validation_fraction=0.2)
    expected = ["".join(m["content"] + "\0" for m in talk if m["role"] == "assistant") for talk in talks]
    for dataset, part in ((train, expected[:32]), (validation, expected[32:])):
        found = []
        for x, y, weights in dataset:
            present = x["document_ids"] > 0
            begins = np.diff(x["document_ids"], prepend=0) != 0
            np.testing.assert_array_equal(begins[present], (x["positions"] == 0)[present])
            for row in range(len(y)):
                for document in range(1, x["document_ids"][row].max() + 1):
                    chosen = (x["document_ids"][row] == document) & (weights[row] > 0)
                    found.append("".join("\0" if i == tokenizer.end_token_id else chr(i) for i in y[row][chosen]))
        assert sorted(found) == sorted(part)


def test_built_in_conversations_keep_a_part_back():
    talks = conversations(400, seed=0)
    assert talks[:50] == conversations(50, seed=0) and talks[:50] != conversations(50, seed=1)
    assert read_conversations("builtin:conversations:validation") == conversations(200, part="validation")
    assert {len(talk) for talk in talks} == {2, 4}

    def answered(talks):
        return {talk[1]["content"] for talk in talks if len(talk[1]["content"]) > 2}

    assert not answered(talks) & answered(conversations(200, part="validation"))
    assert all(m["role"] == ("user", "assistant")[i % 2] for talk in talks for i, m in enumerate(talk))
    for talk in talks:
        if len(talk) == 4 and "first digit" in talk[2]["content"]:
            assert talk[1]["content"].startswith(talk[3]["content"])
