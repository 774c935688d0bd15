"""Weights in several files, in their own dtype, and without a second copy of them in memory."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import safetensors.numpy
from keras import ops

from kerasllm import CausalLM, TransformerConfig
from kerasllm.interop.presets import variables_by_path

CONFIG = TransformerConfig(60, 8, num_layers=2, num_heads=2, hidden_dim=16, initializer_range=0.2)
INDEX = "model.safetensors.index.json"


def same_weights(first, second):
    theirs = variables_by_path(second)
    for path, variable in variables_by_path(first).items():
        assert variable.dtype == theirs[path].dtype
        np.testing.assert_array_equal(*(ops.convert_to_numpy(v.value) for v in (variable, theirs[path])))


@pytest.fixture
def sharded(tmp_path):
    CausalLM(CONFIG).save_to_preset(tmp_path, max_shard_bytes=10_000)
    return tmp_path


def edit_index(directory, change):
    path = directory / INDEX
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refused(directory, message, error=ValueError):
    with pytest.raises(error, match=message):
        CausalLM.from_preset(directory)


class TestShards:
    def test_round_trip(self, tmp_path):
        model = CausalLM(CONFIG)
        model.save_to_preset(tmp_path, max_shard_bytes=10_000)
        files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
        assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) >= 3
        assert all((tmp_path / name).stat().st_size < 12_000 for name in files)
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == 4 * model.count_params()
        same_weights(CausalLM.from_preset(tmp_path), model)

    def test_transformers_opens_them(self, tmp_path):
        import torch
        import transformers

        model = CausalLM(CONFIG)
        model.save_to_preset(tmp_path, max_shard_bytes=10_000)
        peer, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        ids = np.arange(6, dtype="int32")[None]
        with torch.no_grad():
            expected = peer.eval()(torch.tensor(ids).long()).logits.numpy()
        np.testing.assert_allclose(ops.convert_to_numpy(model(ids)), expected, atol=1e-4)
        peer.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
        assert (tmp_path / "theirs" / INDEX).is_file()
        same_weights(CausalLM.from_preset(tmp_path / "theirs"), model)

    @pytest.mark.parametrize("first, second", [(10_000, 10**9), (10**9, 10_000), (10_000, 20_000)])
    def test_files_of_an_earlier_save_do_not_stay(self, first, second, tmp_path):
        CausalLM(CONFIG).save_to_preset(tmp_path, first)
        model = CausalLM(CONFIG)
        model.save_to_preset(tmp_path, second)
        index = tmp_path / INDEX
        expected = {"model.safetensors"}
        if index.is_file():
            expected = set(json.loads(index.read_text())["weight_map"].values())
        assert {path.name for path in tmp_path.glob("*.safetensors")} == expected
        same_weights(CausalLM.from_preset(tmp_path), model)

    @pytest.mark.parametrize(
        "name", ["../x.safetensors", "/x.safetensors", "a\\b.safetensors", "C:x.safetensors", ".."]
    )
    def test_an_index_that_leads_elsewhere(self, sharded, name):
        CausalLM(CONFIG).save_to_preset(sharded / "..")
        edit_index(sharded, lambda index: index["weight_map"].update({"transformer.wte.weight": name}))
        refused(sharded, "may only name .safetensors files beside it")

    def test_a_pickle_in_the_index(self, sharded):
        edit_index(sharded, lambda index: index["weight_map"].update({"transformer.wte.weight": "model.bin"}))
        refused(sharded, r"'model\.bin'")

    def test_a_missing_shard(self, sharded):
        (sharded / next(iter(sharded.glob("model-00002-*"))).name).unlink()
        refused(sharded, r"lacks model-00002-of", FileNotFoundError)

    def test_a_shard_without_its_tensor(self, sharded):
        edit_index(sharded, lambda index: index["weight_map"].update(extra=min(index["weight_map"].values())))
        refused(sharded, r"model-00001.*lacks extra, which model\.safetensors\.index\.json says it has")

    def test_a_truncated_shard(self, sharded):
        path = next(iter(sharded.glob("model-00002-*")))
        path.write_bytes(path.read_bytes()[:-1])
        refused(sharded, "model-00002.*damaged")

    @pytest.mark.parametrize("weight_map", [None, [], {"a": 1}, {"a": None}])
    def test_an_index_without_a_map(self, sharded, weight_map):
        edit_index(sharded, lambda index: index.update(weight_map=weight_map))
        refused(sharded, "no weight_map")

    def test_an_empty_map(self, sharded):
        edit_index(sharded, lambda index: index.update(weight_map={}))
        refused(sharded, "lacks transformer.wte.weight")


class TestDtypes:
    @pytest.mark.parametrize("dtype, name", [("bfloat16", "BF16"), ("float16", "F16")])
    def test_half_stays_half(self, dtype, name, tmp_path):
        model = CausalLM(CONFIG, dtype=dtype)
        model.save_to_preset(tmp_path)
        with safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {name}  # noqa: SIM118
        assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
        loaded = CausalLM.from_preset(tmp_path)
        assert loaded.dtype_policy.name == dtype
        same_weights(loaded, model)
        ids = np.arange(8, dtype="int32")[None]
        outputs = [np.asarray(ops.convert_to_numpy(m(ids)), "float32") for m in (loaded, model)]
        np.testing.assert_allclose(*outputs, atol=1e-2)

    def test_a_dtype_of_ones_own(self, tmp_path):
        model = CausalLM(CONFIG, dtype="bfloat16")
        model.save_to_preset(tmp_path)
        loaded = CausalLM.from_preset(tmp_path, dtype="float32")
        theirs = variables_by_path(model)
        for path, variable in variables_by_path(loaded).items():
            expected = np.asarray(ops.convert_to_numpy(theirs[path].value), "float32")
            np.testing.assert_array_equal(ops.convert_to_numpy(variable.value), expected)

    def test_one_half_among_whole_ones_halves_nothing(self, tmp_path):
        CausalLM(CONFIG).save_to_preset(tmp_path)
        path = tmp_path / "model.safetensors"
        weights = safetensors.numpy.load_file(path)
        weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"].astype("float16")
        safetensors.numpy.save_file(weights, path)
        assert CausalLM.from_preset(tmp_path).variable_dtype == "float32"


def test_a_loaded_model_is_no_map_of_its_file(tmp_path):
    """What is trained or saved over must not change the other."""
    model = CausalLM(CONFIG)
    model.save_to_preset(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded = CausalLM.from_preset(tmp_path)
    loaded.compile(keras.optimizers.SGD(0.1), jit_compile=keras.backend.backend() == "jax")
    loaded.fit(np.ones((4, 8), "int32"), verbose=0)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    weights = loaded.get_weights()
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(b"\0" * len(before))
    for found, expected in zip(loaded.get_weights(), weights):
        np.testing.assert_array_equal(found, expected)
    assert len(loaded.trainable_variables) == len(model.trainable_variables)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras distributes weights on JAX")
def test_loading_under_a_distribution(tmp_path):
    model = CausalLM(CONFIG)
    model.save_to_preset(tmp_path)
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0"]))
    try:
        loaded = CausalLM.from_preset(tmp_path)
    finally:
        keras.distribution.set_distribution(None)
    same_weights(loaded, model)


MEASURE = """
import os, sys
import keras
from kerasllm import CausalLM, TransformerConfig

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) * 1024

small, large = sys.argv[1:]
CausalLM(TransformerConfig(50, 8, 1, 2, 8)).save_to_preset(small)
CausalLM.from_preset(small)  # what the backend needs once
size = os.path.getsize(os.path.join(large, "model.safetensors"))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forgets the peak so far
before = memory("VmRSS")
model = CausalLM.from_preset(large)
print((memory("VmHWM") - before) / size, size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measures memory as Linux tells it")
def test_loading_takes_little_more_than_the_weights(tmp_path):
    sizes = {"num_layers": 5, "num_heads": 8, "hidden_dim": 512, "positions": "rotary", "norm": "rms_norm"}
    config = TransformerConfig(11_000, 64, **sizes, gated=True, use_bias=False, tie_embeddings=False)
    CausalLM(config).save_to_preset(tmp_path / "large")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    ratio, size = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert size > 1e8
    assert 0.9 < ratio <= 1.3
