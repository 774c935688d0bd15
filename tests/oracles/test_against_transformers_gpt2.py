"""Against transformers' GPT2LMHeadModel: logits, gradients, optimizer steps, text, and files both ways."""

import keras
import numpy as np
import pytest
import torch
import transformers
from differentiate import weight_gradients
from keras import ops

from kerasllm import CausalLM, Tokenizer, TransformerConfig
from kerasllm.interop import gpt2
from kerasllm.interop.presets import variables_by_path
from kerasllm.losses import linear_cross_entropy

SHAPES = {
    "plain": {"n_layer": 2, "n_head": 2, "n_embd": 16},
    "odd": {"n_layer": 1, "n_head": 3, "n_embd": 15, "n_inner": 37, "vocab_size": 41, "n_positions": 19},
    "untied": {"n_layer": 2, "n_head": 4, "n_embd": 12, "n_inner": 7, "tie_word_embeddings": False},
    "exact_gelu": {
        "n_layer": 1,
        "n_head": 1,
        "n_embd": 8,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-3,
    },
}


def make_peer(**shape):
    """A random tiny GPT-2 of transformers, with biases and norms that are not their initial 0 and 1."""
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"vocab_size": 31, "n_positions": 24, "initializer_range": 0.3}
    peer = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**{**sizes, **no_dropout, "bos_token_id": 0, "eos_token_id": 0, **shape})
    )
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return peer.eval().cpu()


@pytest.fixture(params=SHAPES)
def pair(request, tmp_path):
    peer = make_peer(**SHAPES[request.param])
    peer.save_pretrained(tmp_path)
    return peer, CausalLM.from_preset(tmp_path)


def batch_for(peer, rows=2, length=14):
    ids = np.random.default_rng(0).integers(0, peer.config.vocab_size, (rows, length + 1)).astype("int32")
    return ids[:, :-1], ids[:, 1:]


def peer_loss(peer, x, y):
    logits = peer(torch.tensor(x).long()).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(y).long().flatten())


def test_logits_and_the_gradient_of_every_weight(pair):
    peer, model = pair
    x, y = batch_for(peer)
    with torch.no_grad():
        expected = peer(torch.tensor(x).long()).logits.numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=1e-4)

    def mean_loss():
        hidden = ops.reshape(model.transformer(x, training=False), (-1, model.config.hidden_dim))
        kernel = model.transformer.embedding.head_kernel()
        return linear_cross_entropy(hidden, kernel, y.reshape(-1))[0] / y.size

    with torch.enable_grad():
        peer_loss(peer, x, y).backward()
    theirs = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    ours = {path.split("transformer/", 1)[1]: g for path, g in weight_gradients(model, mean_loss).items()}
    table = gpt2.tensors(model.config)
    assert set(table) == set(theirs)
    assert sorted(p.removesuffix(".T") for paths in table.values() for p in paths) == sorted(ours)
    for name, paths in table.items():
        parts = [ours[p.removesuffix(".T")] for p in paths]
        found = parts[0].T if paths[0].endswith(".T") else np.concatenate(parts, axis=-1)
        np.testing.assert_allclose(found, theirs[name], atol=1e-3, err_msg=name)
        assert np.abs(theirs[name]).max() > 1e-4 or "c_attn.bias" in name, name  # a comparison that can fail


def test_ten_adamw_steps_follow_pytorch(tmp_path):
    peer = make_peer(**SHAPES["plain"])
    peer.save_pretrained(tmp_path)
    model = CausalLM.from_preset(tmp_path)
    batches = np.random.default_rng(1).integers(0, 31, (10, 4, 13)).astype("int32")
    theirs = torch.optim.AdamW(peer.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    expected = []
    with torch.enable_grad():
        for batch in batches:
            theirs.zero_grad()
            loss = peer_loss(peer, batch[:, :-1], batch[:, 1:])
            loss.backward()
            theirs.step()
            expected.append(loss.item())
    ours = keras.optimizers.AdamW(1e-2, beta_1=0.9, beta_2=0.999, epsilon=1e-8, weight_decay=0.1)
    model.compile(optimizer=ours, jit_compile=keras.backend.backend() == "jax")
    found = []
    for batch in batches:
        model.reset_metrics()
        found.append(float(model.train_on_batch(batch[:, :-1], batch[:, 1:], return_dict=True)["loss"]))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert abs(expected[-1] - expected[0]) > 0.01


def test_greedy_text_token_for_token(tmp_path):
    peer = make_peer(**SHAPES["plain"])
    peer.save_pretrained(tmp_path)
    model = CausalLM.from_preset(tmp_path)
    for prompt in ([1, 2, 3], [7], [4, 4, 9, 30, 12, 5]):
        with torch.no_grad():
            expected = peer.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt)),
                max_new_tokens=15,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert model.generate(prompt, max_new_tokens=15, stop_token_ids=[]) == expected[0].tolist()


@pytest.mark.parametrize("tied", [True, False])
def test_what_we_save_transformers_opens(tied, tmp_path):
    texts = ["To be, or not to be: that is the question.", "naïve 猫 😀 <|endoftext|> don't"]
    tokenizer = Tokenizer.train(texts, kind="bpe", vocabulary_size=280)
    config = TransformerConfig(
        tokenizer.vocabulary_size,
        24,
        num_layers=2,
        num_heads=3,
        hidden_dim=15,
        intermediate_dim=22,
        tie_embeddings=tied,
        initializer_range=0.3,
    )
    model = CausalLM(config, tokenizer=tokenizer)
    for i, weight in enumerate(model.weights):
        weight.assign(weight + 0.1 * np.random.default_rng(i).normal(size=weight.shape))
    model.save_to_preset(tmp_path)

    peer, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    x, _ = batch_for(peer)
    with torch.no_grad():
        expected = peer.eval()(torch.tensor(x).long()).logits.numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=1e-4)
    assert transformers.AutoConfig.from_pretrained(tmp_path).model_type == "gpt2"

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*texts, " spaces  and\nlines\t", ""]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.end_token_id == peer.config.eos_token_id

    again = CausalLM.from_preset(tmp_path)
    for path, variable in variables_by_path(again).items():
        np.testing.assert_array_equal(
            ops.convert_to_numpy(variable.value), ops.convert_to_numpy(variables_by_path(model)[path].value)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_open(dtype, tmp_path):
    peer = make_peer(**SHAPES["plain"]).to(dtype)
    peer.save_pretrained(tmp_path)
    assert CausalLM.from_preset(tmp_path).variable_dtype == str(dtype).removeprefix("torch.")
    model = CausalLM.from_preset(tmp_path, dtype="float32")
    x, _ = batch_for(peer)
    with torch.no_grad():
        expected = peer.float()(torch.tensor(x).long()).logits.numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), expected, atol=1e-4)
