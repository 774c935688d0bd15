"""What `save_adapter` writes: the same while adapters are merged, all that was trained, and where the base is."""

import json
import os

import numpy as np
import peft
import pytest
import torch
from keras import ops
from test_against_peft import ids, make, ours, theirs

import kerasllm
from kerasllm.tuning import (
    IA3,
    BitFit,
    LayerNormTuning,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    load_adapter,
)
from kerasllm.tuning.model_adapters import adapter_of

CONFIG = kerasllm.TransformerConfig(
    31, 16, num_layers=1, num_heads=2, hidden_dim=8, initializer_range=0.3, tie_embeddings=False
)
FILES = ("adapter_config.json", "adapter_model.safetensors")
MERGEABLE = {
    "lora": LoRA(rank=2),
    "lora and all biases": LoRA(rank=2, bias="all"),
    "lora and its biases": LoRA(rank=2, bias="lora_only"),
    "lora and an embedding": LoRA(rank=2, also_train="embedding.tokens"),
    "lora and norms": LoRA(rank=2, also_train="*norm"),
    "lora and a part of a fused kernel": LoRA(rank=2, targets="attention.output_dense", also_train="attention.query"),
    "dora of a part of a fused kernel": LoRA(rank=2, targets="attention.key", dora=True),
    "pissa": LoRA(rank=2, initialization="pissa"),
    "ia3": IA3(targets=("key", "value")),
    "bitfit": BitFit(),
    "norms": LayerNormTuning(),
}


def randomize(model, name, size=0.2):
    for i, variable in enumerate(adapter_of(model, name).variables):
        if variable.trainable:
            variable.assign(variable + size * np.random.default_rng(i).normal(size=variable.shape))


def contents(directory):
    return [(directory / file).read_bytes() for file in FILES]


@pytest.mark.one_backend
@pytest.mark.parametrize("task", ["CausalLM", "TextClassifier"])
@pytest.mark.parametrize("method", MERGEABLE)
def test_a_file_is_the_same_while_merged(task, method, tmp_path):
    options = {"labels": ["a", "b"]} if task == "TextClassifier" else {}
    model = getattr(kerasllm, task)(CONFIG, **options)
    model.add_adapter("other", LoRA(rank=3, targets="attention.*", bias="lora_only"))
    model.add_adapter("mine", MERGEABLE[method])
    for name in ("other", "mine"):
        randomize(model, name)
    adapted = ops.convert_to_numpy(model(ids(2, 9)))
    model.save_adapter(tmp_path / "before", "mine")
    model.set_adapter(["mine", "other"], [0.5, 2.0])
    model.scale(3.0, "mine")
    model.merge()
    model.save_adapter(tmp_path / "merged", "mine")
    model.unmerge()
    model.save_adapter(tmp_path / "after", "mine")
    assert contents(tmp_path / "merged") == contents(tmp_path / "before") == contents(tmp_path / "after")
    model.delete_adapter("mine")
    model.load_adapter(tmp_path / "merged", "again")
    np.testing.assert_allclose(ops.convert_to_numpy(model(ids(2, 9))), adapted, atol=1e-5)


TRAINED = {  # (family, settings, whether peft opens the file)
    "an embedding trained whole": ("llama", LoRA(rank=2, also_train="embedding.tokens"), True),
    "a tied embedding trained whole": ("gpt2", LoRA(rank=2, also_train="embedding.tokens"), True),
    "an embedding": ("gpt2", LoRA(rank=2, targets=["embedding.tokens", "query"]), True),
    "a part of a fused kernel trained whole": ("gpt2", IA3(targets="down", also_train="*.key"), True),
    "norms trained whole": ("llama", IA3(also_train="*norm"), True),
    "a relative bias trained whole": ("t5", LoRA(rank=2, also_train="encoder.relative_bias"), True),
    "an embedding that is several modules": ("t5", LoRA(rank=2, targets=["embedding.tokens", "query"]), False),
    "such an embedding trained whole": ("t5", IA3(also_train="embedding.tokens"), False),
    "a prompt of a classifier": ("bert", PromptTuning(num_tokens=3), False),
    "a trained prompt of a classifier": ("bert", PTuning(num_tokens=3), False),
    "a prefix of a classifier": ("bert", PrefixTuning(num_tokens=3), True),
    "a prompt and an embedding": ("llama", PromptTuning(num_tokens=3, also_train="embedding.tokens"), False),
    "a prompt and norms": ("llama", PromptTuning(num_tokens=3, also_train="*norm"), True),
    "a prefix and an embedding": ("llama", PrefixTuning(num_tokens=3, also_train="embedding.tokens"), True),
}


