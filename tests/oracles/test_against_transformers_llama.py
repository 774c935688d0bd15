"""Against transformers' LlamaForCausalLM: logits, gradients, greedy text, and files both ways."""

import numpy as np
import pytest
import torch
import transformers
from keras import ops
from peers import compare_gradients, compare_weights, make_peer, mean_token_loss, random_ids, randomize, tensors

from kerasllm import CausalLM, Tokenizer, TransformerConfig

SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e3,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 12,
}
SHAPES = {
    "grouped": {},
    "own_head_size": {"head_dim": 6, "num_key_value_heads": 1, "num_hidden_layers": 1, "rms_norm_eps": 1e-3},
    "odd_and_tied": {
        "vocab_size": 43,
        "hidden_size": 18,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama3_rope": {"rope_parameters": LLAMA_3},
    "linear_rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def make_llama(**shape):
    return make_peer(transformers.LlamaForCausalLM, transformers.LlamaConfig(**{**SIZES, **shape}))


@pytest.fixture(params=SHAPES)
def pair(request, tmp_path):
    peer = make_llama(**SHAPES[request.param])
    peer.save_pretrained(tmp_path)
    return peer, CausalLM.from_preset(tmp_path)


def test_logits_and_the_gradient_of_every_weight(pair):
    peer, model = pair
    ids = random_ids(peer.config.vocab_size, 2, 24)
    x, y = ids[:, :-1], ids[:, 1:]
    with torch.no_grad():
        expected = peer(**tensors(input_ids=x)).logits.numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=1e-4)

    def their_loss():
        logits = peer(**tensors(input_ids=x)).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(y).long().flatten())

    compare_gradients(peer, model, their_loss, lambda: mean_token_loss(model, model.transformer(x), y))


def test_padding_on_the_right(pair):
    peer, model = pair
    ids = random_ids(peer.config.vocab_size, 2, 9)
    mask = np.arange(9) < np.array([[9], [5]])
    with torch.no_grad():
        expected = peer(**tensors(input_ids=ids, attention_mask=mask)).logits.numpy()
    found = ops.convert_to_numpy(model({"token_ids": ids, "padding_mask": mask}))
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)


@pytest.mark.parametrize("shape", ["grouped", "llama3_rope"])
def test_greedy_text_token_for_token(shape, tmp_path):
    peer = make_llama(**SHAPES[shape])
    peer.save_pretrained(tmp_path)
    model = CausalLM.from_preset(tmp_path)
    prompts = [[1, 2, 3], [7], [4, 4, 9, 30, 12, 5]]
    expected = []
    for prompt in prompts:
        with torch.no_grad():
            tokens = peer.generate(
                **tensors(input_ids=[prompt], attention_mask=[[1] * len(prompt)]),
                max_new_tokens=15,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        expected.append(tokens[0].tolist())
    assert model.generate(prompts, max_new_tokens=15, stop_token_ids=[]) == expected


OURS = {
    "plain": {},
    "tied": {"tie_embeddings": True, "head_dim": 8},
    "biases": {"use_bias": True},
    "scaled": {
        "rope_scaling": {
            "type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_sequence_length": 12,
        }
    },
}


@pytest.mark.parametrize("changes", OURS.values(), ids=OURS)
def test_what_we_save_transformers_opens(changes, tmp_path):
    texts = ["To be, or not to be: that is the question.", "naïve 猫 😀"]
    tokenizer = Tokenizer.train(texts, kind="bpe", vocabulary_size=280)
    sizes = {"num_heads": 4, "num_kv_heads": 2, "hidden_dim": 24, "intermediate_dim": 33, "num_layers": 2}
    named = {"vocabulary_size": tokenizer.vocabulary_size, "max_sequence_length": 40, "initializer_range": 0.3}
    model = CausalLM(TransformerConfig.from_name("llama_tiny", **{**named, **sizes, **changes}), tokenizer=tokenizer)
    randomize(model)
    model.save_to_preset(tmp_path)
    peer, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    x = random_ids(tokenizer.vocabulary_size, 2, 30)
    with torch.no_grad():
        expected = peer.eval()(**tensors(input_ids=x)).logits.numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=1e-4)
    assert peer.config.rope_parameters["rope_theta"] == model.config.rope_theta
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert all(theirs(text)["input_ids"] == tokenizer.encode(text) for text in texts)
    again = CausalLM.from_preset(tmp_path)
    assert again.config == model.config
    compare_weights(again, model)


@pytest.mark.parametrize("peer_class", [transformers.LlamaModel, transformers.LlamaForCausalLM])
def test_old_configs_and_bare_models(peer_class, tmp_path):
    """`rope_theta` and `rope_scaling` as transformers 4 wrote them; LlamaModel files lack the "model." prefix."""
    import json

    peer = make_llama(tie_word_embeddings=True, rope_parameters=LLAMA_3)
    (peer if peer_class is transformers.LlamaForCausalLM else peer.model).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    rope = values.pop("rope_parameters")
    path.write_text(json.dumps({**values, "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}))
    model = CausalLM.from_preset(tmp_path)
    x = random_ids(31, 1, 20)
    with torch.no_grad():
        expected = peer(**tensors(input_ids=x)).logits.numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=1e-4)
