"""Talking with a model: turns that read only what is new, a history that fits, answers that end."""

import keras
import pytest

from kerasllm import CausalLM, Sampler, Seq2SeqLM, Tokenizer, TransformerConfig
from kerasllm.chat.session import Chat, answers
from kerasllm.chat.tokens import encode_prompt
from kerasllm.generation.slots import Slots


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    tokenizer = Tokenizer.train("<|user|>", kind="byte")
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
    return CausalLM(TransformerConfig(tokenizer.vocabulary_size, 128, **sizes), tokenizer)


def said(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_a_turn_reads_only_what_is_new_and_answers_as_from_the_beginning(model, monkeypatch):
    read, lengths = Slots.read, []
    monkeypatch.setattr(
        Slots, "read", lambda self, rows: (lengths.extend(map(len, rows.values())), read(self, rows))[1]
    )
    chat = Chat(model, max_new_tokens=8)
    first = "".join(chat.send("Hello there"))
    prompt = encode_prompt(model.tokenizer, chat.messages[:1])
    assert lengths == [len(prompt) - 1]
    second = "".join(chat.send("More"))
    whole = encode_prompt(model.tokenizer, chat.messages[:3])
    assert chat.messages == said("Hello there", first, "More", second)
    # Whole blocks of the first turn are found again; what is read is the rest.
    assert lengths[1] <= len(whole) - 1 - (len(prompt) // 16) * 16
    histories = [chat.messages[:1], chat.messages[:3]]
    assert answers(model, histories, max_new_tokens=8) == [first, second]


def test_an_answer_ends_with_its_turn(model):
    end = model.tokenizer.end_token_id
    prompt = encode_prompt(model.tokenizer, said("Hi"))
    always_end = answers(model, [said("Hi")], max_new_tokens=8, logit_bias={end: 1000.0})
    assert always_end == [""]
    assert len(model.generate(prompt, 8, stop_token_ids=[], logit_bias={end: 1000.0}, strip_prompt=True)) == 8


def test_the_oldest_turns_are_left_out_and_the_system_message_stays(model):
    chat = Chat(model, system="Be brief.", max_new_tokens=4, sampler=Sampler(top_k=5, seed=3))
    dropped = []
    for number in range(4):
        "".join(chat.send(f"Message number {number}"))
        dropped.append(chat.dropped)
        prompt, count = chat._fit([*chat.messages[: 2 * number + 1], *said(f"Message number {number}")])
        assert count == dropped[-1] and len(prompt) + 4 <= 128
        text = model.tokenizer.decode(prompt)
        assert "Be brief." in text and f"Message number {number}" in text
    assert dropped[0] == 0 and dropped == sorted(dropped) and dropped[-1] > 0 and not any(n % 2 for n in dropped)
    assert len(chat.messages) == 9
    before = list(chat.messages)
    with pytest.raises(ValueError, match=r"too long: \d+ tokens .*context of 128 has room for 124"):
        chat.send("x" * 120)
    assert chat.messages == before
    chat.reset()
    assert chat.messages == before[:1] and chat.dropped == 0


def test_an_answer_that_is_not_read_to_its_end_is_kept_as_far_as_it_came(model):
    chat = Chat(model, max_new_tokens=30)
    stream = chat.send("Hi")
    assert chat.messages == []
    piece = next(stream)
    stream.close()
    assert chat.messages[1]["content"].startswith(piece) and not chat.engine.running
    assert len(chat.messages[1]["content"]) < 30
    assert isinstance("".join(chat.send("Go on")), str) and len(chat.messages) == 4


def test_a_saved_model_keeps_its_template(model, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("an earlier one")
    model.tokenizer.chat_template = "{{ messages[0].content }}"
    model.save_to_preset(tmp_path)
    model.tokenizer.chat_template = None
    assert CausalLM.from_preset(tmp_path).tokenizer.chat_template == "{{ messages[0].content }}"


def test_what_cannot_chat_is_refused(model):
    with pytest.raises(ValueError, match="no tokenizer"):
        Chat(CausalLM(TransformerConfig(30, 16, 1, 2, 8)))
    config = TransformerConfig.from_name("t5_tiny", vocabulary_size=30, num_layers=1, num_encoder_layers=1)
    with pytest.raises(ValueError, match="without an encoder"):
        Chat(Seq2SeqLM(config))
    with pytest.raises(ValueError, match="max_new_tokens"):
        Chat(model, max_new_tokens=0)
    with pytest.raises(ValueError, match="content must be text"):
        Chat(model, system=3)
