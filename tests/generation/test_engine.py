"""The engine: slots that requests share, drafts, prefixes that are kept, and requests that go wrong alone."""

import itertools
import re
from types import SimpleNamespace as Namespace

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import CausalLM, Sampler, Seq2SeqLM, Tokenizer, TransformerConfig
from kerasllm.generation import cache as caches
from kerasllm.generation.compiled import to_tensor
from kerasllm.generation.drafts import Drafts, look_up
from kerasllm.generation.engine import Engine
from kerasllm.generation.prefix_cache import BLOCK, PrefixCache
from kerasllm.generation.requests import Request
from kerasllm.generation.slots import Slots
from kerasllm.generation.structured import Grammar

VOCABULARY, LENGTH = 30, 64
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [9, 3, 2], [8]]
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
GREEDY = Sampler(temperature=0.0)
SAMPLED = {"sampler": "top_p", "top_p": 0.9, "temperature": 1.3, "seed": 5}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return CausalLM(TransformerConfig(VOCABULARY, LENGTH, **SIZES))


@pytest.fixture(scope="module")
def small_model():
    keras.utils.set_random_seed(1)
    return CausalLM(TransformerConfig(VOCABULARY, 32, **{**SIZES, "hidden_dim": 8}))


@pytest.fixture(scope="module")
def alone(model):
    """What each prompt becomes by itself, greedy and sampled."""

    def answers(**options):
        options = {"max_new_tokens": 24, "strip_prompt": True, **options}
        return [model.generate(prompt, **options) for prompt in PROMPTS]

    return {"greedy": answers(), "sampled": answers(**SAMPLED)}


def run(engine, *requests):
    for request in requests:
        engine.submit(request)
    while not all(request.finished for request in requests):
        engine.step()
    return [request.new_tokens for request in requests]


@pytest.mark.parametrize("name, options", [("greedy", {}), ("sampled", SAMPLED)])
def test_requests_of_all_lengths_share_two_slots(model, alone, name, options):
    lengths = [3, 24, 1, 9, 17]
    expected = [answer[:length] for answer, length in zip(alone[name], lengths)]
    assert model.generate(PROMPTS, lengths, strip_prompt=True, slots=2, **options) == expected


@pytest.mark.parametrize("options", [{}, {"prefix_cache": PrefixCache()}, {"drafts": Drafts(size=3)}])
def test_memory_grows_with_what_is_held(model, alone, options):
    engine = Engine(model, slots=4, room=8, **options)
    compiled = []
    assert engine.slots.rooms() == [8, 32, 64] and engine.slots.held == 8
    for _ in range(3):
        assert run(engine, *[Request(prompt, 24, GREEDY) for prompt in PROMPTS]) == alone["greedy"]
        assert engine.slots.held >= 32
        compiled.append(engine.programs.compilations)
    assert compiled[1] == compiled[2]
    long = Request([*PROMPTS[0], *alone["greedy"][0][:-4]], 36, GREEDY)
    assert run(engine, long)[0][:4] == alone["greedy"][0][-4:]
    assert engine.slots.held == 64
    assert run(engine, Request(PROMPTS[4], 2, GREEDY)) == [alone["greedy"][4][:2]]
    assert engine.slots.held < 64


@pytest.mark.parametrize("running", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"top_p": 0.9}, {"repetition_penalty": 1.3, "mirostat": 2.0}],
    ids=["greedy", "sampled", "penalties"],
)
def test_few_of_many_slots_compute_alone(model, running, options):
    def requests():
        sampler = Sampler(seed=3, **options) if options else GREEDY
        return [Request(prompt, 40, sampler) for prompt in PROMPTS[:running]]

    engine = Engine(model, slots=8, room=16)
    expected = run(Engine(model, slots=2), *requests())
    assert run(engine, *requests()) == expected
    other, later = Request(PROMPTS[3], 12, GREEDY), requests()
    engine.submit(other)
    engine.step(3)
    assert run(engine, *later) == expected and other.finished
    assert other.new_tokens == run(Engine(model, slots=1), Request(PROMPTS[3], 12, GREEDY))[0]


