"""Every argument of `generate` with every way to choose tokens: honored as in greedy search, or refused by name."""

import json
import re

import keras
import numpy as np
import pytest

from kerasllm import CausalLM, Sampler, Tokenizer, TransformerConfig
from kerasllm.generation.options import DEFAULTS, ELSEWHERE

LENGTH, PROMPT = 48, "the cat sat"
MOST = 14


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    text = 'the cat sat on a mat. yes or no? 0123456789 {}[]:," '
    tokenizer = Tokenizer.train([text] * 4, kind="char", special_tokens=["<|endoftext|>"])
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
    return CausalLM(TransformerConfig(tokenizer.vocabulary_size, LENGTH, **sizes), tokenizer)


@pytest.fixture(scope="module")
def draft_model(model):
    keras.utils.set_random_seed(4)
    return CausalLM(model.config.replace(hidden_dim=8), model.tokenizer)


WAYS = {
    "greedy": {},
    "sampled": {"sampler": "temperature", "temperature": 0.7, "seed": 2},
    "mirostat": {"sampler": "mirostat", "seed": 2},
    "function": {"sampler": lambda logits, tokens: logits, "top_k": 1},
    "beams": {"num_beams": 3},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "contrastive": {"penalty_alpha": 0.4, "top_k": 3},
    "looked up drafts": {"draft": "lookup"},
    "drafts": {"draft": "model"},
    "stream": {"stream": True},
    "batch": {"slots": 2},
}
SEARCHES = ("beams", "diverse beams", "contrastive")


def written(model, draft_model, way, prompts=PROMPT, **options):
    """(text, token ids, why it ended, details) of the first answer."""
    options = {"max_new_tokens": MOST, "stop_token_ids": [], **WAYS[way], **options, "details": True}
    if options.get("draft") == "model":
        options["draft"] = draft_model
    found = model.generate([prompts] * 3 if way == "batch" else prompts, **options)
    if way == "stream":
        pieces = list(found)
        parts = [[item for piece in pieces for item in getattr(piece, name)] for name in ("token_ids", "log_probs")]
        return "".join(piece.text or "" for piece in pieces), parts[0], pieces[-1].finish_reason, parts[1]
    found = found[0] if way == "batch" else found
    return found.text, found.token_ids, found.finish_reason, found.log_probs


def letters(model, text):
    return [model.tokenizer.token_to_id(letter) for letter in text]


def ngrams(ids, size):
    return [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]


def is_json(text):
    return isinstance(json.loads(text), dict)


