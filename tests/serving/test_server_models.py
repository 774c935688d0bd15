"""What the server's process makes of requests, beside what the models say themselves."""

import base64

import keras
import numpy as np
import pytest
from tiny_bert import SIZES, TEXTS, TOKENIZER, config

from kerasllm import CausalLM, MaskedLM, Seq2SeqLM, TextClassifier, TextEmbedder, Tokenizer, TransformerConfig
from kerasllm.serving.errors import Refused
from kerasllm.serving.protocol import Message
from kerasllm.serving.reader import Reader
from kerasllm.serving.worker import Worker, task_in
from kerasllm.serving.writer import Writer
from kerasllm.tuning import LoRA

pytestmark = pytest.mark.one_backend

END = 256
BYTES = Tokenizer.train("a", kind="byte", special_tokens=["</s>"])


def asked(number, *prompts, **changes):
    return {
        "id": number,
        "prompts": list(prompts),
        "max_tokens": 12,
        "n": 1,
        "seed": 0,
        "sampler": {"temperature": 0.0},
        "logit_bias": {str(END): -100.0},
        "form": None,
        "log_probs": None,
        "echo": False,
        "stop": [],
        "adapter": "",
        "stream": False,
        **changes,
    }


def answers(writer, *messages):
    """The whole texts of each request, run together."""
    for message in messages:
        writer.submit(writer.prepare(message))
    texts, ended = {}, set()
    while not writer.idle:
        for event in writer.step():
            assert event["id"] not in ended and "error" not in event
            if "done" in event:
                ended.add(event["id"])
                continue
            row = texts.setdefault(event["id"], {})
            row[event["index"]] = row.get(event["index"], "") + event["text"]
    assert ended == {message["id"] for message in messages}
    return [list(dict(sorted(texts[message["id"]].items())).values()) for message in messages]


def test_a_model_with_an_encoder_answers_as_generate_does():
    keras.utils.set_random_seed(0)
    sizes = {**SIZES, "initializer_range": 0.5, "num_encoder_layers": 1}
    model = Seq2SeqLM(TransformerConfig(BYTES.vocabulary_size, 32, **sizes), BYTES)
    writer = Writer(model, slots=2)
    sources = ["one", "a longer one", "three"]
    expected = model.generate(sources, 12, logit_bias={END: -100.0})
    assert answers(writer, asked(1, *sources[:2]), asked(2, sources[2])) == [expected[:2], expected[2:]]
    with pytest.raises(Refused, match="32 tokens"):
        writer.prepare(asked(3, "a" * 40))


def test_keys_and_values_in_eight_bits(tmp_path):
    keras.utils.set_random_seed(0)
    model = CausalLM(TransformerConfig(BYTES.vocabulary_size, 64, **SIZES), BYTES)
    model.save_to_preset(tmp_path)
    writer = Worker(str(tmp_path), print, slots=1, cache_dtype="int8").writer
    assert {keras.backend.standardize_dtype(x.dtype) for pair in writer.engine.slots.cache for x in pair} == {"int8"}
    model.cache_dtype = "int8"
    assert answers(writer, asked(1, "abc")) == [
        [model.generate("abc", 12, strip_prompt=True, logit_bias={END: -100.0})]
    ]


def test_adapters_are_models_of_their_own_and_come_and_go_between_requests(tmp_path):
    keras.utils.set_random_seed(0)
    model = CausalLM(TransformerConfig(BYTES.vocabulary_size, 64, **SIZES), BYTES)
    plain = model.generate("abc", 12, strip_prompt=True, logit_bias={END: -100.0})
    model.add_adapter("poems", LoRA(rank=2))
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, seed=1))
    adapted = model.generate("abc", 12, strip_prompt=True, logit_bias={END: -100.0})
    assert adapted != plain
    model.save_adapter(tmp_path / "poems", "poems")
    model.delete_adapter("poems")
    writer = Writer(model, slots=2)
    assert answers(writer, asked(1, "abc")) == [[plain]]
    results = []
    writer.submit(writer.prepare(asked(2, "abc")))
    writer.submit(lambda: results.append(writer.load_adapter("poems", str(tmp_path / "poems"))))
    mixed = [asked(3 + i, "abc", adapter="poems" if i % 2 else "") for i in range(4)]
    job = answers_after(writer, mixed)
    assert results == [{"limit": 64, "slots": 2, "adapters": ["poems"]}]
    assert job == [[plain], [adapted], [plain], [adapted]]
    writer.submit(lambda: results.append(writer.unload_adapter("poems")))
    assert answers(writer, asked(9, "abc")) == [[plain]] and results[-1]["adapters"] == []
    writer.submit(writer.prepare(asked(10, "abc", adapter="poems")))
    assert writer.step()[0]["error"]["status"] == 404


