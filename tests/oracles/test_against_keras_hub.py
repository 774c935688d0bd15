"""Against KerasHub's backbones: hidden states, logits and gradients, both ways, and what does not convert."""

import re
import sys

import keras
import numpy as np
import pytest
from differentiate import weight_gradients
from keras import ops

import kerasllm
from kerasllm import CausalLM, MaskedLM, Seq2SeqLM, TransformerConfig
from kerasllm.interop.keras_hub import FAMILIES, _pairs, from_backbone, to_backbone

keras_hub = pytest.importorskip("keras_hub", reason="needs the extra: pip install 'kerasllm[hub]'")

# Of KerasHub's own T5, whose masks are arguments.
pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask attached")

VOCABULARY, LENGTH = 37, 11
SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 24, "dropout": 0.0}
ODD = {"num_layers": 1, "num_heads": 3, "hidden_dim": 15, "intermediate_dim": 7}
LLAMA = {k: v for k, v in SIZES.items() if k != "num_heads"} | {"num_query_heads": 4, "num_key_value_heads": 2}
LLAMA_3 = {
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 16,
}
BACKBONES = {
    "bert": ("BertBackbone", SIZES | {"max_sequence_length": 13}),
    "bert_odd": ("BertBackbone", SIZES | ODD | {"max_sequence_length": LENGTH, "num_segments": 3}),
    "gpt2": ("GPT2Backbone", SIZES | {"max_sequence_length": 13}),
    "gpt2_odd": ("GPT2Backbone", SIZES | ODD | {"max_sequence_length": LENGTH}),
    "t5": ("T5Backbone", SIZES | {"use_gated_activation": False}),
    "t5_1.1": (
        "T5Backbone",
        SIZES | {"key_value_dim": 5, "activation": "gelu_approximate", "tie_embedding_weights": False},
    ),
    "t5_odd": ("T5Backbone", SIZES | ODD | {"activation": "gelu", "layer_norm_epsilon": 1e-2}),
    "llama": ("LlamaBackbone", LLAMA),
    "llama_tied": ("LlamaBackbone", LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama_theta": ("LlamaBackbone", LLAMA | {"rope_max_wavelength": 500}),
    "llama3": ("Llama3Backbone", LLAMA | LLAMA_3 | {"layer_norm_epsilon": 1e-2}),
}


def shaken(model):
    """The same model, all of its weights at random: biases and norms too."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        scale = 0.7 if "embedding" in variable.path else 0.3
        start = 1.0 if variable.path.split("/")[-1] in ("gamma", "scale", "weight") else 0.0
        variable.assign(start + scale * rng.normal(size=variable.shape))
    return model


def make_backbone(name, **changes):
    kind, settings = BACKBONES[name]
    settings = settings | changes
    if settings.get("activation") == "gelu_approximate":
        settings["activation"] = keras.saving.get_registered_object("keras_hub>gelu_approximate")
    backbone = shaken(getattr(keras_hub.models, kind)(vocabulary_size=VOCABULARY, **settings))
    for i, variable in enumerate(backbone.weights):
        variable._path = f"{i}/{variable.path}"  # T5's are not unique, and gradients go by path.
    return backbone


def make_model(config):
    task = Seq2SeqLM if config.num_encoder_layers else CausalLM if config.causal else MaskedLM
    return shaken(task(config))


def make_inputs(config, length=LENGTH):
    """Inputs as both know them, with padding on the right, on the left and nowhere."""
    rng = np.random.default_rng(1)

    def tokens(length):
        mask = np.ones((3, length), "int32")
        mask[0, -3:] = mask[1, :2] = 0
        return rng.integers(0, config.vocabulary_size, (3, length)).astype("int32"), mask

    if config.num_encoder_layers:
        (source, source_mask), (target, target_mask) = tokens(3 * length), tokens(length)
        masks = {"encoder_padding_mask": source_mask, "decoder_padding_mask": target_mask}
        return {"encoder_token_ids": source, "decoder_token_ids": target, **masks}
    ids, mask = tokens(length)
    segments = {"segment_ids": rng.integers(0, config.num_segments, ids.shape)} if config.num_segments else {}
    return {"token_ids": ids, "padding_mask": mask, **segments}


def our_states(model, inputs) -> dict:
    """Hidden states by KerasHub's names."""
    if model.config.num_encoder_layers:
        hidden, encoder, _ = model.transformer(**inputs, trace=True, training=False)
        return {"decoder_sequence_output": hidden, "encoder_sequence_output": encoder[0]}
    hidden = model.transformer(**inputs, training=False)
    pooled = {"pooled_output": model.transformer.pooled(hidden)} if model.config.pooler else {}
    return {"sequence_output": hidden, **pooled}


def their_states(backbone, inputs) -> dict:
    output = backbone(inputs, training=False)
    return output if isinstance(output, dict) else {"sequence_output": output}


def real(inputs, name):
    """Where the states of a name belong to no padding: (batch, length, 1), or (batch, 1) of pooled ones."""
    mask = inputs["encoder_padding_mask" if name.startswith("encoder") else list(inputs)[1]]
    mask = inputs.get("decoder_padding_mask", mask) if name.startswith("decoder") else mask
    return (mask[:, 0] if name == "pooled_output" else mask)[..., None].astype("float32")


def assert_same_states(model, backbone):
    inputs = make_inputs(model.config)
    ours, theirs = our_states(model, inputs), their_states(backbone, inputs)
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        here = real(inputs, name)
        found, expected = (here * ops.convert_to_numpy(x) for x in (ours[name], expected))
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=name)
        assert np.abs(expected).max() > 0.1


