"""generation_config.json: what transformers makes by it, and a complete file when it is saved again."""

import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from test_generate_against_transformers import VOCABULARY, randomised

from kerasllm import CausalLM, Sampler, Seq2SeqLM, TransformerConfig
from kerasllm.chat.session import Chat
from kerasllm.generation import defaults
from kerasllm.generation.prompts import stop_token_ids_of

pytestmark = pytest.mark.one_backend

ENDS = [1, 9, 17, 23, 30, 33]
KEYS = {  # of the file, beside max_new_tokens: what `generate` makes of them is what transformers does
    "one end token": {"eos_token_id": 9},
    "several end tokens": {"eos_token_id": ENDS},
    "no end token": {"eos_token_id": None},
    "shortest answer": {"eos_token_id": ENDS, "min_new_tokens": 6},
    "shortest text": {"eos_token_id": ENDS, "min_length": 9},
    "longest text": {"max_new_tokens": None, "max_length": 16},
    "repetition penalty": {"repetition_penalty": 1.7},
    "repeated runs": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[3], [5, 6], [1], [12, 3]], "eos_token_id": 1},
    "suppressed": {"suppress_tokens": [2, 3, 5, 8, 13, 21, 34], "begin_suppress_tokens": list(range(10, 25))},
    "forced begin": {"forced_bos_token_id": 11, "begin_suppress_tokens": list(range(20))},
    "forced end": {"forced_eos_token_id": 9, "eos_token_id": [9, 10]},
    "beams": {"num_beams": 3},
    "beams with ends": {"num_beams": 3, "eos_token_id": ENDS[:3], "length_penalty": 2.0},
    "beams, stopped early": {"num_beams": 3, "eos_token_id": ENDS, "early_stopping": True},
    "beams, never stopped early": {"num_beams": 2, "eos_token_id": ENDS[:2], "early_stopping": "never"},
    "beams, shortest answer": {"num_beams": 3, "eos_token_id": ENDS, "min_new_tokens": 5},
    "beams, penalty": {"num_beams": 3, "repetition_penalty": 1.7, "eos_token_id": ENDS[:2]},
    "beams, penalty, renormalized": {"num_beams": 3, "repetition_penalty": 1.7, "renormalize_logits": True},
    "beams, repeated runs": {"num_beams": 3, "no_repeat_ngram_size": 1},
    "beams, bad words": {"num_beams": 3, "bad_words_ids": [[3], [5, 6], [12, 3], [7]]},
    "beams as opus-mt": {
        "num_beams": 4,
        "bad_words_ids": [[0]],
        "forced_eos_token_id": 1,
        "renormalize_logits": True,
        "max_new_tokens": None,
        "max_length": 14,
    },
    "beams as mbart": {"num_beams": 2, "forced_bos_token_id": 11, "early_stopping": True, "eos_token_id": 2},
    "how it is computed": {"use_cache": False, "output_scores": True, "remove_invalid_values": True},
}
PROMPTS = {"llama": [[4, 8, 15, 16], [5], [9, 23, 30, 7, 12, 3, 5]], "t5": [[4, 8, 15, 16], [5, 1], [9, 23, 3, 5, 7]]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(peer, class of ours, directory) of each family."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1}
    llama = transformers.LlamaConfig(
        **sizes,
        bos_token_id=0,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    t5 = transformers.T5Config(
        **sizes, d_model=16, d_kv=5, d_ff=24, num_layers=1, num_heads=3, n_positions=32, decoder_start_token_id=0
    )
    made = {}
    for name, cls, config, ours in (
        ("llama", transformers.LlamaForCausalLM, llama, CausalLM),
        ("t5", transformers.T5ForConditionalGeneration, t5, Seq2SeqLM),
    ):
        peer, directory = randomised(cls(config)), tmp_path_factory.mktemp(name)
        peer.save_pretrained(directory)
        made[name] = (peer, ours, directory)
    return made


@pytest.fixture(scope="module")
def opened(saved):
    """Our model of each family, opened once: the keys of the file are set on it."""
    return {name: cls.from_preset(directory) for name, (_, cls, directory) in saved.items()}


def new_tokens(peer, prompt, ends):
    """What transformers makes by its generation_config alone, up to an end token."""
    ids = torch.tensor([prompt])
    made = peer.generate(ids, attention_mask=torch.ones_like(ids))
    made = made if isinstance(made, torch.Tensor) else made.sequences
    made = made[0].tolist()
    made = made[1:] if peer.config.is_encoder_decoder else made[len(prompt) :]
    return made[: next((i for i, token in enumerate(made) if token in ends), len(made))]


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("family", PROMPTS)
def test_answers_are_those_of_transformers(saved, opened, family, keys):
    peer, model = saved[family][0], opened[family]
    keys = {"max_new_tokens": 10, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0, **keys}
    keys = {key: value for key, value in keys.items() if value is not None}
    peer.generation_config = transformers.GenerationConfig(**keys)
    model.generation_config = keys
    ends = np.ravel(keys.get("eos_token_id", [])).tolist()
    expected = [new_tokens(peer, prompt, ends) for prompt in PROMPTS[family]]
    assert model.generate(PROMPTS[family], strip_prompt=True) == expected
    assert any(expected)


def test_a_file_that_samples_is_followed_until_a_sampler_is_given(opened):
    model, prompt = opened["llama"], PROMPTS["llama"][0]
    model.generation_config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.2}
    sampler = Sampler(temperature=0.6, top_p=0.9, top_k=VOCABULARY, repetition_penalty=1.2, seed=4)
    assert model.generate(prompt, 8, seed=4) == model.generate(prompt, 8, sampler=sampler)
    assert list(model.generate(prompt, 8, seed=4, stream=True)) == model.generate(prompt, 8, seed=4)[len(prompt) :]
    hot = Sampler(temperature=2.0, top_p=0.9, top_k=VOCABULARY, repetition_penalty=1.2)
    assert model.generate(prompt, 8, temperature=2.0) == model.generate(prompt, 8, sampler=hot)
    greedy = model.generate(prompt, 8, sampler=Sampler(temperature=0.0))
    assert model.generate(prompt, 8, sampler="greedy", repetition_penalty=1.0) == greedy
    beams = model.generate(prompt, 8, num_beams=2)
    model.generation_config = {"do_sample": True, "num_beams": 2}
    with pytest.raises(ValueError, match=r"do_sample=True and num_beams=2.*num_beams=1"):
        model.generate(prompt, 8)
    assert model.generate(prompt, 8, sampler="greedy", num_beams=2, repetition_penalty=1.2) == beams


OURS = {"num_beams": 3, "min_new_tokens": 4, "bad_words_ids": [[5]], "eos_token_id": ENDS, "penalty_alpha": None}


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1, "min_new_tokens": 0, "bad_words": (), "stop_token_ids": [2]},
        {"stream": True, "min_new_tokens": 0, "bad_words": (), "stop_token_ids": [2]},
        {"draft": "lookup", "min_new_tokens": 0, "bad_words": (), "stop_token_ids": [2]},
    ],
    ids=str,
)
def test_arguments_win_over_the_file(opened, options):
    model, prompt = opened["llama"], PROMPTS["llama"][0]
    model.generation_config = {}
    plain = model.generate(prompt, 10, stop_token_ids=[2], strip_prompt=True)
    model.generation_config = {key: value for key, value in OURS.items() if value is not None}
    assert list(model.generate(prompt, 10, strip_prompt=True, **options)) == plain