@pytest.mark.one_backend
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("label", TRAINED)
def test_all_that_was_trained_is_saved(label, tmp_path):
    """peft opens what it computes in the same way; what it does not is in a format of our own, which it refuses."""
    family, settings, is_peft = TRAINED[label]
    base, model = make(family, tmp_path / "base")
    model.add_adapter("mine", settings)
    randomize(model, "mine")
    expected = ops.convert_to_numpy(ours(model, family))
    model.save_adapter(tmp_path / "mine", "mine")
    model.delete_adapter("mine")
    model.load_adapter(tmp_path / "mine")
    np.testing.assert_allclose(ops.convert_to_numpy(ours(model, family)), expected, atol=1e-5, rtol=1e-5)
    if not is_peft:
        with pytest.raises(KeyError, match="KERASLLM"):
            peft.PeftModel.from_pretrained(base, tmp_path / "mine")
        return
    with torch.no_grad():
        found = theirs(peft.PeftModel.from_pretrained(base, tmp_path / "mine").eval(), family).numpy()
    found = found if found.ndim == 2 else found[:, -expected.shape[1] :]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.one_backend
@pytest.mark.filterwarnings("ignore")
def test_the_base_is_named_where_it_still_is(tmp_path, monkeypatch):
    def saved(model):
        model.save_adapter(tmp_path / "adapter", "mine")
        return json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]

    _, model = make("llama", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    model = kerasllm.CausalLM.from_preset("base", dtype="bfloat16")
    model.add_adapter("mine", LoRA(rank=2))
    randomize(model, "mine")
    model.merge()
    assert saved(model) == str(tmp_path / "base")
    model.unmerge()
    model = kerasllm.CausalLM.from_preset("base")
    model.load_adapter("adapter", "mine")
    assert saved(model) == str(tmp_path / "base")
    os.chdir("/")
    peer = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(peer, "llama").numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(ours(model, "llama")), expected, atol=1e-4, rtol=1e-4)

    # Another base than the directory's: trained since, saved elsewhere, or overwritten there.
    os.chdir(tmp_path)
    model.delete_adapter("mine")
    model.transformer.final_norm.scale.assign(model.transformer.final_norm.scale + 1)
    model.add_adapter("mine", LoRA(rank=2))
    assert saved(model) is None
    with model.disable_adapter():
        model.save_to_preset("elsewhere")
    assert saved(model) == str(tmp_path / "elsewhere")
    model.merge()
    model.save_to_preset("merged")
    model.unmerge()
    assert saved(model) == str(tmp_path / "elsewhere")
    make("gpt2", tmp_path / "elsewhere")
    assert saved(model) is None
    made = kerasllm.CausalLM(CONFIG)
    made.add_adapter("mine", LoRA(rank=2))
    assert saved(made) is None


@pytest.mark.one_backend
def test_a_quantized_base_takes_what_was_trained_whole(tmp_path):
    """Its values are compared with nothing, and a weight that is quantized is moved by what the file adds to it."""
    model = kerasllm.TextClassifier(CONFIG, labels=["a", "b"])
    model.add_adapter("mine", LoRA(rank=2, also_train=["classifier", "embedding.tokens"]))
    randomize(model, "mine")
    expected = ops.convert_to_numpy(model(ids(2, 9)))
    model.save_adapter(tmp_path, "mine")
    model.delete_adapter("mine")
    model.quantize("int8")
    load_adapter(model, tmp_path)
    np.testing.assert_allclose(ops.convert_to_numpy(model(ids(2, 9))), expected, atol=0.05)
