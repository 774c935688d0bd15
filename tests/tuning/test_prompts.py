"""Prompts and prefixes: against peft, in both kinds of networks, through generation and training."""

import keras
import numpy as np
import peft
import pytest
import torch
from differentiate import weight_gradients
from keras import ops
from test_against_peft import ids, make

import kerasllm
from kerasllm.tuning import LoRA, PrefixTuning, PromptTuning, PTuning
from kerasllm.tuning.model_adapters import adapter_of

CONFIGS = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize(("family", "method"), [("gpt2", "prompt"), ("llama", "prompt"), ("llama", "prefix")])
def test_against_peft(family, method, tmp_path):
    base, model = make(family, tmp_path / "base")
    peer = peft.get_peft_model(base, CONFIGS[method]()).eval()
    peer.save_pretrained(tmp_path / "theirs")
    model.load_adapter(tmp_path / "theirs")
    tokens = ids(2, 7)
    upstream = np.random.default_rng(0).normal(size=(2, 7, 31)).astype("float32")
    with torch.enable_grad():
        expected = peer(input_ids=torch.tensor(tokens).long()).logits[:, -7:]
        (expected * torch.tensor(upstream)).sum().backward()
    gradients = weight_gradients(model, lambda: ops.sum(ops.multiply(model(tokens), upstream)))
    expected = expected.detach().numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(model(tokens)), expected, atol=1e-4, rtol=1e-4)
    (gradient,) = gradients.values()
    (theirs,) = (p.grad.numpy() for p in peer.parameters() if p.requires_grad)
    np.testing.assert_allclose(gradient, theirs, atol=1e-3, rtol=1e-3)
    assert np.abs(theirs).max() > 1e-2

    model.save_adapter(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(make(family, tmp_path / "base")[0], tmp_path / "ours").eval()
    with torch.no_grad():
        found = again(input_ids=torch.tensor(tokens).long()).logits[:, -7:].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_a_prompt_in_a_bidirectional_network_against_peft(tmp_path):
    base, model = make("bert", tmp_path / "base")
    peer = peft.get_peft_model(base.bert, peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3))
    peer.eval().save_pretrained(tmp_path / "theirs")
    model.load_adapter(tmp_path / "theirs")
    tokens = ids(2, 7)
    with torch.no_grad():
        expected = peer(input_ids=torch.tensor(tokens).long()).last_hidden_state[:, -7:].numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(model.transformer(tokens)), expected, atol=1e-4)


def randomized(model, name):
    for i, variable in enumerate(adapter_of(model, name).variables):
        variable.assign(variable + 0.3 * np.random.default_rng(i).normal(size=variable.shape))


def test_several_and_none(tmp_path):
    """Two prompts stand one after the other; what is switched off, nobody sees; a prefix goes with LoRA."""
    _, model = make("gpt2", tmp_path)
    tokens, limit = ids(2, 7), model.config.max_sequence_length
    base = ops.convert_to_numpy(model(tokens))
    model.add_adapter("first", PromptTuning(num_tokens=2, initial_ids=[5, 9]))
    model.add_adapter("second", PromptTuning(num_tokens=1, initial_ids=[4]))
    assert model.config.max_sequence_length == limit - 3
    with model.disable_adapter():
        np.testing.assert_allclose(ops.convert_to_numpy(model(tokens)), base, atol=1e-5)
        read = np.concatenate([np.tile([[5, 9, 4]], (2, 1)), tokens], axis=1).astype("int32")
        expected = ops.convert_to_numpy(model(read))[:, 3:]
        only = ops.convert_to_numpy(model(read[:, 2:]))[:, 1:]
    np.testing.assert_allclose(ops.convert_to_numpy(model(tokens)), only, atol=1e-5)
    model.set_adapter(["first", "second"])
    np.testing.assert_allclose(ops.convert_to_numpy(model(tokens)), expected, atol=1e-5)
    trace = model.trace([3, 4, 5])
    assert trace.attentions[0].shape[-2:] == (3, 3)
    np.testing.assert_allclose(trace.logits, ops.convert_to_numpy(model(np.array([[3, 4, 5]], "int32"))), atol=1e-5)
    with pytest.raises(ValueError, match="weight is 1 or 0"):
        model.set_adapter(["first", "second"], [1, 0.5])
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge()
    model.delete_adapter("first")
    model.delete_adapter("second")
    assert model.config.max_sequence_length == limit
    assert (ops.convert_to_numpy(model(tokens)) == base).all()
    model.add_adapter("lora", LoRA(rank=2))
    randomized(model, "lora")
    model.add_adapter("prefix", PrefixTuning(num_tokens=2))
    model.set_adapter(["lora", "prefix"])
    assert np.abs(ops.convert_to_numpy(model(tokens)) - base).max() > 1e-2


def test_generation_is_what_the_forward_pass_says(tmp_path):
    _, model = make("llama", tmp_path / "base")
    model.add_adapter("mine", PTuning(num_tokens=2))
    randomized(model, "mine")
    prompt = [3, 4, 5]
    tokens = model.generate(prompt, max_new_tokens=4, stop_token_ids=[])
    logits = ops.convert_to_numpy(model(np.array([tokens], "int32")))
    assert tokens == [*prompt, *logits[0, 2:-1].argmax(axis=-1)]
    model.save_adapter(tmp_path / "saved", "mine")
    with model.disable_adapter():
        model.save_to_preset(tmp_path / "again")
    other = kerasllm.CausalLM.from_preset(tmp_path / "again")
    assert other.config.max_sequence_length == model.config.max_sequence_length + 2
    other.load_adapter(tmp_path / "saved")
    found = ops.convert_to_numpy(other(np.array([tokens], "int32")))
    np.testing.assert_allclose(found, ops.convert_to_numpy(model(np.array([tokens], "int32"))), atol=1e-5)


def test_training_a_prompt_changes_the_prompt_alone(tmp_path):
    _, model = make("gpt2", tmp_path)
    before = [ops.convert_to_numpy(v.value).copy() for v in model.weights]
    variables = list(model.weights)
    model.add_adapter("mine", PromptTuning(num_tokens=3))
    model.compile(keras.optimizers.Adam(0.1), jit_compile=keras.backend.backend() == "jax")
    losses = model.fit(np.tile([[1, 2, 3, 4, 5, 6]], (8, 1)), epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for variable, value in zip(variables, before):
        assert (ops.convert_to_numpy(variable.value) == value).all()


@pytest.mark.one_backend
def test_bad_input(tmp_path):
    _, model = make("gpt2", tmp_path / "gpt2")
    for settings, message in (
        (lambda: PromptTuning(num_tokens=0), "num_tokens"),
        (lambda: PromptTuning(targets="query"), "has no `targets`"),
        (lambda: PromptTuning(num_tokens=24), "leaves no room"),
        (lambda: PromptTuning(initial_ids=[99]), "99"),
        (lambda: PrefixTuning(initial_ids=[1]), "no token vectors"),
    ):
        with pytest.raises(ValueError, match=message):
            model.add_adapter("x", settings())
        assert not model.adapters
    model.add_adapter("x", PromptTuning(num_tokens=20))
    with pytest.raises(ValueError, match="Give at most 4"):
        model(ids(1, 5))
