"""Against transformers' T5ForConditionalGeneration, 1.0 and 1.1: logits, gradients, and files both ways."""

import json

import numpy as np
import pytest
import torch
import transformers
from keras import ops
from peers import compare_gradients, compare_weights, make_peer, mean_token_loss, random_ids, randomize, tensors

from kerasllm import Seq2SeqLM, TransformerConfig

SIZES = {
    "vocab_size": 31,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 23,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}
SHAPES = {
    "1.0": {},
    "own_head_size": {"d_kv": 5, "num_heads": 3, "num_layers": 1, "vocab_size": 43},
    "deeper_decoder": {"num_layers": 1, "num_decoder_layers": 3, "layer_norm_epsilon": 1e-3},
    "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "untied": True},
    "1.1_tied": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gated_silu": {"feed_forward_proj": "gated-silu", "d_ff": 7},
}


def make_t5(untied=False, **shape):
    peer = make_peer(transformers.T5ForConditionalGeneration, transformers.T5Config(**{**SIZES, **shape}))
    if untied:  # transformers 5 ties the two on making a model, and leaves them apart on reading one.
        peer.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(*peer.lm_head.weight.shape))
        peer.config.tie_word_embeddings = False
    return peer


@pytest.fixture(params=SHAPES)
def pair(request, tmp_path):
    peer = make_t5(**SHAPES[request.param])
    peer.save_pretrained(tmp_path)
    model = Seq2SeqLM.from_preset(tmp_path)
    assert model.config.tie_embeddings != SHAPES[request.param].get("untied", False)
    return peer, model


def arrays(vocabulary):
    """A batch with padding on both sides, and the next tokens of the decoder."""
    source = random_ids(vocabulary, 3, 17)
    target = random_ids(vocabulary, 3, 10, seed=1)
    source_mask = (np.arange(17) < np.array([[17], [9], [3]])).astype("int32")
    target_mask = (np.arange(9) < np.array([[9], [2], [5]])).astype("int32")
    return source, source_mask, target[:, :-1], target_mask, target[:, 1:]


def test_logits_with_padding_on_both_sides(pair):
    peer, model = pair
    source, source_mask, target, target_mask, _ = arrays(peer.config.vocab_size)
    theirs = tensors(
        input_ids=source, attention_mask=source_mask, decoder_input_ids=target, decoder_attention_mask=target_mask
    )
    ours = {"encoder_token_ids": source, "decoder_token_ids": target}
    masks = {"encoder_padding_mask": source_mask, "decoder_padding_mask": target_mask}
    with torch.no_grad():
        expected = peer(**theirs).logits.numpy()
    found = ops.convert_to_numpy(model({**ours, **masks}))
    np.testing.assert_allclose(found[target_mask == 1], expected[target_mask == 1], atol=1e-4)
    with torch.no_grad():
        expected = peer(**{name: theirs[name] for name in ("input_ids", "decoder_input_ids")}).logits.numpy()
    np.testing.assert_allclose(ops.convert_to_numpy(model(ours)), expected, atol=1e-4)


def test_the_gradient_of_every_weight(pair):
    peer, model = pair
    source, source_mask, target, _, labels = arrays(peer.config.vocab_size)

    def their_loss():
        theirs = tensors(input_ids=source, attention_mask=source_mask, decoder_input_ids=target, labels=labels)
        return peer(**theirs).loss

    def our_loss():
        hidden = model.transformer(source, target, encoder_padding_mask=source_mask)
        return mean_token_loss(model, hidden, labels)

    compare_gradients(peer, model, their_loss, our_loss, at_least=1e-6)


OURS = {
    "1.0": ("t5_tiny", {}),
    "1.1": ("t5_1.1_small", {}),
    "1.1_tied": ("t5_1.1_small", {"tie_embeddings": True}),
    "deeper_decoder": ("t5_tiny", {"num_layers": 3, "head_dim": 3}),
}


@pytest.mark.parametrize("name, changes", OURS.values(), ids=OURS)
def test_what_we_save_transformers_opens(name, changes, tmp_path):
    sizes = {"vocabulary_size": 37, "num_layers": 1, "num_encoder_layers": 2, "hidden_dim": 12, "num_heads": 4}
    sizes |= {"head_dim": 4, "intermediate_dim": 21, "max_sequence_length": 32}
    model = Seq2SeqLM(TransformerConfig.from_name(name, **{**sizes, **changes}), start_token_id=3)
    randomize(model)
    model.save_to_preset(tmp_path)
    peer, report = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert peer.generation_config.decoder_start_token_id == 3
    source, source_mask, target, _, _ = arrays(37)
    with torch.no_grad():
        expected = peer.eval()(
            **tensors(input_ids=source, attention_mask=source_mask, decoder_input_ids=target)
        ).logits.numpy()
    ours = {"encoder_token_ids": source, "decoder_token_ids": target, "encoder_padding_mask": source_mask}
    np.testing.assert_allclose(ops.convert_to_numpy(model(ours)), expected, atol=1e-4)
    again = Seq2SeqLM.from_preset(tmp_path)
    assert again.config == model.config and again.start_token_id == 3
    compare_weights(again, model)
    peer.save_pretrained(tmp_path / "theirs")
    compare_weights(Seq2SeqLM.from_preset(tmp_path / "theirs"), model)


def test_the_start_token_of_transformers_4_and_5(tmp_path):
    peer = make_t5(decoder_start_token_id=5)
    peer.save_pretrained(tmp_path)
    assert Seq2SeqLM.from_preset(tmp_path).start_token_id == 5
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder_start_token_id": 6}))
    assert Seq2SeqLM.from_preset(tmp_path).start_token_id == 6
