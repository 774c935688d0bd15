"""GGUF files and llama.cpp as an engine: the same tokens as ours in float32, near them in fewer bits."""

import itertools

import numpy as np
import pytest
from keras import ops
from tiny_models import make

import kerasllm
from kerasllm.compression import use_engine

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from kerasllm.compression.llama_cpp import LlamaCpp
from kerasllm.interop.gguf import export_gguf

WIDE = {"hidden_dim": 32, "intermediate_dim": 64, "max_sequence_length": 32}
LLAMA3 = {
    "type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_sequence_length": 16,
}
PROMPTS = [[1, 2, 3], [5, 6, 7, 8, 9, 10, 11], [1, 2, 3], [40]]


def wide(kind, **changes):
    config = make(kind)[0].config.to_dict()
    return kerasllm.CausalLM(kerasllm.TransformerConfig.from_dict({**config, **WIDE, "head_dim": None, **changes}))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("gpt", {}), ("gpt", {"tie_embeddings": False}), ("llama", {}), ("llama", {"rope_scaling": LLAMA3})],
)
def test_float32_is_ours(kind, changes):
    model = wide(kind, **changes)
    rows = np.random.default_rng(0).integers(0, 48, (2, 12)).astype("int32")
    expected = ops.convert_to_numpy(model(rows))
    spread = expected.std()
    programs = LlamaCpp(model, "f32")
    # ggml looks GELU and SiLU up in tables of half precision.
    for form, bound in (("f32", 0.003), ("f16", 0.01), ("q8_0", 0.05), ("q4_0", 0.5)):
        programs = LlamaCpp(model, form)
        logits, _, _ = programs.logits(programs.empty_cache(2, 16), rows, np.zeros(2, "int32"), ())
        assert np.abs(logits - expected).mean() < bound * spread, form


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_generate_makes_the_same_tokens(kind):
    model = wide(kind)
    ours = model.generate(PROMPTS, max_new_tokens=12)
    assert use_engine(model, "llama.cpp") == "llama.cpp" and model._programs.kind == "f32"
    assert model.generate(PROMPTS, max_new_tokens=12) == ours
    assert list(model.generate(PROMPTS[1], max_new_tokens=5, stream=True)) == ours[1][7:12]
    assert model.generate(PROMPTS[1], max_new_tokens=12, draft="lookup") == ours[1]
    sampled = {"max_new_tokens": 6, "sampler": "top_k", "top_k": 20, "repetition_penalty": 1.3, "seed": 5}
    assert model.generate(PROMPTS, **sampled) == [model.generate(prompt, **sampled) for prompt in PROMPTS]
    # Quantizing it puts Keras back, since these are other weights.
    model.quantize("int8")
    assert not isinstance(model._programs, LlamaCpp)
    use_engine(model, "llama.cpp")
    assert model._programs.kind == "q8_0"


@pytest.mark.one_backend
def test_what_it_does_not_run_is_refused(tmp_path):
    for kind, changes in (("bert", {}), ("t5", {}), ("gpt", {"activation": "relu"})):
        with pytest.raises(ValueError, match="GPT-2"):
            export_gguf(make(kind, **changes)[0], tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="q8_0"):
        export_gguf(make("gpt")[0], tmp_path / "x.gguf", "q5_9")
    assert not list(tmp_path.iterdir())


TEXTS = [
    "The function returns",
    " two  spaces\n\n\tand a tab ",
    "naïve 'quotes' 1234, 日本語 🙂",
    "it's we'll I'M",
    "a<|endoftext|>b",
]


def test_the_file_reads_text_as_our_tokenizer(tmp_path):
    from llama_cpp import Llama

    texts = itertools.islice(kerasllm.data.read_texts("builtin:pydoc"), 200)
    tokenizer = kerasllm.Tokenizer.train(texts, kind="bpe", vocabulary_size=500)
    config = kerasllm.TransformerConfig.from_name(
        "gpt2_tiny", vocabulary_size=512, hidden_dim=32, num_layers=1, num_heads=2, max_sequence_length=64
    )
    model = kerasllm.CausalLM(config, tokenizer)
    export_gguf(model, tmp_path / "with.gguf", "f32")
    reads = Llama(str(tmp_path / "with.gguf"), n_ctx=64, verbose=False)
    for text in TEXTS:
        ids = reads.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer.encode(text, parse_special=False)
        assert reads.detokenize(ids).decode() == text
    assert reads.token_eos() == tokenizer.end_token_id
    made = reads.create_completion("The function", max_tokens=8, temperature=0)["choices"][0]["text"]
    assert made == model.generate("The function", max_new_tokens=8, strip_prompt=True, stop_token_ids=[])
