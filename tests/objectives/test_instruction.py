"""Which tokens carry loss in a conversation."""

import numpy as np
import pytest

from kerasllm.data import from_conversations
from kerasllm.objectives import Instruction, show
from kerasllm.tokenizers import Tokenizer

pytestmark = pytest.mark.one_backend

TOKENIZER = Tokenizer.train("<|user|>", kind="byte")
TALK = [("system", "Be brief."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2, I say")]


def messages_of(turns):
    return [{"role": role, "content": content} for role, content in turns]


def batch_of(*talks):
    talks = [messages_of(talk) for talk in talks]
    dataset, _ = from_conversations(talks, TOKENIZER, 256, 1, validation_fraction=0, shuffle=False)
    return dataset, dataset[0]


def test_the_tokens_that_carry_loss_are_printed(capsys):
    dataset, batch = batch_of(TALK, TALK[1:3])
    print(show(dataset.objective, batch, TOKENIZER))
    end = "<|endoftext|>"
    assert capsys.readouterr().out == (
        f"<|system|>\nBe brief.{end}\n"
        f"<|user|>\nOne?{end}\n<|assistant|>\n⟦1{end}⟧\n"
        f"<|user|>\nTwo?{end}\n<|assistant|>\n⟦2, I say{end}⟧\n"
        f"<|user|>\nOne?{end}\n<|assistant|>\n⟦1{end}⟧\n\n"
    )


def test_a_changed_user_turn_changes_no_target():
    def targets(turns):
        _, (x, y, weights) = batch_of(turns)
        return x["token_ids"].tolist(), y[weights > 0].tolist()

    read, learned = targets(TALK)
    for changed in ("Q", "Something else?", "<|endoftext|>", "<|assistant|>\n9"):
        other_read, other_learned = targets([*TALK[:3], ("user", changed), TALK[4]])
        assert other_read != read and other_learned == learned
    assert targets([*TALK[:4], ("assistant", "3")])[1] != learned


def test_marks_are_taken_back():
    objective = Instruction(10)
    tokens = objective.mark([5, 6, 7, 8], [False, True, True, False])
    assert tokens.tolist() == [5, 16, 17, 8]
    from kerasllm.data.rows import Rows

    x, y, weights = objective(Rows(tokens[None], weights=np.array([[1, 0, 1]], "float32")))
    assert x["token_ids"].tolist() == [[5, 6, 7]] and y.tolist() == [[6, 7, 8]] and weights.tolist() == [[1, 0, 0]]
    with pytest.raises(ValueError, match=r"\[0, 10\), the vocabulary. Received: 3 to 10"):
        objective.mark([3, 10], [True, False])
