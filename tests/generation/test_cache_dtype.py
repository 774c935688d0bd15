"""Keys and values kept in fewer bits than the model computes in: the same answers, nearly, in less memory."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.generation import eight_bits
from kerasllm.generation.engine import Engine
from kerasllm.generation.prefix_cache import PrefixCache
from kerasllm.generation.programs import Programs
from kerasllm.generation.requests import Request

SIZES = {"num_heads": 2, "hidden_dim": 32, "intermediate_dim": 64, "initializer_range": 0.2}
GREEDY = kerasllm.Sampler(temperature=0.0)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6] * 20]


def make(seq2seq=False):
    keras.utils.set_random_seed(5)
    if seq2seq:
        config = kerasllm.TransformerConfig.from_name(
            "t5_tiny",
            vocabulary_size=40,
            max_sequence_length=32,
            num_layers=2,
            num_encoder_layers=2,
            **{**SIZES, "initializer_range": 0.08},  # Its scores are not divided by the size of a head.
        )
        return kerasllm.Seq2SeqLM(config)
    return kerasllm.CausalLM(kerasllm.TransformerConfig(40, 64, num_layers=2, **SIZES))


def size_of(cache) -> int:
    return sum(ops.convert_to_numpy(x).nbytes for pair in cache for x in pair)


def test_eight_bits_are_within_half_a_step():
    x = np.random.default_rng(0).normal(size=(3, 5, 16)).astype("float32")
    x *= np.logspace(-20, 20, 15).reshape(3, 5, 1).astype("float32")
    x[0, 0] = 0.0
    codes = eight_bits.packed(x)
    assert keras.backend.standardize_dtype(codes.dtype) == "int8"
    back = ops.convert_to_numpy(eight_bits.unpacked(codes, "float32"))
    # A mantissa of seven bits rounds the scale up by 1/64 at the most.
    step = np.abs(x).max(axis=-1, keepdims=True) / 127 * (1 + 1 / 64)
    assert (np.abs(back - x) <= 0.51 * step).all()


def dtypes_of(cache):
    return {keras.backend.standardize_dtype(x.dtype) for pair in cache for x in pair}


def stored(dtype):
    """XLA keeps bfloat16 as its bits."""
    return "uint16" if dtype == "bfloat16" and keras.backend.backend() != "torch" else dtype or "float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("seq2seq", [False, True])
def test_logits_are_close(dtype, seq2seq):
    """A prompt in one go, then tokens one by one, as in float32."""
    model, found = make(seq2seq), {}
    ids = np.random.default_rng(1).integers(0, 40, (2, 12)).astype("int32")
    for kept in (None, dtype):
        model.cache_dtype = kept
        programs, positions = Programs(model), np.zeros(2, "int32")
        cache, source = programs.empty_cache(2, 16), ()
        if seq2seq:
            pairs, lengths = programs.empty_source(2, 16)
            lengths[:] = 12
            made = programs.encode(np.pad(ids, ((0, 0), (0, 4))), lengths)
            source = programs.merge(pairs, made, np.ones(2, "bool")), lengths
            assert dtypes_of(source[0]) == {stored(kept)}
        rows = []
        for part in (ids[:, :8], *(ids[:, i : i + 1] for i in range(8, 12))):
            logits, _, cache = programs.logits(cache, part, positions, source)
            rows.append(ops.convert_to_numpy(logits))
            positions = positions + part.shape[1]
        found[kept] = np.concatenate(rows, axis=1)
        assert dtypes_of(cache) == {stored(kept)}
    error = (found[dtype] - found[None]).std() / found[None].std()
    assert 0 < error < 0.05


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_engine_alone_and_together(dtype):
    """Slots, prefix cache, streams, beams: all of them hold few bits, and a row is what it is alone."""
    model = make()
    model.cache_dtype = dtype
    alone = [model.generate(prompt, 12) for prompt in PROMPTS]
    assert model.generate(PROMPTS, 12) == alone
    engine = Engine(model, slots=2, prefix_cache=PrefixCache(), room=16)
    for _ in range(2):  # The second time, the long prompt's beginning is found.
        requests = [engine.submit(Request(prompt, 12, GREEDY)) for prompt in PROMPTS]
        while not all(request.finished for request in requests):
            engine.step()
        assert [prompt + request.new_tokens for prompt, request in zip(PROMPTS, requests)] == alone
    assert engine.prefix_cache.hits > 0
    assert len(model.generate(PROMPTS[0], 4, num_beams=2)) == 9
    assert model.generate(PROMPTS[2], 12, draft="lookup") == alone[2]


def test_a_quarter_of_the_memory():
    config = kerasllm.TransformerConfig(40, 64, num_layers=2, num_heads=1, hidden_dim=64)
    model = kerasllm.CausalLM(config)
    sizes = {}
    for model.cache_dtype in (None, "int8"):
        sizes[model.cache_dtype] = size_of(Programs(model).empty_cache(4, 64))
    assert sizes["int8"] / sizes[None] == 66 / 256


def test_refused():
    model = make()
    model.cache_dtype = "int3"
    with pytest.raises(ValueError, match="cache_dtype='int3'"):
        model.generate(PROMPTS[0], 2)
