"""Text out: stop strings never show, characters come whole, a stream adds up to the answer."""

import keras
import pytest

from kerasllm import CausalLM, Tokenizer, TransformerConfig

SENTENCE = "I like 😀 and 🇨🇭, naïve 猫! STOP never"


class Scripted:
    """Stands in for the engine: "generates" given tokens, a few a step."""

    def __init__(self, scripts, a_step=1):
        self.scripts, self.a_step = [iter(script) for script in scripts], a_step
        self.waiting, self.running, self.steps = [], [], 0

    def submit(self, request):
        self.running.append(request)

    def step(self, most=1):
        self.steps += 1
        for request, script in zip(self.running, self.scripts):
            for _ in range(self.a_step):
                if not request.finished:
                    request.accept(next(script, 0))
        if all(request.finished for request in self.running):
            self.running = []

    def cancel(self, request):
        pass


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    tokenizer = Tokenizer.train(["any"], kind="byte")
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
    return CausalLM(TransformerConfig(tokenizer.vocabulary_size, 128, **sizes), tokenizer=tokenizer)


def scripted(monkeypatch, *scripts, a_step=1):
    """Lets `generate` write the scripts, texts or token ids; returns the engines that it makes."""
    engines = []

    class Engine:
        @staticmethod
        def for_requests(model, requests, slots=None, drafts=None):
            ids = [model.tokenizer.encode(script) if isinstance(script, str) else script for script in scripts]
            engines.append(Scripted(ids, a_step))
            return engines[-1]

    monkeypatch.setattr("kerasllm.generation.text.Engine", Engine)
    return engines


def size(text):
    return len(text.encode())


@pytest.mark.parametrize("prompt", ["Hi ", "👍", "é"])
def test_a_stream_gives_whole_characters_that_add_up(model, monkeypatch, prompt):
    scripted(monkeypatch, SENTENCE)
    whole = model.generate(prompt, max_new_tokens=size(SENTENCE))
    assert whole == prompt + SENTENCE
    pieces = list(model.generate(prompt, max_new_tokens=size(SENTENCE), stream=True))
    assert "".join(pieces) == SENTENCE and len(pieces) > 20
    assert not any("\ufffd" in piece for piece in pieces)
    assert "😀" in pieces  # four tokens, one piece


def test_an_answer_never_ends_in_half_a_character(model, monkeypatch):
    scripted(monkeypatch, SENTENCE)
    for count in range(1, size(SENTENCE)):
        whole = SENTENCE.encode()[:count].decode(errors="ignore")
        assert model.generate("Hi", max_new_tokens=count, strip_prompt=True) == whole
        assert "".join(model.generate("Hi", max_new_tokens=count, stream=True)) == whole


@pytest.mark.parametrize(
    "stop, expected",
    [
        ("STOP", "I like 😀 and 🇨🇭, naïve 猫! "),
        (["never", "😀"], "I like "),
        ("猫", "I like 😀 and 🇨🇭, naïve "),
        ("🇨🇭", "I like 😀 and "),
        ("I", ""),
        ("STOPPED", SENTENCE),
        (["ike 😀 and x", " and 🇨🇭, "], "I like 😀"),
    ],
)
def test_stop_strings_end_an_answer_and_never_show(model, monkeypatch, stop, expected):
    scripted(monkeypatch, SENTENCE)
    options = {"max_new_tokens": size(SENTENCE), "stop": stop}
    assert model.generate("Hi", strip_prompt=True, **options) == expected
    assert "".join(model.generate("Hi", stream=True, **options)) == expected


def test_a_stop_string_is_looked_for_in_the_answer_only(model, monkeypatch):
    scripted(monkeypatch, "P and on")
    assert model.generate("STO", max_new_tokens=8, stop="STOP") == "STOP and on"


def test_each_row_stops_by_itself(model, monkeypatch):
    scripted(monkeypatch, "one. more", "another. text")
    answers = model.generate(["A", "B"], max_new_tokens=13, stop=".", strip_prompt=True)
    assert answers == ["one", "another"]