@pytest.fixture(params=BACKBONES)
def pair(request):
    backbone = make_backbone(request.param)
    return from_backbone(backbone), backbone


def test_hidden_states(pair):
    assert_same_states(*pair)


def test_the_gradient_of_every_weight(pair):
    model, backbone = pair
    for network in (model.transformer, backbone):
        network.trainable = True  # the pooler too, which our tasks leave alone unless they use it
        for variable in network.weights:
            variable.trainable = "reverse_embeddings" not in variable.path  # a head, which no hidden state comes from
    inputs = make_inputs(model.config)
    probes = {
        name: (real(inputs, name) * np.random.default_rng(2).normal(size=x.shape)).astype("float32")
        for name, x in our_states(model, inputs).items()
    }

    def loss(states):
        return sum(ops.sum(ops.multiply(states[name], probe)) for name, probe in probes.items())

    ours = weight_gradients(model.transformer, lambda: loss(our_states(model, inputs)))
    theirs = weight_gradients(backbone, lambda: loss(their_states(backbone, inputs)))
    family = next(FAMILIES[base.__name__] for base in type(backbone).__mro__ if base.__name__ in FAMILIES)
    pairs = [(a, b) for a, b in _pairs(family, *pair) if a.trainable]
    assert len(pairs) == len(ours) == len(theirs)
    for mine, other in pairs:
        found, expected = ours[mine.path], theirs[other.path]
        np.testing.assert_allclose(found, expected.reshape(found.shape), atol=1e-3, rtol=1e-3, err_msg=mine.path)
        assert np.abs(expected).max() > 0.05 or "key/bias" in mine.path, mine.path  # a comparison that can fail


def test_there_and_back(pair):
    model, backbone = pair
    assert type(model) is type(make_model(model.config))
    again = to_backbone(model)
    assert isinstance(backbone, type(again))
    assert_same_states(model, again)
    other = from_backbone(again)
    assert other.config == model.config
    for mine, expected in zip(other.transformer.weights, model.transformer.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(mine.value), ops.convert_to_numpy(expected.value))


@pytest.mark.parametrize("name", ["gpt2_tiny", "bert_tiny", "t5_tiny", "t5_1.1_small", "llama_tiny", "llama3.1_8b"])
def test_a_named_size_of_ours(name):
    sizes = {"vocabulary_size": VOCABULARY, "num_layers": 1, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24}
    sizes |= {"num_encoder_layers": 1, "head_dim": 3} if name.startswith("t5") else {"max_sequence_length": 32}
    sizes |= {"activation": "gelu_tanh"} if name.startswith("bert") else {}
    sizes |= {"num_kv_heads": 2} if name.startswith("llama") else {}
    model = make_model(TransformerConfig.from_name(name, **sizes))
    assert_same_states(model, to_backbone(model))


@pytest.mark.parametrize(
    "name, task", [("gpt2", "GPT2CausalLM"), ("llama", "LlamaCausalLM"), ("llama_tied", "LlamaCausalLM")]
)
def test_logits_of_a_causal_lm(name, task):
    backbone = make_backbone(name)
    model = from_backbone(backbone)
    assert isinstance(model, CausalLM)
    inputs = make_inputs(model.config)
    expected = getattr(keras_hub.models, task)(backbone=backbone, preprocessor=None)(inputs)
    here = real(inputs, "sequence_output")
    found, expected = (here * ops.convert_to_numpy(x) for x in (model(inputs), expected))
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("name", ["t5", "t5_1.1"])
def test_logits_of_a_seq2seq_lm(name):
    backbone = make_backbone(name)
    model = from_backbone(backbone)
    assert isinstance(model, Seq2SeqLM)
    inputs = make_inputs(model.config)
    expected = keras_hub.models.T5Seq2SeqLM(backbone=backbone, preprocessor=None)(inputs)
    here = real(inputs, "decoder_sequence_output")
    found, expected = (here * ops.convert_to_numpy(x) for x in (model(inputs), expected))
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.one_backend
def test_what_a_task_is_given():
    model = from_backbone(make_backbone("llama"), max_sequence_length=20, name="mine")
    assert model.config.max_sequence_length == 20 and model.name == "mine"
    tokenizer = kerasllm.Tokenizer.train("abc", kind="char")
    assert from_backbone(make_backbone("gpt2"), tokenizer=tokenizer).tokenizer is tokenizer
    with pytest.raises(ValueError, match=r"GPT2Backbone are learned, of 13 tokens.*max_sequence_length=20"):
        from_backbone(make_backbone("gpt2"), max_sequence_length=20)