def test_pytorch_reads_the_quarters_that_texts_need(model, alone, monkeypatch):
    engine = Engine(model, slots=2, room=64)
    read, part = [], Slots.part
    monkeypatch.setattr(Slots, "part", lambda self, *of: (read.append(of), part(self, *of))[1])
    for first, second in itertools.pairwise(PROMPTS):
        requests = [engine.submit(Request(prompt, 24, GREEDY)) for prompt in (first, second)]
        while not all(request.finished for request in requests):
            engine.step(8)
        assert [r.new_tokens for r in requests] == [
            alone["greedy"][PROMPTS.index(prompt)] for prompt in (first, second)
        ]
    # Prompts need 16 places on every backend; what is made of them needs more.
    assert {places for _, places in read} == ({16, 32} if keras.backend.backend() == "torch" else {16, 64})


def test_who_ended_is_answered_before_the_others_have(model):
    """In an engine that lives long, a quarter of those that run may have ended when a call returns."""
    for room, expected in ((None, [4, 24, 24, 24]), (64, [4, 8, 8, 8])):
        engine = Engine(model, slots=4, room=room)
        requests = [Request(prompt, size, GREEDY) for prompt, size in zip(PROMPTS, (4, 8, 24, 24))]
        for request in requests:
            engine.submit(request)
        engine.step()
        assert [len(r.new_tokens) for r in requests] == [min(e, r.max_new_tokens) for e, r in zip(expected, requests)]


def test_nothing_is_compiled_anew_for_another_slot(model, monkeypatch):
    """XLA compiles TensorFlow's own slices for each place that they begin at."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("about TensorFlow")
    import tensorflow as tf

    cut = tf.slice

    def checked(x, begin, size, name=None):
        assert tf.get_static_value(tf.convert_to_tensor(begin)) is not None, "a slice whose beginning is an argument"
        return cut(x, begin, size, name)

    monkeypatch.setattr(tf, "slice", checked)
    model._programs = None
    engine = Engine(model, slots=4, room=32, prefix_cache=PrefixCache())
    for _ in range(2):
        run(engine, *[Request([*range(20), slot], 8, GREEDY) for slot in range(3)])
    assert engine.prefix_cache.hits


def test_a_request_that_leaves_makes_room_for_the_next(model, alone):
    engine = Engine(model, slots=2, length=32)
    requests = [Request(prompt, 24, GREEDY) for prompt in PROMPTS[:3]]
    for request in requests:
        engine.submit(request)
    engine.step(4)
    assert [len(request.new_tokens) for request in requests] == [4, 4, 0]
    engine.cancel(requests[0])
    engine.step(4)
    assert [len(request.new_tokens) for request in requests] == [4, 8, 4]
    assert requests[0].finished == "cancelled"
    while not requests[2].finished:
        engine.step()
    assert [r.new_tokens for r in requests[1:]] == alone["greedy"][1:3] and not engine.running
    with pytest.raises(ValueError, match=r"room for 36 tokens.*has 32"):
        engine.submit(Request([1] * 12, 24, GREEDY))


def test_a_stream_that_is_not_read_to_its_end_frees_its_slot(model, monkeypatch):
    cancelled = []
    monkeypatch.setattr(Engine, "cancel", lambda self, request: cancelled.append(request))
    stream = model.generate(PROMPTS[0], max_new_tokens=20, stream=True)
    next(stream)
    stream.close()
    assert len(cancelled) == 1


def test_answers_to_one_prompt_read_it_once(model, monkeypatch):
    read, tokens = Slots.read, []
    monkeypatch.setattr(Slots, "read", lambda self, rows: (tokens.extend(rows.values()), read(self, rows))[1])
    answers = model.generate(PROMPTS[2], max_new_tokens=6, n=3, **SAMPLED)
    assert tokens == [PROMPTS[2][:-1]]
    one_by_one = [model.generate(PROMPTS[2], 6, **{**SAMPLED, "seed": 5 + i}) for i in range(3)]
    assert answers == one_by_one


@pytest.mark.parametrize("name, options", [("greedy", {}), ("sampled", SAMPLED)])
@pytest.mark.parametrize("by", ["lookup", "model"])
def test_drafts_change_no_token(model, small_model, alone, by, name, options):
    draft = "lookup" if by == "lookup" else small_model
    options = {"max_new_tokens": 24, "draft": draft, "num_draft_tokens": 3, "details": True, "slots": 2, **options}
    found = model.generate(PROMPTS, **options)
    assert [one.token_ids for one in found] == alone[name]
    assert sum(one.drafted for one in found) > 0 and all(one.accepted <= one.drafted for one in found)


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_draft_by_the_model_itself_is_all_right(model, options):
    found = model.generate(PROMPTS[0], 24, draft=model, num_draft_tokens=3, details=True, **options)
    assert found.accepted == found.drafted > 12


def test_drafted_samples_follow_the_distribution():
    """Pairs of tokens, against the product of the model's own probabilities: chi-square."""
    keras.utils.set_random_seed(3)
    tiny = CausalLM(TransformerConfig(4, 16, **SIZES))
    weak = CausalLM(TransformerConfig(4, 16, **{**SIZES, "hidden_dim": 8}))
    count = 1000
    options = {"sampler": "temperature", "n": count, "draft": weak, "num_draft_tokens": 2, "slots": 64}
    found = tiny.generate([1, 2], max_new_tokens=3, strip_prompt=True, seed=1, **options)
    first = _probabilities(tiny, [[1, 2]])[0]
    second = _probabilities(tiny, [[1, 2, i] for i in range(4)])
    expected = count * (first[:, None] * second).reshape(-1)
    observed = np.bincount([4 * a + b for a, b, _ in found], minlength=16)
    assert ((observed - expected) ** 2 / expected).sum() < 37.7  # 15 degrees of freedom, p = 0.001


