"""Against peft on random tiny models: outputs, gradients of every adapter weight, and files both ways."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from differentiate import weight_gradients
from keras import ops

import kerasllm
from kerasllm.interop.peft_names import Names
from kerasllm.tuning.files import variables_of
from kerasllm.tuning.model_adapters import adapter_of

SIZES = {"vocab_size": 31, "initializer_range": 0.3}
FAMILIES = {
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            n_embd=8, n_layer=2, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0, resid_pdrop=0, **SIZES
        ),
        kerasllm.CausalLM,
    ),
    "bert": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=24,
            num_labels=3,
            **SIZES,
        ),
        kerasllm.TextClassifier,
    ),
    "t5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(
            vocab_size=31,
            d_model=8,
            d_kv=4,
            d_ff=12,
            num_layers=1,
            num_heads=2,
            n_positions=24,
            decoder_start_token_id=0,
        ),
        kerasllm.Seq2SeqLM,
    ),
    "llama": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=12,
            max_position_embeddings=24,
            **SIZES,
        ),
        kerasllm.CausalLM,
    ),
}
TYPES = {"gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS"}
LINEAR = {
    "gpt2": ["c_attn", "mlp.c_proj"],
    "bert": ["query", "value", "intermediate.dense"],
    "t5": ["q", "v", "wi"],
    "llama": ["q_proj", "k_proj", "down_proj"],
}
CHOSEN = {
    "gpt2": ("lora", "rslora", "dora", "ia3"),
    "bert": ("rslora", "dora"),
    "t5": ("lora", "ia3"),
    "llama": ("dora",),
}
METHODS = {
    "lora": lambda f: peft.LoraConfig(r=2, lora_alpha=5, target_modules=LINEAR[f], task_type=TYPES[f]),
    "rslora": lambda f: peft.LoraConfig(
        r=2,
        rank_pattern={LINEAR[f][0]: 3},
        alpha_pattern={LINEAR[f][1]: 7},
        target_modules=LINEAR[f],
        use_rslora=True,
        task_type=TYPES[f],
        bias="all" if f == "bert" else "none",
    ),
    "dora": lambda f: peft.LoraConfig(r=2, target_modules=LINEAR[f], use_dora=True, task_type=TYPES[f]),
    "ia3": lambda f: peft.IA3Config(
        task_type=TYPES[f],
        **({"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]} if f == "bert" else {}),
    ),
}


def ids(rows, length, seed=0):
    return np.random.default_rng(seed).integers(1, 31, (rows, length)).astype("int32")


def inputs_of(family):
    if family == "t5":
        return {"encoder_token_ids": ids(2, 9), "decoder_token_ids": ids(2, 6, 1)}
    return {"token_ids": ids(2, 9)}


def theirs(peer, family):
    names = {"token_ids": "input_ids", "encoder_token_ids": "input_ids", "decoder_token_ids": "decoder_input_ids"}
    return peer(**{names[key]: torch.tensor(x).long() for key, x in inputs_of(family).items()}).logits


def ours(model, family):
    model._stage.now = None
    return model(inputs_of(family))


def make(family, tmp_path):
    cls, config, task = FAMILIES[family]
    torch.manual_seed(0)
    peer = cls(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    peer.save_pretrained(tmp_path)
    return peer, task.from_preset(tmp_path)


def randomize(peer):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))


def read(directory):
    return json.loads((directory / "adapter_config.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_gradients_and_files_both_ways(family, tmp_path):
    _, model = make(family, tmp_path / "base")
    base = ops.convert_to_numpy(ours(model, family))
    upstream = np.random.default_rng(2).normal(size=base.shape).astype("float32")
    for method in CHOSEN[family]:
        peer = peft.get_peft_model(make(family, tmp_path / "base")[0], METHODS[method](family)).eval()
        randomize(peer)
        peer.save_pretrained(tmp_path / method)
        with torch.enable_grad():
            expected = theirs(peer, family)
            (expected * torch.tensor(upstream)).sum().backward()
        expected = expected.detach().numpy()

        model.load_adapter(tmp_path / method, "theirs")
        found = ops.convert_to_numpy(ours(model, family))
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4, err_msg=method)
        assert np.abs(found - base).max() > 1e-2
        compare_gradients(peer, model, family, upstream)

        model.save_adapter(tmp_path / f"{method}-ours", "theirs")
        again = peft.PeftModel.from_pretrained(make(family, tmp_path / "base")[0], tmp_path / f"{method}-ours").eval()
        with torch.no_grad():
            np.testing.assert_allclose(theirs(again, family).numpy(), expected, atol=1e-4, rtol=1e-4, err_msg=method)
        model.delete_adapter("theirs")
        model.load_adapter(tmp_path / f"{method}-ours", "again")
        np.testing.assert_allclose(ops.convert_to_numpy(ours(model, family)), found, atol=1e-5, rtol=1e-5)
        model.delete_adapter("again")
        assert (ops.convert_to_numpy(ours(model, family)) == base).all()


def compare_gradients(peer, model, family, upstream):
    """Of each weight of theirs; those of a fused module are put together from ours."""
    gradients = weight_gradients(model, lambda: ops.sum(ops.multiply(ours(model, family), upstream)))
    variables = variables_of(adapter_of(model, "theirs"), "theirs")
    found = {key: gradients[variable.path] for key, variable in variables.items() if variable.path in gradients}
    names, compared = Names(model), 0
    for name, parameter in peer.named_parameters():
        if parameter.grad is None or (".lora_" not in name and ".ia3_l" not in name):
            continue
        module, _, kind = name.replace(".default", "").removesuffix(".weight").rpartition(".")
        layers = names.modules[names.known(module)]
        weight = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "magnitude", "ia3_l": "factor"}[kind]
        parts = [found[layer, "ia3" if kind == "ia3_l" else "lora", weight] for layer in layers]
        joined = sum(parts).T if kind == "lora_A" else np.concatenate(parts, axis=-1).T
        expected = parameter.grad.numpy()
        np.testing.assert_allclose(joined.reshape(expected.shape), expected, atol=1e-3, rtol=1e-3, err_msg=name)
        compared += np.abs(expected).max() > 1e-3
    assert compared > 2


@pytest.mark.one_backend
def test_what_we_make_ourselves_peft_opens(tmp_path):
    """Ranks that differ within a fused module, a part of one, an embedding, PiSSA."""
    for i, settings in enumerate(
        (
            kerasllm.tuning.LoRA(rank={"query": 2, "value": 3}, alpha={"query": 2, "value": 8}),
            kerasllm.tuning.LoRA(rank=2, dora=True, targets="block_1.attention.key"),
            kerasllm.tuning.LoRA(rank=2, targets=["embedding.tokens", "feed_forward.*"], initialization="orthogonal"),
            kerasllm.tuning.LoRA(rank=2, targets="attention.*", initialization="pissa", bias="lora_only"),
            kerasllm.tuning.IA3(),
        )
    ):
        peer, model = make("gpt2", tmp_path / "base")
        model.add_adapter("mine", settings)
        for j, variable in enumerate(adapter_of(model, "mine").variables):
            if variable.trainable:
                variable.assign(variable + 0.2 * np.random.default_rng(j).normal(size=variable.shape))
        expected = ops.convert_to_numpy(ours(model, "gpt2"))
        model.save_adapter(tmp_path / str(i), "mine")
        peer = peft.PeftModel.from_pretrained(peer, tmp_path / str(i)).eval()
        with torch.no_grad():
            np.testing.assert_allclose(theirs(peer, "gpt2").numpy(), expected, atol=1e-4, rtol=1e-4)
        _, model = make("gpt2", tmp_path / "base")
        model.load_adapter(tmp_path / str(i))
        np.testing.assert_allclose(ops.convert_to_numpy(ours(model, "gpt2")), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.one_backend
def test_several_as_one(tmp_path):
    """Their weighted sum, TIES and, where nothing is dropped, DARE."""
    base, model = make("llama", tmp_path / "base")
    peer, names, weights = None, ["a", "b"], [0.7, 0.4]
    for name, rank in zip(names, (2, 1)):
        config = peft.LoraConfig(r=rank, lora_alpha=3, target_modules=LINEAR["llama"], task_type="CAUSAL_LM")
        peer = peft.get_peft_model(base, config, name) if peer is None else peer
        if name not in peer.peft_config:
            peer.add_adapter(name, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in peer.named_parameters():
            if "lora_" in key:
                parameter.add_(0.5 * torch.randn_like(parameter))
    peer.save_pretrained(tmp_path)
    for name in names:
        model.load_adapter(tmp_path / name, name)
    found = {}
    for method, kind, density in (("linear", "cat", None), ("ties", "ties_svd", 0.4), ("dare", "dare_linear_svd", 1.0)):
        peer.add_weighted_adapter(names, weights, method, kind, svd_rank=3, density=density)
        peer.set_adapter(method)
        with torch.no_grad():
            expected = theirs(peer.eval(), "llama").numpy()
        kerasllm.tuning.combine_adapters(model, names, method, weights, method=method, density=density or 0.2)
        found[method] = ops.convert_to_numpy(ours(model, "llama"))
        np.testing.assert_allclose(found[method], expected, atol=1e-4, rtol=1e-4, err_msg=method)
    assert np.abs(found["ties"] - found["linear"]).max() > 1e-2
    model.set_adapter(names, weights)
    np.testing.assert_allclose(ops.convert_to_numpy(ours(model, "llama")), found["linear"], atol=1e-5)
