"""Where tokens begin in a text, what a prompt is when it is echoed, and alternatives that are spelled alike."""

import codecs
import itertools
import json

import keras
import pytest

from kerasllm import CausalLM, Tokenizer, TransformerConfig
from kerasllm.serving.replies import Chats, Completions, to_json
from kerasllm.serving.writer import Writer

pytestmark = pytest.mark.one_backend

TEXT = "Ça va? 🙂🙂  the  cat—sat. नमस्ते"
SEEN = [TEXT, "the cat sat on the mat " * 20]
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
TOKENIZERS = {
    "byte": lambda: Tokenizer.train("a", kind="byte", special_tokens=["</s>"]),
    "char": lambda: Tokenizer.train(SEEN, kind="char", special_tokens=["</s>"]),
    "bpe": lambda: Tokenizer.train(SEEN, kind="bpe", vocabulary_size=300, special_tokens=["</s>"]),
    "unigram": lambda: Tokenizer.train(SEEN, kind="unigram", vocabulary_size=80),
    "wordpiece": lambda: Tokenizer.train(SEEN, kind="wordpiece", vocabulary_size=80),
}


def asked(prompt, **changes):
    usual = {"id": 1, "prompts": [prompt], "max_tokens": 24, "n": 1, "seed": 0, "sampler": {"temperature": 1.0}}
    usual |= {"logit_bias": {}, "form": None, "log_probs": 2, "echo": False, "stop": [], "adapter": "", "stream": True}
    return {**usual, **changes}


def chunks(writer, message) -> list[dict]:
    """The choices of a streamed completion."""
    writer.submit(writer.prepare(message))
    shape, made = Completions({}), []
    while not writer.idle:
        made += [shape.chunk(event)["choices"][0] for event in writer.step() if "done" not in event]
    return made


@pytest.fixture(scope="module")
def writers():
    """A writer for each kind of tokenizer; compiling ahead would take longer than the tests."""
    made = {}
    patch = pytest.MonkeyPatch()
    patch.setattr(Writer, "_warm_up", lambda _: None)

    def writer(kind) -> Writer:
        if kind not in made:
            keras.utils.set_random_seed(0)
            tokenizer = TOKENIZERS[kind]()
            config = TransformerConfig(tokenizer.vocabulary_size, 128, **SIZES)
            made[kind] = Writer(CausalLM(config, tokenizer), slots=1)
        return made[kind]

    yield writer
    patch.undo()


def spelled(token: str) -> bytes:
    named = token.removeprefix("bytes:")
    return token.encode() if named == token else bytes.fromhex(named.replace("\\x", ""))


def check_bytes(tokens, offsets):
    """A token stands behind the characters that have ended before its bytes, in the text that Python makes of all."""
    data, wrong = b"".join(map(spelled, tokens)), []

    def replace(error):
        wrong.append((error.start, error.end))
        return "�", error.end

    codecs.register_error("noted", replace)
    data.decode("utf-8", "noted")
    ends, last = [], 0
    for start, end in [*wrong, (len(data), None)]:
        for character in data[last:start].decode():
            last += len(character.encode())
            ends.append(last)
        ends += [end] * (end is not None)
        last = end
    begins = itertools.accumulate([0, *(len(spelled(token)) for token in tokens[:-1])])
    assert offsets == [sum(end <= begin for end in ends) for begin in begins]


def check_words(text, tokens, offsets):
    """Each token stands where it is said to, but for spaces that decoders add or leave out."""
    assert offsets == sorted(offsets)
    for token, offset in zip(tokens, offsets, strict=True):
        assert token == "<unk>" or text[offset:].lstrip().startswith(token.removeprefix("##").lstrip()), (token, offset)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("given", ["text", "ids", "nothing is echoed"])