def _probabilities(model, ids):
    logits = ops.convert_to_numpy(model(np.array(ids, "int32")))[:, -1].astype("float64")
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "text, count, expected",
    [
        ([1, 2, 3, 9, 1, 2, 3], 2, [9, 1]),
        ([1, 2, 7, 5, 2, 6, 1, 2], 3, [7, 5, 2]),  # the longer end counts, not the later place
        ([5, 5], 4, [5]),
        ([1, 2, 3], 4, []),
        ([1], 4, []),
        ([1, 1, 1], 0, []),
    ],
)
def test_look_up_finds_what_followed_last_time(text, count, expected):
    assert look_up(text, count) == expected


def test_a_second_turn_reads_only_what_is_new(model):
    cache = PrefixCache()
    engine = Engine(model, slots=2, drafts=None, prefix_cache=cache)
    first = list(range(20)) + list(range(9))
    (answer,) = run(engine, Request(first, 8, GREEDY))
    assert answer == model.generate(first, 8, strip_prompt=True)
    assert (cache.hits, cache.misses, len(cache)) == (0, len(first) - 1, 2)
    second = [*first, *answer, 7, 3, 2]
    (answer,) = run(engine, Request(second, 8, GREEDY))
    assert answer == model.generate(second, 8, strip_prompt=True)
    assert (cache.hits, cache.misses) == (2 * BLOCK, len(first) - 1 + len(second) - 1 - 2 * BLOCK)
    other = [29, *second[1:]]  # the same blocks after another beginning are other blocks
    (answer,) = run(engine, Request(other, 8, GREEDY))
    assert answer == model.generate(other, 8, strip_prompt=True) and cache.hits == 2 * BLOCK