FILE = {
    "bos_token_id": 4,
    "eos_token_id": [1, 9],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "no_repeat_ngram_size": 3,
    "max_length": 20,
    "transformers_version": "4.1.0",
    "chat_format": "chatml",
    "guidance_scale": 1.5,
}


def write(directory, generation, **config):
    (directory / "generation_config.json").write_text(json.dumps(generation))
    whole = {**json.loads((directory / "config.json").read_text()), **config}
    (directory / "config.json").write_text(json.dumps(whole))


def test_the_file_is_written_back_complete(saved, tmp_path):
    _, cls, directory = saved["llama"]
    write(directory, FILE, eos_token_id=[1, 9], bos_token_id=4)
    with pytest.warns(UserWarning) as told:
        model = cls.from_preset(directory)
    said = " ".join(str(warning.message) for warning in told)
    assert "guidance_scale=1.5" in said and "chat_format='chatml'" in said and "temperature" not in said
    again = cls.from_config(model.get_config())
    assert again.generation_config == model.generation_config == FILE
    model.save_to_preset(tmp_path / "out")
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == FILE
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert [config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")] == [4, [1, 9], 0]
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [1, 9]


def test_without_the_file_its_keys_are_in_the_config(saved, tmp_path):
    _, cls, directory = saved["llama"]
    (directory / "generation_config.json").unlink()
    write_config = {"eos_token_id": [1, 9], "no_repeat_ngram_size": 2, "temperature": None}
    config = {**json.loads((directory / "config.json").read_text()), **write_config}
    (directory / "config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = cls.from_preset(directory)
    assert model.generation_config == {
        "bos_token_id": 4,
        "eos_token_id": [1, 9],
        "pad_token_id": 0,
        "no_repeat_ngram_size": 2,
        **({"use_cache": True} if "use_cache" in defaults.READ else {}),
    }
    assert stop_token_ids_of(model, None) == {1, 9}


def test_every_key_of_transformers_is_known():
    known = set(transformers.GenerationConfig().to_dict())
    assert known <= defaults.READ | defaults.HARMLESS
    assert not defaults.READ & defaults.HARMLESS


def test_ids_that_no_token_has_end_nothing():
    model = CausalLM(TransformerConfig(8, 16, num_layers=1, num_heads=1, hidden_dim=8))
    model.generation_config = {"eos_token_id": [3, 8], "pad_token_id": -1}
    assert stop_token_ids_of(model, None) == {3}
    model.generation_config = {"eos_token_id": ["</s>"]}
    with pytest.raises(ValueError, match=r"eos_token_id.*</s>"):
        model.generate([1], 2)


def test_a_chat_follows_it():
    model = CausalLM.from_preset("saved_models/gpt-tiny")
    model.generation_config |= {"eos_token_id": [0, 5], "do_sample": True, "temperature": 0.5, "bad_words_ids": [[7]]}
    chat = Chat(model, max_new_tokens=4)
    assert chat.stop_token_ids >= {0, 5} and chat.sampler.temperature == 0.5
    assert isinstance("".join(chat.send("Hi")), str)
