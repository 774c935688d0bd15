"""generate(): the same tokens whole, cached, batched, streamed; and errors that name what is wrong."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import CausalLM, Sampler, TransformerConfig
from kerasllm.generation.programs import programs_of

VOCABULARY, LENGTH = 30, 16
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
SAMPLED = {"sampler": "top_p", "top_p": 0.9, "temperature": 1.3, "seed": 5}


def make_model(**changes):
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
    return CausalLM(TransformerConfig(VOCABULARY, LENGTH, **sizes, **changes))


@pytest.fixture(scope="module")
def model():
    return make_model()


def next_token(model, context):
    """The likeliest token by the whole network, without a cache."""
    padded = np.zeros((1, LENGTH), "int32")
    padded[0, : len(context)] = context
    return int(ops.convert_to_numpy(model(padded))[0, len(context) - 1].argmax())


def recomputed(model, prompt, count):
    """Greedy decoding that forgets nothing but what slides out: past the context, its last half remains."""
    context, made = list(prompt), []
    for _ in range(count):
        if len(context) > LENGTH:
            context = context[-(LENGTH // 2) :]
        made.append(next_token(model, context))
        context.append(made[-1])
    return made


@pytest.mark.parametrize(
    "changes",
    [{}, {"positions": "rotary", "num_kv_heads": 1, "sliding_window": 4}, {"norm_position": "post"}],
    ids=["gpt2", "windowed", "post_norm"],
)
def test_greedy_is_what_full_recomputation_gives(changes):
    model = make_model(**changes)
    for prompt in PROMPTS:
        found = model.generate(prompt, max_new_tokens=8)
        assert found == prompt + recomputed(model, prompt, 8)


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_batch_of_ragged_prompts_is_each_alone(model, options):
    alone = [model.generate(p, max_new_tokens=6, **options) for p in PROMPTS]
    assert model.generate(PROMPTS, max_new_tokens=6, **options) == alone
    assert model.generate(PROMPTS[::-1], max_new_tokens=6, **options) == alone[::-1]
    arrays = [np.array(p) for p in PROMPTS]
    assert model.generate(arrays, max_new_tokens=6, strip_prompt=True, **options) == [
        answer[len(p) :] for answer, p in zip(alone, PROMPTS)
    ]


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_streamed_tokens_are_those_returned(model, options):
    whole = model.generate(PROMPTS[0], max_new_tokens=8, strip_prompt=True, **options)
    assert list(model.generate(PROMPTS[0], max_new_tokens=8, stream=True, **options)) == whole


def test_a_seed_is_a_text(model):
    first = [model.generate(PROMPTS[0], max_new_tokens=10, **{**SAMPLED, "seed": seed}) for seed in range(4)]
    again = [model.generate(PROMPTS[0], max_new_tokens=10, **{**SAMPLED, "seed": seed}) for seed in range(4)]
    assert first == again and len({tuple(f) for f in first}) > 1


def test_narrow_samplers_are_greedy(model):
    greedy = model.generate(PROMPTS, max_new_tokens=8)
    for options in ({"sampler": "top_k", "top_k": 1}, {"sampler": "top_p", "top_p": 1e-6}):
        assert model.generate(PROMPTS, max_new_tokens=8, seed=3, **options) == greedy
    assert model.generate(PROMPTS, max_new_tokens=8, sampler=Sampler(temperature=0.0)) == greedy


def test_the_first_sampled_token_follows_the_model(model):
    prompt = PROMPTS[1]
    batch = [prompt] * 4
    logits = ops.convert_to_numpy(model(np.array([prompt], "int32")))[0, -1].astype("float64")
    likely = np.argsort(-logits)[:3]
    seen = set()
    for seed in range(8):
        answers = model.generate(batch, max_new_tokens=1, sampler="top_k", top_k=3, seed=seed, strip_prompt=True)
        assert len({a[0] for a in answers}) == 1  # the same request, the same answer
        seen.add(answers[0][0])
    assert seen <= set(likely.tolist()) and len(seen) > 1


def test_stop_tokens_end_an_answer_and_are_not_part_of_it(model):
    whole = model.generate(PROMPTS[2], max_new_tokens=8, strip_prompt=True)
    stop = whole[3]
    expected = whole[: whole.index(stop)]
    options = {"max_new_tokens": 8, "stop_token_ids": [stop], "strip_prompt": True}
    assert model.generate(PROMPTS[2], **options) == expected
    others = [model.generate(p, **options) for p in PROMPTS]
    assert model.generate(PROMPTS, **options) == others  # a row that ended does not disturb the rest
    assert list(model.generate(PROMPTS[2], max_new_tokens=8, stop_token_ids=[stop], stream=True)) == expected


def test_the_context_slides_with_truncation(model):
    found = model.generate(PROMPTS[0], max_new_tokens=40, truncation=True, strip_prompt=True)
    assert len(found) == 40 and found == recomputed(model, PROMPTS[0], 40)
    long = list(range(25))
    kept = model.generate(long, max_new_tokens=5, truncation=True, strip_prompt=True)
    assert kept == recomputed(model, long[-(LENGTH - 1) :], 5)
    both = model.generate([PROMPTS[0], long], max_new_tokens=20, truncation=True, strip_prompt=True)
    assert both == [
        model.generate(p, max_new_tokens=20, truncation=True, strip_prompt=True) for p in (PROMPTS[0], long)
    ]


def test_a_prompt_and_its_answer_may_fill_the_context(model):
    assert len(model.generate(PROMPTS[0], max_new_tokens=LENGTH - len(PROMPTS[0]))) == LENGTH
    assert len(model.generate([1] * (LENGTH - 1), max_new_tokens=1)) == LENGTH


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        ([], {}, "prompt"),
        ([[]], {}, "no token ids"),
        ([[1], []], {}, "no token ids"),
        ([1, VOCABULARY], {}, f"{VOCABULARY}.*vocabulary_size is {VOCABULARY}"),
        ([-1], {}, "-1"),
        ([1.5, 2.0], {}, "integers"),
        ("text", {}, "no tokenizer"),
        ([1] * LENGTH, {}, f"{LENGTH} tokens.*context is {LENGTH}.*truncation=True"),
        ([1] * 10, {"max_new_tokens": 7}, f"max_new_tokens=7.*context of {LENGTH}.*at most 6"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens"),
        ([1], {"max_new_tokens": 2.5}, "2.5"),
        ([1], {"max_new_tokens": True}, "max_new_tokens"),
        ([1], {"sampler": "beam"}, "beam"),
        ([1], {"sampler": "temperature", "temperature": -1}, "temperature=-1"),
        ([1], {"sampler": "temperature", "temperature": "hot"}, "temperature='hot'"),
        ([1], {"sampler": "top_k", "top_k": -1}, "top_k=-1"),
        ([1], {"sampler": "top_k", "top_k": VOCABULARY + 1}, f"vocabulary of {VOCABULARY}"),
        ([1], {"sampler": "top_p", "top_p": 0}, "top_p=0"),
        ([1], {"sampler": "top_p", "top_p": 1.5}, "top_p=1.5"),
        ([1], {"temperature": 0.5}, "greedy"),
        ([1], {"seed": -3}, "seed=-3"),
        ([1], {"stop": "x"}, "tokenizer"),
        ([1], {"stop_token_ids": [VOCABULARY]}, f"{VOCABULARY}"),
        ([[1], [2]], {"stream": True}, "one prompt"),
    ],
    ids=str,
)
def test_errors_name_what_is_wrong(model, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(prompt, **{"max_new_tokens": 3, **options})


def test_lengths_rows_and_settings_do_not_compile_anew():
    model = make_model()
    model.generate([1, 2, 3], max_new_tokens=3)
    programs = programs_of(model)
    assert programs.compilations == 2  # reading the prompt, and making tokens
    model.generate([1, 2, 3], max_new_tokens=3, **SAMPLED)
    assert programs.compilations == 3  # making tokens by sampling
    for prompt in PROMPTS:
        for seed in (1, 2):
            options = {"sampler": "top_k", "top_k": seed, "temperature": 0.5, "min_p": 0.1, "presence_penalty": 0.2}
            model.generate(prompt, max_new_tokens=4 + seed, seed=seed, **options)
            model.generate(prompt, max_new_tokens=2 + seed)
    assert programs.compilations == 3
    model.generate(PROMPTS, max_new_tokens=2)
    several = programs.compilations
    assert several == 5  # another number of slots
    model.generate([*PROMPTS, [7]], max_new_tokens=4)
    assert programs.compilations == several
    assert programs_of(model) is programs


def test_new_weights_are_used(model):
    model = make_model()
    before = model.generate(PROMPTS[0], max_new_tokens=6)
    keras.utils.set_random_seed(99)
    model.set_weights([np.random.normal(size=w.shape) for w in model.get_weights()])
    after = model.generate(PROMPTS[0], max_new_tokens=6)
    assert after != before and after == PROMPTS[0] + recomputed(model, PROMPTS[0], 6)
