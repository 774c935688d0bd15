"""Every format, from every backend: the same answers as the model, or an error that says what to do."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kerasllm
from kerasllm.cli import app
from kerasllm.serving import elsewhere
from kerasllm.serving.export import FORMATS, export

GUIDE = Path(__file__).resolve().parents[2] / "docs/export.md"
HERE, ELSEWHERE = "directly", "through TensorFlow, in a process of its own"
# What the tests below find: format → how each backend writes it.
ROUTES = {
    name: dict.fromkeys(("tensorflow", "jax", "torch"), HERE)
    for name in ("tf_saved_model", "onnx", "openvino", "litert", "gguf", "huggingface")
}
for name in ("tf_saved_model", "litert"):
    ROUTES[name] |= {"jax": ELSEWHERE, "torch": ELSEWHERE}
TOLERANCE = {**dict.fromkeys(FORMATS, 1e-4), "gguf": 0.01}  # ggml looks GELU up in a table of half precision
IDS = np.random.default_rng(0).integers(0, 32, (2, 7)).astype("int32")
MASK = np.ones_like(IDS)


def tiny(tokenizer=None, **changes):
    keras.utils.set_random_seed(5)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "initializer_range": 0.3, **changes}
    return kerasllm.CausalLM(kerasllm.TransformerConfig(32, 16, **sizes), tokenizer)


def logits_of(model):
    return keras.ops.convert_to_numpy(model(IDS, training=False))


def run_saved_model(folder):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / "1"))
    return loaded.signatures["serving_default"](token_ids=tf.constant(IDS), padding_mask=tf.constant(MASK))["logits"]


def run_onnx(folder):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return session.run(["logits"], {"token_ids": IDS.astype("int64"), "padding_mask": MASK.astype("int64")})[0]


def run_openvino(folder):
    import openvino

    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"token_ids": IDS.astype("int64"), "padding_mask": MASK.astype("int64")})["logits"]


def run_litert(folder):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(folder / "model.tflite")).get_signature_runner("serving_default")
    return next(iter(runner(token_ids=IDS, padding_mask=MASK).values()))


def run_gguf(folder):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(folder / "model.gguf"), n_ctx=16, logits_all=True, verbose=False, n_threads=1)
    rows = []
    for row in IDS:
        model.reset()
        model.eval(row.tolist())
        rows.append(np.array(model.scores[: len(row)]))
    return np.stack(rows)


def run_huggingface(folder):
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor(IDS, dtype=torch.int64)).logits.numpy()


RUNS = {
    "tf_saved_model": run_saved_model,
    "onnx": run_onnx,
    "openvino": run_openvino,
    "litert": run_litert,
    "gguf": run_gguf,
    "huggingface": run_huggingface,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_computes_the_models_logits(name, tmp_path, monkeypatch):
    processes = []
    start = elsewhere.subprocess.run
    monkeypatch.setattr(elsewhere.subprocess, "run", lambda *a, **k: processes.append(1) or start(*a, **k))
    model = tiny()
    options = {"kind": "f32"} if name == "gguf" else {}
    model.export(tmp_path / "out", format=name, **options)
    np.testing.assert_allclose(RUNS[name](tmp_path / "out"), logits_of(model), atol=TOLERANCE[name])
    assert (ELSEWHERE if processes else HERE) == ROUTES[name][keras.backend.backend()]
    card = (tmp_path / "out/README.md").read_text()
    assert f"## Export: {name}" in card
    for section in ("Data, recipe and figures", "Limits", "Licence"):
        assert f"## {section}" in card


@pytest.mark.one_backend
def test_the_guides_table_is_what_the_tests_find():
    rows = [f"| `{name}` | {' | '.join(routes.values())} |" for name, routes in ROUTES.items()]
    table = "\n".join(["| format | TensorFlow | JAX | PyTorch |", "|---|---|---|---|", *rows])
    assert table in GUIDE.read_text(encoding="utf-8")


def test_active_adapters_are_merged_for_as_long_as_it_takes(tmp_path):
    model = tiny()
    model.enable_lora(rank=2)
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, stddev=0.3, seed=1))
    before = [keras.ops.convert_to_numpy(v.value) for v in model.weights]
    want = logits_of(model)
    model.export(tmp_path / "out", format="onnx")
    np.testing.assert_allclose(run_onnx(tmp_path / "out"), want, atol=1e-4)
    for old, variable in zip(before, model.weights):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(variable.value))


def test_quantized_weights_are_made_float_again(tmp_path):
    model = tiny()
    model.quantize("int8")
    model.export(tmp_path / "out", format="onnx")
    np.testing.assert_allclose(run_onnx(tmp_path / "out"), logits_of(model), atol=1e-4)


@pytest.mark.one_backend
def test_a_directory_that_exists_is_not_written_into_unless_asked(tmp_path):
    out, model = tmp_path / "out", tiny()
    out.mkdir()
    model.export(out, format="onnx")  # an empty one is as good as none
    before = (out / "model.onnx").read_bytes()
    with pytest.raises(ValueError, match=r"exists.*overwrite=True \(--overwrite\)"):
        model.export(out, format="onnx")
    (out / "notes.txt").write_text("mine")
    tiny(num_layers=2).export(out, format="onnx", overwrite=True)
    assert (out / "model.onnx").read_bytes() != before
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="A file is in the way"):
        model.export(tmp_path / "file", format="onnx")


@pytest.mark.one_backend
@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupted_export_leaves_nothing(exists, tmp_path, monkeypatch):
    out, model = tmp_path / "out", tiny()
    if exists:
        out.mkdir()
        (out / "notes.txt").write_text("mine")

    def half(model, aside, directory):
        (aside / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMATS, "onnx", half)
    with pytest.raises(KeyboardInterrupt):
        model.export(out, format="onnx", overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "notes.txt"] if exists else [])


@pytest.mark.one_backend
def test_what_cannot_be_exported_is_said(tmp_path):
    with pytest.raises(ValueError, match="must be one of tf_saved_model, onnx, openvino, litert, gguf, huggingface"):
        export(tiny(), tmp_path / "out", format="pickle")
    with pytest.raises(ValueError, match=r"llama\.cpp runs a CausalLM"):
        tiny(activation="relu").export(tmp_path / "out", format="gguf")
    quantized = tiny()
    quantized.quantize("int8")
    for model in (quantized, tiny(head_dim=8)):
        with pytest.raises(ValueError, match="transformers has no model like this CausalLM"):
            model.export(tmp_path / "out", format="huggingface")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_a_saved_model(tmp_path):
    directory = tmp_path / "mine"
    tokenizer = kerasllm.Tokenizer.train("to be or not", kind="char", special_tokens=["</s>"])
    tiny(tokenizer).save_to_preset(directory)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nMade of sonnets.\n")

    def run(*arguments):
        return CliRunner().invoke(app, ["export", str(directory), *map(str, arguments)])

    result = run("--format", "onnx")
    assert result.exit_code == 0, result.output
    out = tmp_path / "mine-onnx"
    assert str(out) in result.output.replace("\n", "")
    names = {path.name for path in out.iterdir()}
    assert {"model.onnx", "decoder.onnx", "weights.bin", "tokenizer.json", "README.md"} <= names
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit") and "Made of sonnets." in card and "## Licence" not in card
    again = run("--format", "onnx")
    assert again.exit_code == 2 and "--overwrite" in again.output
    assert run("--format", "onnx", "--overwrite").exit_code == 0
    unknown = run("--format", "pickle")
    assert unknown.exit_code == 2 and "litert" in re.sub(r"\s+", " ", unknown.output)