def answers_after(writer, messages):
    while writer.running or not callable(writer.waiting[0]):
        writer.step()
    return answers(writer, *messages)


def test_a_text_is_scored_whatever_the_context_and_a_failure_is_one_requests_own(monkeypatch):
    keras.utils.set_random_seed(0)
    model = CausalLM(TransformerConfig(BYTES.vocabulary_size, 48, **SIZES), BYTES)  # 48: no power of two
    writer, text = Writer(model, slots=1), "whether 'tis nobler in the mind to suffer 48"
    job = asked(1, text, echo=True, log_probs=1, max_tokens=1)
    writer.submit(writer.prepare(job))
    events = writer.step()
    [expected] = model.score([text])
    assert [token["log_prob"] for token in events[0]["tokens"][1:]] == pytest.approx(expected.tolist(), abs=1e-4)

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("kerasllm.serving.writer.prompt_log_probs", fail)
    writer.submit(writer.prepare({**job, "id": 2}))
    assert writer.step()[0]["error"]["status"] == 500
    expected = model.generate(["abc"], 12, strip_prompt=True, logit_bias={END: -100.0})
    assert answers(writer, asked(3, "abc")) == [expected]


def test_a_job_that_is_cancelled_leaves_nothing_behind():
    keras.utils.set_random_seed(0)
    writer = Writer(CausalLM(TransformerConfig(BYTES.vocabulary_size, 64, **SIZES), BYTES), slots=2)
    for number in (1, 2):
        writer.submit(writer.prepare(asked(number, "abc", n=3)))
    writer.most = 1
    writer.step()
    assert writer.stats["running"] == 2 and writer.stats["waiting"] == 4
    for number in (2, 1, 7):
        writer.cancel(number)
    assert writer.idle and writer.stats["running"] == writer.stats["waiting"] == writer.stats["cache_use"] == 0


def test_readers_answer_as_their_models_do(tmp_path):
    keras.utils.set_random_seed(0)
    classifier = TextClassifier(config(), TOKENIZER, labels=["sad", "glad", "so"])
    rows = [TEXTS[0], (TEXTS[1], TEXTS[3]), TEXTS[2]]
    result = Reader(classifier).answer([row if isinstance(row, str) else list(row) for row in rows])
    expected = classifier.classify(rows)
    assert [one["label"] for one in result["answers"]] == [one.label for one in expected]
    for one, other in zip(result["answers"], expected):
        assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-5)
    assert result["tokens"] == classifier.as_inputs(rows)["padding_mask"].sum()

    embedder = TextEmbedder(config(), TOKENIZER)
    vectors = [np.frombuffer(base64.b64decode(v), "<f4") for v in Reader(embedder).answer(TEXTS)["vectors"]]
    np.testing.assert_allclose(vectors, embedder.predict(TEXTS, verbose=0), atol=1e-5)

    masked = MaskedLM(config(), TOKENIZER)
    text = "to [MASK] or not to [MASK]"
    [found] = Reader(masked).answer([text], top_k=3)["answers"]
    for mask, other in zip(found, masked.predict_masks(text, 3)):
        assert [one["token"] for one in mask] == [one.token for one in other]
        assert [one["probability"] for one in mask] == pytest.approx([one.probability for one in other], abs=1e-5)
    with pytest.raises(Refused, match=r"no \[MASK\]"):
        Reader(masked).answer(["nothing hidden"])

    for model, task in ((classifier, "TextClassifier"), (embedder, "TextEmbedder"), (masked, "MaskedLM")):
        model.save_to_preset(tmp_path / task)
        assert task_in(tmp_path / task) == task


def test_calls_of_tools_are_read_by_a_template_that_writes_them():
    call = {"id": "7", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    said = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "3", "tool_call_id": "7"}]
    messages = [Message.model_validate(each).plain for each in said]
    tokenizer = Tokenizer.train("a", kind="byte", special_tokens=["</s>"])
    writer = Writer(CausalLM(TransformerConfig(tokenizer.vocabulary_size, 128, **SIZES), tokenizer), slots=1)
    with pytest.raises(Refused, match="tool_calls"):
        writer.prepare(asked(1, messages=messages))
    tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments.a + 1 }}"
        "{% endfor %}{{ m.tool_call_id }}{{ m.content }};{% endfor %}"
    )
    [prompt] = writer.prepare(asked(2, messages=messages)).prompts
    assert tokenizer.decode(prompt) == "add2;73;"
