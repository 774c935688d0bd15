"""Structured output: whatever the logits, the answer is of the form that was asked for."""

import json
import re

import numpy as np
import pytest

from kerasllm import Tokenizer
from kerasllm.generation.constraints import BadWords, bias_of
from kerasllm.generation.sampling import NEVER
from kerasllm.generation.structured import Grammar, token_bytes

pytestmark = pytest.mark.one_backend

TEXT = (
    "To be, or not to be, that is the question: yes or no? " * 8
    + '0123456789 {}[]":,.-+ truefalsenull_name_tags_married été 😀 '
)
KINDS = ("char", "byte", "bpe", "unigram")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "married": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
CHOICES = [
    "a|b",
    "yes",
    "yes please",
    'he said "hi"',
    "new\nline\t",
    "back\\slash",
    "a/b",
    ".*",
    "été",
    "😀",
    "\x01 %x",
]


@pytest.fixture(scope="module")
def tokenizers():
    sizes = {"bpe": 320, "unigram": 90}
    return {kind: Tokenizer.train(TEXT, kind=kind, vocabulary_size=sizes.get(kind)) for kind in KINDS}


def answer(tokenizer, grammar, seed, limit=120, others=(), padding=3):
    """(text, whether it is complete) that random logits make through the mask."""
    numbers = np.random.default_rng(seed)
    size = tokenizer.vocabulary_size + padding
    stops = [tokenizer.end_token_id] if tokenizer.end_token_id is not None else []
    constraint, tokens = grammar.constraint(stops), []
    while len(tokens) < limit and not constraint.finished(tokens):
        bias = bias_of([*others, constraint], [0], tokens, size)
        assert bias.max() > NEVER / 2
        token = int((2 * numbers.normal(size=size) + bias).argmax())
        if token in stops:
            break
        tokens.append(token)
    return tokenizer.decode(tokens), constraint.complete(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_regex_is_matched(tokenizers, kind):
    regex = r"[a-z]{2,5}(-\d{1,3})?( \w\s?)*"
    grammar = Grammar(tokenizers[kind], regex=regex)
    complete = 0
    for seed in range(10):
        text, whole = answer(tokenizers[kind], grammar, seed)
        complete += whole
        assert not whole or re.fullmatch(regex, text, re.ASCII)
    assert complete >= 5  # others end at the limit


@pytest.mark.parametrize("kind", KINDS)
def test_json_is_of_its_schema(tokenizers, kind):
    grammar = Grammar(tokenizers[kind], json_schema=json.dumps(PERSON) if kind == "bpe" else PERSON)
    for seed in range(10):
        text, whole = answer(tokenizers[kind], grammar, seed)
        assert whole
        value = json.loads(text)
        assert text == json.dumps(value, ensure_ascii=False) or "\\" in text
        assert {"name", "age", "tags"} <= set(value) <= set(PERSON["properties"])
        assert isinstance(value["name"], str) and len(value["name"]) <= 6
        assert type(value["age"]) is int and 0 <= value["age"] <= 150
        assert len(value["tags"]) <= 3 and set(value["tags"]) <= {"a", "b"}
        assert value.get("married") in (True, False, None)


def test_a_choice_is_one_of_the_list(tokenizers):
    grammar = Grammar(tokenizers["byte"], choice=CHOICES)
    texts = {answer(tokenizers["byte"], grammar, seed) for seed in range(100)}
    assert {text for text, whole in texts if whole} == set(CHOICES) and all(whole for _, whole in texts)


def test_the_stop_token_waits_for_the_end(tokenizers):
    tokenizer = tokenizers["byte"]
    stop = tokenizer.end_token_id
    constraint = Grammar(tokenizer, choice=["no", "nope"]).constraint([stop])

    def allowed(text):
        bias = bias_of([constraint], [0], tokenizer.encode(text), tokenizer.vocabulary_size + 2)
        return {tokenizer.id_to_token(i) if i != stop else "" for i in np.flatnonzero(bias == 0)}

    assert allowed("") == {"n"} and allowed("n") == {"o"}
    assert allowed("no") == {"", "p"} and allowed("nope") == {""}
    assert [constraint.finished(tokenizer.encode(text)) for text in ("no", "nope")] == [False, True]
    assert allowed("no") == {"", "p"}  # also back from the end, as when guesses are taken back
    assert not constraint.complete(tokenizer.encode("n"))


def test_what_other_constraints_force_ends_the_answer(tokenizers):
    tokenizer = tokenizers["byte"]
    constraint = Grammar(tokenizer, choice=["no"]).constraint([tokenizer.end_token_id])
    for tokens in (tokenizer.encode("x"), tokenizer.encode("nx"), [tokenizer.vocabulary_size + 1]):
        assert constraint.finished(tokens) and not constraint.complete(tokens)
        assert bias_of([constraint], [0], tokens, tokenizer.vocabulary_size + 2)[tokenizer.end_token_id] == 0
    assert constraint.complete(tokenizer.encode("no"))
    grammar = Grammar(tokenizer, regex="[ab]{4}")
    assert answer(tokenizer, grammar, 0, others=[BadWords([tokenizer.encode("a")])]) == ("bbbb", True)


def test_requests_do_not_share_their_state(tokenizers):
    tokenizer = tokenizers["bpe"]
    grammar = Grammar(tokenizer, choice=["yes", "no"])
    one, other = grammar.constraint(), grammar.constraint()
    assert one.complete(tokenizer.encode("yes")) and not other.complete([])
    assert other.complete(tokenizer.encode("no")) and one.finished(tokenizer.encode("yes"))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_spell_the_text(tokenizers, kind):
    spelled = token_bytes(tokenizers[kind])
    text = "To be, or not été 😀 {}"
    assert b"".join(spelled[i] for i in tokenizers[kind].encode(text)).decode() == text
    assert [i for i, each in enumerate(spelled) if each is None] == sorted(
        tokenizers[kind].token_to_id(token) for token in tokenizers[kind].special_tokens
    )


def test_tokens_that_do_not_spell_are_refused():
    tokenizer = Tokenizer.train(TEXT, kind="wordpiece", vocabulary_size=150)
    with pytest.raises(ValueError, match=r"wordpiece tokenizer do not.*unigram"):
        Grammar(tokenizer, regex="a")


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "none of them"),
        ({"regex": "a", "choice": ["b"]}, "regex, choice"),
        ({"regex": ""}, "not empty"),
        ({"regex": 3}, "regex=3"),
        ({"regex": "("}, "unclosed group"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"regex": "[a&&b]"}, "can begin"),
        ({"regex": "\ud800"}, "surrogate"),
        ({"choice": []}, "choice"),
        ({"choice": "yes"}, "list of strings"),
        ({"choice": ["yes", ""]}, "none empty"),
        ({"json_schema": "{"}, "no JSON"),
        ({"json_schema": {"enum": {1, 2}}}, "no JSON"),
        ({"json_schema": "[1]"}, "JSON object"),
        ({"json_schema": {"type": "strin"}}, "strin"),
        ({"json_schema": {"type": "string", "minLength": 5, "maxLength": 2}}, "minLength"),
        ({"json_schema": {"enum": []}}, "Unsatisfiable"),
        ({"json_schema": {"$ref": "#/definitions/none"}}, "does not exist"),
    ],
    ids=str,
)
def test_bad_forms_are_named(tokenizers, options, message):
    with pytest.raises(ValueError, match=message):
        Grammar(tokenizers["byte"], **options)


def test_an_answer_that_the_tokenizer_cannot_spell_ends(tokenizers):
    grammar = Grammar(tokenizers["char"], choice=["to be Xerxes", "yes"])
    assert {answer(tokenizers["char"], grammar, seed) for seed in range(20)} == {("to be ", False), ("yes", True)}


def test_a_form_that_the_tokenizer_cannot_begin_is_refused(tokenizers):
    with pytest.raises(ValueError, match=r"char.*can begin"):
        Grammar(tokenizers["char"], choice=["日本"])