def test_text_offset_counts_characters_of_the_text(kind, given, writers):
    writer, echo = writers(kind), given in ("text", "ids")
    ids = writer.tokenizer.encode(TEXT)
    said = writer.tokenizer.decode(ids) if given == "ids" else TEXT
    bias = {str(writer.tokenizer.end_token_id): -100.0}
    made = chunks(writer, asked(ids if given == "ids" else TEXT, echo=echo, logit_bias=bias))
    text = "".join(choice["text"] for choice in made)
    assert text.startswith(said) == echo
    known = [choice["logprobs"] for choice in made]
    tokens, offsets = ([each for one in known for each in one[key]] for key in ("tokens", "text_offset"))
    assert len(tokens) == len(ids) * echo + 24
    if kind in ("byte", "bpe"):
        check_bytes(tokens, offsets)
    elif (kind, given) == ("wordpiece", "text"):  # It makes other characters of the text.
        assert offsets[:3] == [0, 3, 5] and offsets[len(ids)] == len(TEXT)
    else:
        check_words(text, tokens, offsets)


def test_an_echo_is_the_prompt_as_it_was_sent(writers):
    """Lower-cased and without marks, and with spaces lost, is what this tokenizer makes of a text."""
    tokenizer = Tokenizer.train(SEEN, kind="wordpiece", vocabulary_size=80)
    text = "The  Cat"
    assert tokenizer.decode(tokenizer.encode(text)) != text
    for log_probs in (None, 0):
        first, *_ = chunks(writers("wordpiece"), asked(text, echo=True, max_tokens=0, log_probs=log_probs))
        assert first["text"] == text
    assert chunks(writers("byte"), asked("", echo=True, max_tokens=1))[0]["text"] == ""
    assert chunks(writers("byte"), asked([256, 65], echo=True, max_tokens=1))[0]["text"] == "</s>A"


def token(number, text, log_prob, spelled=None, top=()):
    return {"id": number, "text": text, "bytes": list(spelled or text.encode()), "log_prob": log_prob, "top": list(top)}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (token(1, "a", -0.5, top=[token(1, "a", -0.5), token(2, "b", -2.0)]), {"a": -0.5, "b": -2.0}),
        (token(2, "b", -2.0, top=[token(1, "a", -0.5)]), {"a": -0.5, "b": -2.0}),
        (token(2, "a", -2.0, top=[token(1, "a", -0.5)]), {"token_id:1": -0.5, "a": -2.0}),
        (token(3, "a", -1.0, top=[token(1, "b", -2.0), token(2, "b", -3.0)]), {"a": -1, "b": -2, "token_id:2": -3}),
        (token(1, "�", -1.0, b"\xc3", [token(2, "�", -2.0, b"\xa9")]), {r"bytes:\xc3": -1.0, r"bytes:\xa9": -2.0}),
        (token(1, "�", -1.0, top=[token(2, "�", -2.0, b"\xa9")]), {"�": -1.0, r"bytes:\xa9": -2.0}),
        (token(1, "a", float("-inf")), {"a": -9999.0}),
    ],
)
def test_no_alternative_is_lost_to_one_that_is_spelled_alike(chosen, expected):
    event = {"index": 0, "text": "", "finish": "", "tokens": [{**chosen, "offset": 0}]}
    known = Completions({}).chunk(event)["choices"][0]["logprobs"]
    assert known["top_logprobs"] == [expected]
    assert max(expected, key=expected.get) == next(iter(known["top_logprobs"][0]))
    [said] = Chats({}).chunk(event)["choices"][0]["logprobs"]["content"]
    assert len(said["top_logprobs"]) == len(chosen["top"]) and bytes(said["bytes"]) == bytes(chosen["bytes"])
    assert not said["token"].startswith("bytes:")


@pytest.mark.parametrize("end", [*"\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\ud800"])
def test_json_stays_one_line_for_every_reader(end):
    line = to_json({"text": f"a{end}b"})
    assert len(line.decode().splitlines()) == 1 and json.loads(line) == {"text": f"a{end}b"}