def test_of_a_slot_only_the_blocks_that_are_new_are_copied():
    draw, length, read = np.random.default_rng(0), 200, []
    arrays = [draw.normal(size=(3, 2, length, 4)).astype("float32") for _ in range(4)]

    def read_piece(cache, slot, start):
        read.append(int(start))
        return caches.read_piece(cache, to_tensor(slot), to_tensor(start))

    slots = Namespace(held=length, length=length, positions=[0, 0, 0], programs=Namespace(read_piece=read_piece))
    slots.cache = [tuple(map(ops.convert_to_tensor, arrays[:2])), tuple(map(ops.convert_to_tensor, arrays[2:]))]
    cache, tokens = PrefixCache(), list(range(length))
    for held, starts in ((50, [0]), (40, []), (200, [48, 112, 136])):
        slots.positions[1] = held
        read.clear()
        cache.keep(slots, 1, tokens)
        assert read == starts
    kept = [
        np.concatenate(parts, axis=2)
        for parts in zip(*([x for pair in b for x in pair] for b in cache._blocks.values()))
    ]
    for array, found in zip(arrays, kept):
        np.testing.assert_array_equal(found, array[1:2, :, :192])


def test_the_prefix_cache_forgets_what_was_not_used_for_longest(model):
    block = 2 * BLOCK * 16 * 4  # keys and values, one layer
    cache = PrefixCache(max_bytes=2 * block)
    engine = Engine(model, slots=1, prefix_cache=cache)
    texts = [[start] * BLOCK + [1] for start in (2, 3, 4)]
    for text in (texts[0], texts[1], texts[0], texts[2]):
        run(engine, Request(text, 1, GREEDY))
    assert len(cache) == 2 and cache.num_bytes == 2 * block
    hits = cache.hits
    for text, known in ((texts[0], BLOCK), (texts[1], 0)):
        run(engine, Request(text, 1, GREEDY))
        assert cache.hits == (hits := hits + known)
    cache.clear()
    assert len(cache) == cache.num_bytes == 0
    with pytest.raises(ValueError, match="max_bytes=0"):
        PrefixCache(max_bytes=0)


def test_log_probs_are_those_of_score(model):
    found = model.generate(PROMPTS[:2], 6, details=True, log_probs=3, **SAMPLED)
    for prompt, one in zip(PROMPTS, found):
        scores = model.score([prompt + one.token_ids])[0][len(prompt) - 1 :]
        np.testing.assert_allclose(one.log_probs, scores, atol=1e-5)
        for token, log_prob, best in zip(one.token_ids, one.log_probs, one.alternatives):
            assert len(best) == 3 and list(best.values()) == sorted(best.values(), reverse=True)
            assert best.get(token, log_prob) == log_prob <= max(best.values())


def test_a_function_of_your_own_chooses(model):
    def only_even(logits, tokens):
        assert tokens[: len(PROMPTS[0])] == PROMPTS[0] or not tokens
        return np.where(np.arange(VOCABULARY) % 2, -np.inf, logits)

    found = model.generate(PROMPTS[0], 12, sampler=only_even, strip_prompt=True)
    assert all(token % 2 == 0 for token in found)
    assert model.generate(PROMPTS[0], 12, sampler=lambda logits, tokens: logits) == model.generate(
        PROMPTS[0], 12, sampler="temperature"
    )


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda logits, tokens: logits[:-1], "shape"),
        (lambda logits, tokens: 3, "shape"),
        (lambda logits, tokens: logits * np.nan, "NaN"),
        (lambda logits, tokens: np.full_like(logits, -np.inf), "at least one token"),
    ],
)
def test_a_function_that_cannot_work_is_refused_before_any_compute(model, monkeypatch, function, message):
    monkeypatch.setattr(Engine, "step", None)
    with pytest.raises(ValueError, match=message):
        model.generate(PROMPTS[0], 3, sampler=function)


