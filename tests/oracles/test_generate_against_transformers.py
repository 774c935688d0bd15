"""Greedy and beam search against transformers' generate, token for token."""

import numpy as np
import pytest
import torch
import transformers

from kerasllm import CausalLM, Seq2SeqLM

VOCABULARY, END = 37, 1
BEAMS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "short": {"num_beams": 4, "length_penalty": -1.0},
    "long": {"num_beams": 4, "length_penalty": 2.0},
    "early": {"num_beams": 2, "early_stopping": True},
}
SIZES = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": END}


def randomised(peer):
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (parameter.ndim == 1))
    return peer.eval()


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.T5Config(
        **SIZES, d_model=16, d_kv=5, d_ff=24, num_layers=2, num_heads=3, decoder_start_token_id=0, dropout_rate=0.0
    )
    peer = randomised(transformers.T5ForConditionalGeneration(config))
    directory = tmp_path_factory.mktemp("t5")
    peer.save_pretrained(directory)
    return peer, Seq2SeqLM.from_preset(directory)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES,
        bos_token_id=0,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    peer = randomised(transformers.LlamaForCausalLM(config))
    directory = tmp_path_factory.mktemp("llama")
    peer.save_pretrained(directory)
    return peer, CausalLM.from_preset(directory)


def peer_answer(peer, prompt, **options):
    """What transformers makes, from its start or prompt on, without the end token and the padding after it."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    made = peer.generate(ids, attention_mask=mask, max_new_tokens=14, do_sample=False, **options)[0].tolist()
    made = made[1:] if peer.config.is_encoder_decoder else made[len(prompt) :]
    return made[: made.index(END)] if END in made else made


@pytest.mark.parametrize("options", BEAMS.values(), ids=BEAMS)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_the_same_tokens(family, options, request):
    peer, model = request.getfixturevalue(family)
    generator = np.random.default_rng(3)
    prompts = [generator.integers(2, VOCABULARY, size).tolist() for size in (4, 7, 20)]
    ours = model.generate(prompts, max_new_tokens=14, stop_token_ids=[END], strip_prompt=True, **options)
    assert ours == [peer_answer(peer, prompt, **options) for prompt in prompts]