# What must hold of (plain answer, answer) with an option; options are functions of (model, plain answer).
SCHEMA = {"type": "object", "properties": {"yes": {"enum": [0, 1]}}, "required": ["yes"], "additionalProperties": False}
OPTIONS = {
    "stop": (
        lambda model, plain: {"stop": [plain[0][2:5]]},
        lambda model, plain, found: plain[0][2:5] not in found[0] and (found[2] == "stop" or len(found[1]) == MOST),
    ),
    "stop_token_ids": (
        lambda model, plain: {"stop_token_ids": plain[1][3:5]},
        lambda model, plain, found: not set(found[1]) & set(plain[1][3:5]),
    ),
    "bad_words": (
        lambda model, plain: {"bad_words": [plain[1][:2], plain[1][5:6]]},
        lambda model, plain, found: plain[1][5] not in found[1] and tuple(plain[1][:2]) not in ngrams(found[1], 2),
    ),
    "no_repeat_ngram_size": (
        lambda model, plain: {"no_repeat_ngram_size": 1},
        lambda model, plain, found: (
            len({*letters(model, PROMPT), *found[1]}) == len(set(letters(model, PROMPT))) + MOST
        ),
    ),
    "min_new_tokens": (
        lambda model, plain: {"stop_token_ids": sorted({*range(30)} - {5})[:29], "min_new_tokens": 9},
        lambda model, plain, found: len(found[1]) >= 9,
    ),
    "logit_bias": (
        lambda model, plain: {"logit_bias": {7: 1000.0}},
        lambda model, plain, found: found[1] == [7] * MOST,
    ),
    "suppress_tokens": (
        lambda model, plain: {"suppress_tokens": plain[1]},
        lambda model, plain, found: not set(found[1]) & set(plain[1]),
    ),
    "begin_suppress_tokens": (
        lambda model, plain: {"begin_suppress_tokens": plain[1]},
        lambda model, plain, found: found[1][0] not in plain[1],
    ),
    "forced_eos_token_id": (
        lambda model, plain: {"forced_eos_token_id": 7},
        lambda model, plain, found: found[1][-1] == 7 and len(found[1]) == MOST,
    ),
    "repetition_penalty": (
        lambda model, plain: {"repetition_penalty": 100.0},
        lambda model, plain, found: len(set(found[1])) > len(set(plain[1])) or len(set(found[1])) == MOST,
    ),
    "frequency_penalty": (
        lambda model, plain: {"frequency_penalty": 50.0},
        lambda model, plain, found: len(set(found[1])) == MOST,
    ),
    "presence_penalty": (
        lambda model, plain: {"presence_penalty": 100.0},
        lambda model, plain, found: len(set(found[1])) == MOST,
    ),
    "choice": (
        lambda model, plain: {"choice": ["yes", "no"]},
        lambda model, plain, found: found[0] in ("yes", "no") and found[2] == "stop",
    ),
    "regex": (
        lambda model, plain: {"regex": "[0-9]{3}"},
        lambda model, plain, found: re.fullmatch("[0-9]{3}", found[0]) and found[2] == "stop",
    ),
    "json_schema": (
        lambda model, plain: {"json_schema": SCHEMA},
        lambda model, plain, found: is_json(found[0]) and found[2] == "stop",
    ),
    "log_probs": (
        lambda model, plain: {"log_probs": 2},
        lambda model, plain, found: found[1] == plain[1] and len(found[3]) == MOST and max(found[3]) <= 0,
    ),
    "truncation": (
        lambda model, plain: {"truncation": True, "max_new_tokens": LENGTH + 20},
        lambda model, plain, found: len(found[1]) == LENGTH + 20,
    ),
    "max_new_tokens": (
        lambda model, plain: {"max_new_tokens": 3},
        lambda model, plain, found: len(found[1]) == 3 and found[2] == "length",
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.one_backend
def test_each_way_honors_each_option(model, draft_model, way, option):
    asked, holds = OPTIONS[option]
    plain = written(model, draft_model, way)
    assert len(plain[1]) == MOST
    found = written(model, draft_model, way, **asked(model, plain))
    assert holds(model, plain, found), (plain, found)


SOME = ("stop", "bad_words", "repetition_penalty", "regex", "log_probs", "truncation")


@pytest.mark.parametrize("way", SEARCHES)
def test_searches_honor_options_on_every_backend(model, draft_model, way):
    plain = written(model, draft_model, way)
    for option in SOME:
        asked, holds = OPTIONS[option]
        assert holds(model, plain, written(model, draft_model, way, **asked(model, plain))), option


REFUSED = {
    "two searches": ({"num_beams": 2, "penalty_alpha": 0.5}, "num_beams=2 with penalty_alpha=0.5"),
    "two answers of a contrastive search": ({"penalty_alpha": 0.5, "n": 2}, "penalty_alpha.*n=2"),
    "more answers than beams": ({"num_beams": 2, "n": 3}, "2 beams.*n=3"),
    "a streamed search": ({"num_beams": 2, "stream": True}, "num_beams=2 with stream"),
    "a drafted search": ({"penalty_alpha": 0.5, "draft": "lookup"}, "penalty_alpha=0.5 with draft"),
    "a sampled search": ({"num_beams": 2, "sampler": "top_p"}, "num_beams=2 with temperature"),
    "a search by a function": ({"num_beams": 2, "sampler": lambda logits, tokens: logits}, "num_beams=2 with sampler"),
    "a penalty of beams without them": ({"length_penalty": 2.0}, "length_penalty.*num_beams"),
    "early stopping without beams": ({"early_stopping": True}, "early_stopping.*num_beams"),
    "guesses without a draft": ({"num_draft_tokens": 7}, "num_draft_tokens.*draft"),
    "log-probabilities without details": ({"log_probs": 2}, "log_probs.*details=True"),
    "everything forbidden": ({"suppress_tokens": []}, "leaves no token"),
    "everything forbidden, beams": ({"suppress_tokens": [], "num_beams": 2}, "leaves no token"),
    "everything forbidden, contrastive": (
        {"suppress_tokens": list(range(30)), "penalty_alpha": 0.1},
        "leaves no token",
    ),
    "a form beyond the vocabulary": ({"choice": ["CATS", "yes or NO"]}, "cannot be completed"),
    "a form that is forbidden": ({"choice": ["yes", "yes or no"], "bad_words": ["e"]}, "leaves no token"),
    "a form that is forbidden, beams": ({"choice": ["yes"], "bad_words": ["e"], "num_beams": 2}, "leaves no token"),
    "another name": ({"max_length": 5}, "max_new_tokens"),
    "a misspelled name": ({"max_new_tokns": 5}, "max_new_tokens"),
    "a name like no other": ({"qqqq": 5}, "Known: .*max_new_tokens"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
@pytest.mark.one_backend
def test_what_does_not_go_together_is_refused(model, options, message):
    if "suppress_tokens" in options:
        options = {**options, "suppress_tokens": list(range(model.config.vocabulary_size))}
    with pytest.raises(ValueError, match=message):
        model.generate(PROMPT, **{"max_new_tokens": MOST, **options})


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_of_other_libraries_are_answered_with_ours(model, name):
    assert ELSEWHERE[name].split("=")[0].split(",")[0] in DEFAULTS or name in ("repeat_penalty", "typical", "temp")
    with pytest.raises(ValueError, match=rf"{name!r}.*{re.escape(ELSEWHERE[name])}"):
        model.generate(PROMPT, **{name: 1})


@pytest.mark.one_backend
def test_every_option_is_in_the_matrix():
    ways = {name for options in WAYS.values() for name in options}
    others = {  # tested elsewhere
        *("details", "strip_prompt", "n", "seed", "forced_bos_token_id", "renormalize_logits"),
        *("length_penalty", "early_stopping", "num_draft_tokens"),
    }
    assert set(DEFAULTS) <= {*OPTIONS, *ways, *others}


@pytest.mark.one_backend
def test_token_ids_end_at_stop_strings_too(model):
    ids = model.tokenizer.encode(PROMPT)
    whole = model.generate(PROMPT, MOST, strip_prompt=True, stop_token_ids=[])
    stop = whole[4:6]
    expected = model.tokenizer.encode(whole[: whole.index(stop) + 2])
    options = {"stop": stop, "strip_prompt": True, "stop_token_ids": []}
    assert model.generate(ids, MOST, **options) == expected == list(model.generate(ids, MOST, stream=True, **options))
    assert model.generate(ids, MOST, num_beams=1, penalty_alpha=0.0, **options) == expected


@pytest.mark.parametrize("truncation, most", [(False, MOST), (True, LENGTH + 30)])
def test_contrastive_search_without_its_penalty_is_greedy(model, truncation, most):
    options = {"truncation": truncation, "stop_token_ids": []}
    greedy = model.generate(PROMPT, most, **options)
    assert model.generate(PROMPT, most, penalty_alpha=0.0, **options) == greedy
    groups = model.generate(PROMPT, most, num_beams=2, num_beam_groups=2, n=2, **options)
    assert groups == [greedy] * 2  # also past the context


@pytest.mark.one_backend
def test_a_seed_beside_a_sampler_is_used(model):
    hot = Sampler(temperature=2.0, seed=1)
    assert model.generate(PROMPT, MOST, sampler=hot, seed=5) == model.generate(
        PROMPT, MOST, sampler=Sampler(temperature=2.0, seed=5)
    )
    assert model.generate(PROMPT, MOST, sampler=hot) != model.generate(PROMPT, MOST, sampler=hot, seed=5)
    every = {"sampler": "temperature", "temperature": 2.0, "seed": 5}
    assert model.generate(PROMPT, MOST, top_k=0, **every) == model.generate(PROMPT, MOST, **every)


NOT_PROMPTS = {
    "None": (None, "NoneType"),
    "a number": (5, "int, 5"),
    "a generator": ((text for text in "ab"), r"list\(prompts\).*generator"),
    "bytes": (b"abc", "bytes"),
    "a dict": ({"prompt": "abc"}, "dict"),
    "a set": ({"abc"}, "set"),
    "no prompts": ([], "empty list"),
    "no ids": ([[]], "no token ids"),
    "texts and ids": (["abc", [1]], "all texts or all ids"),
    "lists of lists of texts": ([["abc"]], "A prompt is"),
    "lists too deep": ([[[1, 2]]], "A prompt is"),
    "nothing in a list": ([None], "A prompt is"),
    "truths": ([True, False], "integers"),
    "fractions": ([1.0, 2.0], "integers"),
    "an array of fractions": (np.ones((2, 3)), "integers"),
    "an array of nothing": (np.array(3), "ndarray, 3"),
    "ids out of range": ([[1], [10_000]], "10000.*vocabulary_size"),
    "negative ids": (np.array([[1, -1]]), "-1"),
}


@pytest.mark.parametrize("prompts, message", NOT_PROMPTS.values(), ids=NOT_PROMPTS)
@pytest.mark.one_backend
def test_what_is_not_a_prompt_is_refused(model, prompts, message):
    with pytest.raises(ValueError, match=message):
        model.generate(prompts, max_new_tokens=3)


def test_arrays_and_tensors_are_prompts(model):
    ids = [[3, 1, 4], [1, 5, 9]]
    expected = model.generate(ids, max_new_tokens=3)
    array = np.array(ids)
    for prompts in (array, tuple(map(tuple, ids)), list(array), keras.ops.convert_to_tensor(array)):
        assert model.generate(prompts, max_new_tokens=3) == expected
    assert model.generate(array[0], max_new_tokens=3) == expected[0]
    assert model.generate(np.array(["the", "cat"]), max_new_tokens=3) == model.generate(["the", "cat"], 3)