def test_dtype_policies_are_kept():
    backbone = make_backbone("gpt2", dtype="bfloat16")
    model = from_backbone(backbone)
    again = to_backbone(model)
    assert model.dtype_policy.name == again.dtype_policy.name == "bfloat16"
    for one, other in zip(again.weights, backbone.weights):
        assert keras.backend.standardize_dtype(one.dtype) == "bfloat16"
        one, other = (ops.convert_to_numpy(ops.cast(x.value, "float32")) for x in (one, other))
        np.testing.assert_array_equal(one, other)


def test_a_missing_pooler_stays_new():
    config = from_backbone(make_backbone("bert")).config.replace(pooler=False)
    model = make_model(config)
    backbone = to_backbone(model)
    inputs = make_inputs(config)
    here = real(inputs, "sequence_output")
    found, expected = our_states(model, inputs), their_states(backbone, inputs)
    found, expected = (here * ops.convert_to_numpy(x["sequence_output"]) for x in (found, expected))
    np.testing.assert_allclose(found, expected, atol=1e-4)


UNSUPPORTED = {
    "positions='sinusoidal'": ("gpt2", {"positions": "sinusoidal"}),
    "activation='relu'": ("gpt2", {"activation": "relu"}),
    "tie_embeddings=False": ("gpt2", {"tie_embeddings": False}),
    "sliding_window=4": ("gpt2", {"sliding_window": 4}),
    "attention_dropout=0.1": ("gpt2", {"attention_dropout": 0.1}),
    "activation='gelu'": ("bert", {"activation": "gelu"}),
    "norm_epsilon=1e-05": ("bert", {"norm_epsilon": 1e-5}),
    "num_segments=0": ("bert", {"num_segments": 0}),
    "num_encoder_layers=3": ("t5", {"num_encoder_layers": 3}),
    "relative_buckets=16": ("t5", {"relative_buckets": 16}),
    "attention_scale=None": ("t5", {"attention_scale": None}),
    "head_dim=8": ("llama", {"head_dim": 8}),
    "use_bias=True": ("llama", {"use_bias": True}),
    "rope_scaling={'type': 'linear', 'factor': 2.0}": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
}


@pytest.mark.one_backend
@pytest.mark.parametrize("setting", UNSUPPORTED)
def test_a_setting_that_keras_hub_does_not_have(setting):
    name, changes = UNSUPPORTED[setting]
    config = from_backbone(make_backbone(name)).config
    model = make_model(config.replace(**changes))
    with pytest.raises(ValueError, match=f"{BACKBONES[name][0]} does not have .*{re.escape(setting)} .only"):
        to_backbone(model)


@pytest.mark.one_backend
def test_a_backbone_that_we_do_not_have():
    with pytest.raises(ValueError, match=r"Received: Dense. Supported: BertBackbone, GPT2Backbone, T5Backbone"):
        from_backbone(keras.layers.Dense(3))
    with pytest.raises(ValueError, match=r"`activation` must be one of relu, gelu.*'tanh'"):
        from_backbone(make_backbone("t5", activation="tanh"))
    with pytest.raises(ValueError, match=r"does not use `rope_position_scaling_factor`.*=2"):
        from_backbone(make_backbone("llama", rope_position_scaling_factor=2))
    adapted = make_backbone("gpt2")
    adapted.enable_lora(2)
    with pytest.raises(ValueError, match=r"'block_0/attention/query' .* LoRA"):
        from_backbone(adapted)


@pytest.mark.one_backend
def test_keras_hub_computes_without_its_linear_scaling():
    """Why `rope_position_scaling_factor` is refused; when this fails, KerasHub has mended it."""
    plain, scaled = make_backbone("llama"), make_backbone("llama", rope_position_scaling_factor=4.0)
    inputs = make_inputs(from_backbone(plain).config)
    plain, scaled = (ops.convert_to_numpy(b(inputs, training=False)) for b in (plain, scaled))
    np.testing.assert_array_equal(plain, scaled)


@pytest.mark.one_backend
def test_without_keras_hub(monkeypatch):
    model = from_backbone(make_backbone("gpt2"))
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r"kerasllm\[hub\]"):
        to_backbone(model)