def test_a_request_that_goes_wrong_disturbs_nobody(model, alone):
    def fails(logits, tokens):
        return logits if len(tokens) < 8 else logits * np.nan

    engine = Engine(model, slots=3)
    requests = [Request(prompt, 24, GREEDY) for prompt in PROMPTS[:3]]
    requests[0].logits_function = fails
    run(engine, *requests)
    assert [request.new_tokens for request in requests[1:]] == alone["greedy"][1:3]
    assert requests[0].finished == "error" and requests[0].new_tokens == alone["greedy"][0][:3]
    with pytest.raises(ValueError, match="NaN"):
        model.generate(PROMPTS[0], 24, sampler=fails)


def test_a_form_is_kept_to_beside_free_requests():
    pytest.importorskip("llguidance")
    tokenizer = Tokenizer.train("abcdefghijklmnopqrst 0123456789", kind="char")
    keras.utils.set_random_seed(0)
    writer = CausalLM(TransformerConfig(tokenizer.vocabulary_size, 32, **SIZES), tokenizer)
    prompts = [tokenizer.encode(text) for text in ("abc", "so it is", "99 red")]
    free = [writer.generate(prompt, 12, strip_prompt=True, stop_token_ids=[]) for prompt in prompts]
    requests = [Request(prompt, 12, GREEDY) for prompt in prompts]
    requests[1].constraints = [Grammar(tokenizer, regex="[0-9]{3} [a-c]{2}").constraint()]
    run(Engine(writer, slots=2, length=32), *requests)
    assert [requests[0].new_tokens, requests[2].new_tokens] == [free[0], free[2]]
    answer = tokenizer.decode(requests[1].new_tokens)
    assert re.fullmatch("[0-9]{3} [a-c]{2}", answer) and requests[1].finished == "stop"


def test_sources_share_slots_too():
    keras.utils.set_random_seed(0)
    config = TransformerConfig.from_name(
        "t5_tiny", vocabulary_size=VOCABULARY, max_sequence_length=32, num_layers=1, num_encoder_layers=1,
        hidden_dim=16, num_heads=2, head_dim=8, intermediate_dim=16, initializer_range=0.5,
    )  # fmt: skip
    model = Seq2SeqLM(config)
    expected = [model.generate(source, 12, stop_token_ids=[], **SAMPLED) for source in PROMPTS]
    assert model.generate(PROMPTS, 12, stop_token_ids=[], slots=2, **SAMPLED) == expected
    assert model.generate(PROMPTS, 12, stop_token_ids=[], slots=8, **SAMPLED) == expected
    found = model.generate(PROMPTS, 12, stop_token_ids=[], slots=2, draft="lookup", **SAMPLED)
    assert found == expected
    engine = Engine(model, slots=4, room=8)
    one = [Request([model.start_token_id], 12, GREEDY, source=source) for source in PROMPTS[:1]]
    assert run(engine, *one) == [model.generate(PROMPTS[0], 12, stop_token_ids=[])]


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 0}, "n=0"),
        ({"n": 2, "stream": True}, "n=2"),
        ({"log_probs": -1}, "log_probs"),
        ({"max_new_tokens": [3, 4]}, "2 for 1"),
        ({"draft": "guess"}, "draft='guess'"),
        ({"draft": "lookup", "num_draft_tokens": 0}, "size=0"),
        ({"num_beams": 2, "n": 3}, "n=3"),
        ({"num_beams": 4, "num_beam_groups": 3}, "multiple"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "num_groups"),
        ({"penalty_alpha": 2.0}, "penalty_alpha"),
        ({"regex": "a"}, "tokenizer"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"logit_bias": {99: 1.0}}, "99"),
    ],
    ids=str,
)
def test_bad_settings_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(PROMPTS[0], **{"max_new_tokens": 3, **options})


@pytest.mark.one_backend
def test_a_draft_model_needs_the_same_vocabulary(model):
    other = CausalLM(TransformerConfig(7, 16, **SIZES))
    with pytest.raises(ValueError, match="sizes 7 and 30"):
        Engine(model, drafts=Drafts(other))
