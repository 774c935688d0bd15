"""Prompts and prefixes of an encoder and a decoder: against peft, switched off, through generation and training."""

import keras
import numpy as np
import peft
import pytest
import torch
from differentiate import weight_gradients
from keras import ops
from test_against_peft import FAMILIES, ids, make, ours, randomize, theirs

import kerasllm
from kerasllm.tuning import PrefixTuning, PromptTuning, PTuning
from kerasllm.tuning.model_adapters import adapter_of

CONFIGS = {
    "prompt": peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3),
    "p-tuning": peft.PromptEncoderConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, encoder_hidden_size=5),
    "prefix": peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3),
}
SETTINGS = {
    "prompt": PromptTuning(num_tokens=3),
    "p-tuning": PTuning(num_tokens=3),
    "prefix": PrefixTuning(num_tokens=3),
}


@pytest.fixture(autouse=True)
def three_blocks(monkeypatch):
    """Enough for a prefix to be dealt out to blocks in another order."""
    for name in ("num_layers", "num_decoder_layers"):
        monkeypatch.setattr(FAMILIES["t5"][1], name, 3)


@pytest.mark.parametrize("method", CONFIGS)
def test_against_peft(method, tmp_path):
    base, model = make("t5", tmp_path / "base")
    plain = ops.convert_to_numpy(ours(model, "t5"))
    peer = peft.get_peft_model(base, CONFIGS[method]).eval()
    randomize(peer)
    peer.save_pretrained(tmp_path / "theirs")
    model.load_adapter(tmp_path / "theirs")
    upstream = np.random.default_rng(0).normal(size=plain.shape).astype("float32")
    with torch.enable_grad():
        expected = theirs(peer, "t5")
        (expected * torch.tensor(upstream)).sum().backward()
    expected = expected.detach().numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(ours(model, "t5")), expected, atol=1e-4, rtol=1e-4)
    assert np.abs(expected - plain).max() > 1e-2
    if method != "p-tuning":  # Whose file holds what its network made.
        gradients = weight_gradients(model, lambda: ops.sum(ops.multiply(ours(model, "t5"), upstream)))
        (gradient,) = gradients.values()
        (wanted,) = (p.grad.numpy() for p in peer.parameters() if p.requires_grad)
        np.testing.assert_allclose(gradient, wanted[:3], atol=1e-3, rtol=1e-3)
        assert np.abs(wanted).max() > 1e-2

    model.save_adapter(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(make("t5", tmp_path / "base")[0], tmp_path / "ours").eval()
    with torch.no_grad():
        np.testing.assert_allclose(theirs(again, "t5").numpy(), expected, atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        np.testing.assert_allclose(ops.convert_to_numpy(ours(model, "t5")), plain, atol=1e-5)
    model.delete_adapter("default")
    assert (ops.convert_to_numpy(ours(model, "t5")) == plain).all()


def test_a_prompt_is_read_like_tokens_and_several_stand_in_a_row(tmp_path):
    _, model = make("t5", tmp_path)
    source, target = ids(2, 6), ids(2, 4, 1)
    mask = np.array([[1] * 6, [1, 1, 1, 0, 0, 0]], "int32")

    def output(before=0, trace=False):
        x = np.concatenate([np.tile([[5, 9, 4]], (2, 1))[:, 3 - before :], source], axis=1).astype("int32")
        padding = np.concatenate([np.ones((2, before), "int32"), mask], axis=1)
        inputs = {"encoder_token_ids": x, "decoder_token_ids": target, "encoder_padding_mask": padding}
        return ops.convert_to_numpy(model(inputs))

    none, one, both = output(), output(1), output(3)
    model.add_adapter("first", PromptTuning(num_tokens=2, initial_ids=[5, 9]))
    model.add_adapter("second", PromptTuning(num_tokens=1, initial_ids=[4]))
    for names, expected in (("second", one), (["first", "second"], both), ([], none)):
        model.set_adapter(names)
        np.testing.assert_allclose(output(), expected, atol=1e-5)
    model.set_adapter("second")
    trace = model.trace([3, 4, 5], [6, 7])
    assert trace.encoder_attentions[0].shape[-2:] == (3, 3) and trace.cross_attentions[0].shape[-2:] == (3, 3)


@pytest.mark.parametrize("method", SETTINGS)
def test_generation_is_what_the_forward_pass_says(method, tmp_path):
    _, model = make("t5", tmp_path / "base")
    model.add_adapter("mine", SETTINGS[method])
    for i, variable in enumerate(adapter_of(model, "mine").variables):
        variable.assign(variable + 0.5 * np.random.default_rng(i).normal(size=variable.shape))
    sources = [[3, 4, 5], [7, 8, 9, 10, 11, 12, 13]]
    for source, target in zip(sources, model.generate(sources, max_new_tokens=5, stop_token_ids=[])):
        inputs = {
            "encoder_token_ids": np.array([source], "int32"),
            "decoder_token_ids": np.array([[0, *target[:-1]]], "int32"),
        }
        assert target == list(ops.convert_to_numpy(model(inputs))[0].argmax(axis=-1))
    with model.disable_adapter():
        plain = model.generate(sources, max_new_tokens=5, stop_token_ids=[])
    again = kerasllm.Seq2SeqLM.from_preset(tmp_path / "base")
    assert plain == again.generate(sources, max_new_tokens=5, stop_token_ids=[])


def test_training_a_prompt_changes_the_prompt_alone(tmp_path):
    _, model = make("t5", tmp_path)
    before, variables = [ops.convert_to_numpy(v.value).copy() for v in model.weights], list(model.weights)
    model.add_adapter("mine", PromptTuning(num_tokens=3))
    model.compile(keras.optimizers.Adam(0.1), jit_compile=keras.backend.backend() == "jax")
    x = {"encoder_token_ids": ids(4, 5), "decoder_token_ids": np.tile([[0, 2, 3, 4]], (4, 1))}
    losses = model.fit(x, epochs=6, batch_size=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all((ops.convert_to_numpy(v.value) == value).all() for v, value in zip(variables, before))
