"""Smaller models go where others go: onto the disk and back, into another format, behind the server."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.compression import Distiller, Wanda, prune, prune_structure, sparsity, student_from
from kerasllm.serving.worker import Worker

TOKENIZER = kerasllm.Tokenizer.train("a", kind="byte", special_tokens=["</s>"])
ROWS = np.random.default_rng(0).integers(97, 123, (8, 32)).astype("int32")
SIZES = {"num_layers": 2, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 64, "initializer_range": 0.3}


def quantized(model):
    model.quantize("gptq", calibration=ROWS)
    return model


def pruned(model):
    prune(model, Wanda("2:4", calibration=ROWS))
    return model


def with_fewer_heads(model):
    return prune_structure(model, heads=0.5, neurons=0.25, calibration=ROWS)


def distilled(model):
    student = student_from(model, num_layers=1)
    distiller = Distiller(student, model)
    distiller.compile(keras.optimizers.Adam(1e-3))
    distiller.fit(ROWS, batch_size=8, epochs=1, verbose=0)
    return student


@pytest.mark.parametrize("made", [quantized, pruned, with_fewer_heads, distilled])
def test_saved_loaded_exported_and_served(made, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    keras.utils.set_random_seed(0)
    model = kerasllm.CausalLM(kerasllm.TransformerConfig(TOKENIZER.vocabulary_size, 64, **SIZES), TOKENIZER)
    model = made(model)
    wanted = ops.convert_to_numpy(model(ROWS, training=False))
    text = model.generate("abc", 12, strip_prompt=True, stop_token_ids=[])

    model.save_to_preset(tmp_path / "saved")
    loaded = kerasllm.CausalLM.from_preset(tmp_path / "saved")
    np.testing.assert_allclose(ops.convert_to_numpy(loaded(ROWS, training=False)), wanted, atol=1e-5)
    if made is pruned:
        assert sparsity(loaded).total == pytest.approx(sparsity(model).total)

    loaded.export(tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
    inputs = {"token_ids": ROWS.astype("int64"), "padding_mask": np.ones_like(ROWS, "int64")}
    np.testing.assert_allclose(session.run(["logits"], inputs)[0], wanted, atol=1e-3)

    writer = Worker(str(tmp_path / "saved"), print, slots=1).writer
    job = {"prompts": ["abc"], "max_tokens": 12, "n": 1, "seed": 0, "sampler": {"temperature": 0.0}, "form": None}
    job |= {"logit_bias": {"256": -100.0}, "log_probs": None, "echo": False, "stop": [], "adapter": "", "stream": False}
    writer.submit(writer.prepare({"id": 1, **job}))
    served = ""
    while not writer.idle:
        served += "".join(event.get("text", "") for event in writer.step())
    assert served == text
