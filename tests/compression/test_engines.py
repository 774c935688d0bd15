"""ONNX Runtime and OpenVINO as engines: the logits and tokens of the model that they were given, quantized or not."""

import sys

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import CALIBRATION, LLAMA, make

import kerasllm
from kerasllm import Sampler
from kerasllm.compression import use_engine
from kerasllm.generation.engine import Engine
from kerasllm.generation.requests import Request
from kerasllm.tuning import LoRA

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from kerasllm.compression.onnx_engines import OnnxPrograms

ENGINES = ("onnxruntime", "openvino")
PROMPTS = [[1, 2, 3], [5, 6, 7, 8, 9, 10, 11], [1, 2, 3], [40]]
GPTQ = keras.quantizers.GPTQConfig(None, None, group_size=16, activation_order=True)
RELATIVE = {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 16, "sliding_window": 6}


def wide(kind="gpt", **changes):
    keras.utils.set_random_seed(3)
    sizes = {"num_heads": 2, "hidden_dim": 32, "intermediate_dim": 64, "initializer_range": 0.3}
    family = LLAMA if kind == "llama" else {}
    return kerasllm.CausalLM(kerasllm.TransformerConfig(48, 32, **{"num_layers": 2, **sizes, **family, **changes}))


def check(model, engine, bound):
    """Logits are the model's, and each token that is made is the likeliest, both within `bound` standard deviations."""
    rows = np.random.default_rng(0).integers(0, 48, (2, 12)).astype("int32")
    expected = ops.convert_to_numpy(model(rows))
    programs = OnnxPrograms(model, engine, threads=1)
    logits, _, _ = programs.logits(programs.empty_cache(2, 16), rows, np.zeros(2, "int32"), ())
    assert np.abs(logits - expected).mean() < bound * expected.std()
    model._programs = programs
    made = model.generate(PROMPTS, max_new_tokens=12, stop_token_ids=[])
    filled = np.array([row + [0] * (19 - len(row)) for row in made], "int32")
    logits = ops.convert_to_numpy(model(filled))
    for prompt, row, own in zip(PROMPTS, made, logits):
        steps = own[len(prompt) - 1 : len(row) - 1]
        chosen = np.take_along_axis(steps, np.array(row[len(prompt) :])[:, None], axis=1)[:, 0]
        assert len(row) == len(prompt) + 12 and (chosen > steps.max(axis=1) - 10 * bound * expected.std()).all()
    return programs


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        ({}, None),
        (RELATIVE, None),
        ({}, {"embedding.tokens": "int4", "block_0.*": "int8", "*": "float"}),
        ({"tie_embeddings": False}, "int4"),
        ({"kind": "llama", "num_layers": 1}, GPTQ),
        ({"kind": "llama", "num_layers": 1}, "awq"),
    ],
)
def test_it_computes_what_the_model_does(model, mode):
    model = wide(**model)
    if mode is not None:
        model.quantize(mode, **({"calibration": CALIBRATION} if mode in (GPTQ, "awq") else {}))
    check(model, "openvino", 1e-5)
    # ONNX Runtime makes the inputs of quantized layers whole numbers.
    check(model, "onnxruntime", 1e-5 if mode is None else 0.03)


def test_weights_stay_small_and_odd_groups_are_floats():
    model, sizes = wide(num_layers=1), {}
    sizes["float"] = OnnxPrograms(model, "openvino").num_bytes
    for mode in ("int8", "int4"):
        model = wide(num_layers=1)
        model.quantize(mode)
        sizes[mode] = OnnxPrograms(model, "openvino").num_bytes
    assert sizes["int4"] < sizes["int8"] - 3000 < sizes["float"] - 20000
    model = wide(num_layers=1)
    model.quantize("int4", group_size=8)
    assert check(model, "onnxruntime", 1e-5).num_bytes > sizes["float"] - 3000


@pytest.mark.parametrize("engine", ENGINES)
def test_all_that_is_built_on_generate_works(engine):
    model = wide(num_layers=1)
    assert use_engine(model, engine) == engine
    ours = model.generate(PROMPTS, max_new_tokens=12)
    assert [model.generate(prompt, max_new_tokens=12) for prompt in PROMPTS] == ours
    assert list(model.generate(PROMPTS[1], max_new_tokens=5, stream=True)) == ours[1][7:12]
    assert model.generate(PROMPTS[1], max_new_tokens=12, draft="lookup") == ours[1]
    # Prompts that come one by one into an engine of many slots.
    many = Engine(model, slots=8, length=32)
    requests = []
    for prompt in PROMPTS:
        requests.append(many.submit(Request(prompt, 12, Sampler(temperature=0.0))))
        many.step(most=2)
    while not all(request.finished for request in requests):
        many.step()
    assert [request.context for request in requests] == ours
    if engine == "onnxruntime":  # All engines sample alike.
        sampled = {"max_new_tokens": 6, "sampler": "top_k", "top_k": 20, "repetition_penalty": 1.3, "seed": 5}
        assert model.generate(PROMPTS, **sampled) == [model.generate(prompt, **sampled) for prompt in PROMPTS]
    # Other weights put Keras back.
    model.quantize("int8")
    assert not isinstance(model._programs, OnnxPrograms)


@pytest.mark.one_backend
def test_auto_is_the_fastest(monkeypatch):
    speeds = {"onnxruntime": 3.0, "openvino": 5.0, "keras": 4.0}
    measured = []

    def speed(model):
        engine = "keras"
        if isinstance(model._programs, OnnxPrograms):
            engine = type(model._programs.runner).__name__.strip("_").lower()
        measured.append(engine)
        return speeds[engine]

    monkeypatch.setattr("kerasllm.compression.report.tokens_per_second", speed)
    model = wide(num_layers=1, activation="relu")  # llama.cpp does not run it.
    assert use_engine(model) == "openvino" and measured == ["onnxruntime", "openvino", "keras"]
    assert isinstance(model._programs, OnnxPrograms)
    speeds["keras"] = 6.0
    assert use_engine(model) == "keras" and model._programs is None
    measured.clear()
    assert use_engine(make("t5")[0]) == "keras" and not measured  # No other one runs it.


@pytest.mark.one_backend
def test_what_they_do_not_run_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"openvino runs a CausalLM without adapters.*a Seq2SeqLM"):
        use_engine(make("t5")[0], "openvino")
    model = wide(num_layers=1)
    model.add_adapter("mine", LoRA(rank=2))
    with pytest.raises(ValueError, match="a CausalLM with the adapters mine"):
        use_engine(model, "onnxruntime")
    for engine in ENGINES:
        monkeypatch.setitem(sys.modules, engine, None)
        with pytest.raises(ImportError, match=r"kerasllm\[export\]"):
            use_engine(wide(num_layers=1), engine)