def test_stopping_saves_the_rest_of_the_steps(model, monkeypatch):
    engines = scripted(monkeypatch, "a. " + "b" * 90)
    model.generate("Hi", max_new_tokens=90, stop=".")
    assert engines[0].steps < 6


@pytest.mark.parametrize("a_step", [1, 5, 32])
def test_a_stop_string_ends_the_tokens_too(model, monkeypatch, a_step):
    scripted(monkeypatch, "one STOP two", a_step=a_step)
    answer = model.generate("Hi", max_new_tokens=12, stop="STOP", details=True)
    assert (answer.text, answer.finish_reason) == ("one ", "stop")
    assert model.tokenizer.decode(answer.token_ids) == "one STOP"
    pieces = list(model.generate("Hi", max_new_tokens=12, stop="STOP", details=True, stream=True))
    assert "".join(piece.text for piece in pieces) == "one "
    assert [i for piece in pieces for i in piece.token_ids] == answer.token_ids
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]


def test_a_request_that_a_stop_string_ended_goes_no_further(model):
    """The real engine, which makes many tokens a call, beside a longer request."""
    options = {"max_new_tokens": 80, "sampler": "temperature", "seed": 1, "stop_token_ids": [], "details": True}
    whole = model.generate("to be", **options)
    stop = next(character for character in whole.text if character.isascii())
    alone = model.generate("to be", stop=stop, **options)
    assert alone.finish_reason == "stop" and stop not in alone.text
    assert model.tokenizer.decode(alone.token_ids).endswith(stop)
    assert whole.token_ids[: len(alone.token_ids)] == alone.token_ids
    assert model.generate(["to be", "x"], stop=stop, **options)[0] == alone


def test_the_end_token_ends_the_text(model, monkeypatch):
    end = model.tokenizer.end_token_id
    scripted(monkeypatch, [*model.tokenizer.encode("bye"), end, *model.tokenizer.encode("more")])
    assert model.generate("Hi", max_new_tokens=7, strip_prompt=True) == "bye"
    unstopped = model.generate("Hi", max_new_tokens=8, strip_prompt=True, stop_token_ids=[])
    assert unstopped.startswith("bye") and unstopped.endswith("more")


def test_text_for_text_and_lists_for_lists(model):
    """The real engine: ids and text agree, and a stream with the whole."""
    one = model.generate("to be", max_new_tokens=12, sampler="temperature", seed=1, stop_token_ids=[])
    assert isinstance(one, str) and one.startswith("to be")
    two = model.generate(["to be", "or"], max_new_tokens=12, sampler="temperature", seed=1, stop_token_ids=[])
    assert two[0] == one and two[1].startswith("or")
    ids = model.generate(
        model.tokenizer.encode("to be"), max_new_tokens=12, sampler="temperature", seed=1, stop_token_ids=[]
    )
    assert model.tokenizer.decode(ids).rstrip("\ufffd") == one
    stream = model.generate("to be", max_new_tokens=12, sampler="temperature", seed=1, stop_token_ids=[], stream=True)
    assert "to be" + "".join(stream) == one


def test_an_empty_prompt_begins_a_new_document(model, monkeypatch):
    scripted(monkeypatch, "Once")
    assert model.generate("", max_new_tokens=4) == "Once"


@pytest.mark.one_backend
@pytest.mark.parametrize("stop", ["", ["a", ""], [3]])
def test_bad_stop_strings_are_named(model, stop):
    with pytest.raises(ValueError, match="`stop`"):
        model.generate("Hi", max_new_tokens=3, stop=stop)


@pytest.mark.one_backend
def test_an_empty_prompt_needs_a_token_to_begin_with():
    tokenizer = Tokenizer.train("abc", kind="char")
    config = TransformerConfig(tokenizer.vocabulary_size, 16, num_layers=1, num_heads=2, hidden_dim=16)
    with pytest.raises(ValueError, match="prompt is empty"):
        CausalLM(config, tokenizer=tokenizer).generate("", max_new_tokens=3)
    with pytest.raises(ValueError, match="no prompt"):
        CausalLM(config, tokenizer=tokenizer).generate([], max_new_tokens=3)
