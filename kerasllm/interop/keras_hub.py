"""KerasHub's backbones ↔ our models: the same numbers under other names.

A family is its config in KerasHub's words, both ways, and a table of layers: ours on the left, KerasHub's on the
right. Their weights agree one by one, but that KerasHub keeps those of attention as (dim, heads, head size), where
ours are (dim, heads · head size): a reshape.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

import kerasllm
from kerasllm.config import TransformerConfig
from kerasllm.interop.presets import variables_by_path
from kerasllm.named_sizes import bert, gpt, llama, t5

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """How one of KerasHub's backbones is read and made.

    Args:
        task: name of the model that its weights make by default.
        to_config: a backbone, or just its settings as attributes, to the fields of a `TransformerConfig`.
        to_settings: a `TransformerConfig` to those settings, as near as they can say it.
        layers: a `TransformerConfig` to {our layer: KerasHub's, by its attributes}.
        unsaid: fields that the settings do not say, and that a backbone computes the same without.
    """

    task: str
    to_config: Callable[[Any], Values]
    to_settings: Callable[[TransformerConfig], Values]
    layers: Callable[[TransformerConfig], dict[str, str]]
    unsaid: tuple[str, ...]


def from_backbone(backbone, task=None, tokenizer=None, max_sequence_length: int | None = None, **options: Any):
    """One of our models with the weights of a KerasHub backbone.

    Args:
        backbone: a `BertBackbone`, `GPT2Backbone`, `T5Backbone` or `LlamaBackbone` (also `Llama3Backbone`).
        task: class of the model; `MaskedLM` of a BERT, `CausalLM` or `Seq2SeqLM` of the others when left out. What a
            backbone has not, such as the head of a `MaskedLM`, keeps its initial values.
        tokenizer: a `kerasllm.Tokenizer` for the model; KerasHub's own is not converted.
        max_sequence_length: longest sequence in tokens of T5 (512) and Llama (4096), whose backbones know none.
        options: more arguments of `task`.

    Returns:
        a `task` of the backbone's dtype policy, whose hidden states are the backbone's, but for those of padding.

    Raises:
        ValueError: a backbone of another family, one that is quantized or has LoRA, or a setting we have no word for.

    Example:
    ```python
    backbone = keras_hub.models.GPT2Backbone(50257, num_layers=2, num_heads=2, hidden_dim=128, intermediate_dim=512)
    model = kerasllm.interop.keras_hub.from_backbone(backbone)
    ```
    """
    names = [base.__name__ for base in type(backbone).__mro__]
    family = next((FAMILIES[name] for name in names if name in FAMILIES), None)
    if family is None:
        raise ValueError(f"Not a backbone that is supported. Received: {names[0]}. Supported: {', '.join(FAMILIES)}")
    values = family.to_config(backbone)
    if max_sequence_length is not None:
        if "max_sequence_length" not in family.unsaid:
            raise ValueError(
                f"The positions of a {names[0]} are learned, of {backbone.max_sequence_length} tokens. "
                f"Received: max_sequence_length={max_sequence_length}"
            )
        values["max_sequence_length"] = max_sequence_length
    task = task or getattr(kerasllm, family.task)
    config = TransformerConfig.from_dict(values)
    model = task(config, tokenizer=tokenizer, dtype=backbone.dtype_policy, **options)
    for ours, theirs in _pairs(family, model, backbone):
        ours.assign(ops.reshape(theirs.value, ours.shape))
    return model


def to_backbone(model):
    """A KerasHub backbone with the weights of one of our models, without the head that its task may have.

    Args:
        model: a model that is a BERT, GPT-2, T5 or Llama as KerasHub knows them. Its BERT has the GELU of the tanh
            formula; its T5 as many encoder as decoder blocks; and all of them one dropout rate. A pooler that the model
            has not keeps its initial values.

    Returns:
        a `BertBackbone`, `GPT2Backbone`, `T5Backbone` or `LlamaBackbone` of the model's dtype policy.

    Raises:
        ImportError: KerasHub is not installed.
        ValueError: KerasHub's family computes something else, by the name and value of each setting; or the model is
            quantized or has LoRA.

    Example:
    ```python
    model = kerasllm.CausalLM(kerasllm.TransformerConfig.from_name("llama_tiny"))
    backbone = kerasllm.interop.keras_hub.to_backbone(model)
    ```
    """
    try:
        import keras_hub
    except ImportError:
        raise ImportError("KerasHub is not installed. Install it with: pip install 'kerasllm[hub]'") from None
    config = model.config
    name = _nearest(config)
    family = FAMILIES[name]
    settings = family.to_settings(config)
    said = TransformerConfig.from_dict(family.to_config(SimpleNamespace(**settings))).to_dict()
    differing = [
        f"{field}={value!r} (only {said[field]!r})"
        for field, value in config.to_dict().items()
        if value != said[field] and field not in (*family.unsaid, "initializer_range")
    ]
    if differing:
        raise ValueError(f"KerasHub's {name} does not have {', '.join(differing)}.")
    backbone = getattr(keras_hub.models, name)(**settings, dtype=model.dtype_policy)
    for ours, theirs in _pairs(family, model, backbone):
        theirs.assign(ops.reshape(ours.value, theirs.shape))
    return backbone


def _nearest(config: TransformerConfig) -> str:
    """The backbone to try: where it does not fit, the error tells why."""
    if config.num_encoder_layers:
        return "T5Backbone"
    if not config.causal:
        return "BertBackbone"
    return "LlamaBackbone" if config.positions == "rotary" else "GPT2Backbone"


def _pairs(family: Family, model, backbone) -> list[tuple]:
    """Each of the transformer's weights with KerasHub's of the same size."""
    ours: dict[str, list] = {}
    for path, variable in variables_by_path(model).items():
        ours.setdefault(path.rpartition("/")[0], []).append(variable)
    pairs = []
    for our_layer, their_layer in family.layers(model.config).items():
        found = functools.reduce(_step, their_layer.split("."), backbone)
        theirs = getattr(found, "weights", [found])
        if [math.prod(v.shape) for v in ours[our_layer]] != [math.prod(v.shape) for v in theirs]:
            raise ValueError(
                f"The weights of {our_layer!r} and of {their_layer!r} do not agree: is one of them quantized, or has "
                f"LoRA? Received: {[v.path for v in ours[our_layer]]} and {[v.path for v in theirs]}"
            )
        pairs += zip(ours[our_layer], theirs)
    return pairs


def _step(found, name: str):
    return found[int(name)] if name.isdigit() else getattr(found, name)


def _blocks(count: int, ours: str, theirs: str, layers: dict[str, str]) -> dict[str, str]:
    return {f"{ours}_{i}/{a}": f"{theirs}.{i}.{b}" for i in range(count) for a, b in layers.items()}


def _sizes(config: TransformerConfig) -> Values:
    names = ("vocabulary_size", "num_layers", "hidden_dim", "intermediate_dim", "dropout")
    return {name: getattr(config, name) for name in names}


# BERT and GPT-2 ----------------------------------------------------------------------------------------------

_BLOCK = {
    "attention/query": "_self_attention_layer._query_dense",
    "attention/key": "_self_attention_layer._key_dense",
    "attention/value": "_self_attention_layer._value_dense",
    "attention/output_dense": "_self_attention_layer._output_dense",
    "attention_norm": "_self_attention_layer_norm",
    "feed_forward/up": "_feedforward_intermediate_dense",
    "feed_forward/down": "_feedforward_output_dense",
    "feed_forward_norm": "_feedforward_layer_norm",
}


def _bert_config(b) -> Values:
    return bert(
        b.num_layers,
        b.hidden_dim,
        b.num_heads,
        vocabulary_size=b.vocabulary_size,
        max_sequence_length=b.max_sequence_length,
        num_segments=b.num_segments,
        intermediate_dim=b.intermediate_dim,
        activation="gelu_tanh",
        dropout=b.dropout,
        attention_dropout=b.dropout,
    )


def _bert_settings(c: TransformerConfig) -> Values:
    return {**_gpt2_settings(c), "num_segments": max(c.num_segments, 1)}


def _bert_layers(c: TransformerConfig) -> dict[str, str]:
    return {
        "embedding/tokens": "token_embedding",
        "embedding/positions": "position_embedding",
        "embedding/segments": "segment_embedding",
        "embedding/norm": "embeddings_layer_norm",
        **_blocks(c.num_layers, "block", "transformer_layers", _BLOCK),
        **({"pooler": "pooled_dense"} if c.pooler else {}),
    }


def _gpt2_config(b) -> Values:
    return gpt(
        b.num_layers,
        b.hidden_dim,
        b.num_heads,
        b.max_sequence_length,
        vocabulary_size=b.vocabulary_size,
        intermediate_dim=b.intermediate_dim,
        dropout=b.dropout,
        attention_dropout=b.dropout,
    )


def _gpt2_settings(c: TransformerConfig) -> Values:
    return {**_sizes(c), "num_heads": c.num_heads, "max_sequence_length": c.max_sequence_length}


def _gpt2_layers(c: TransformerConfig) -> dict[str, str]:
    return {
        "embedding/tokens": "token_embedding",
        "embedding/positions": "position_embedding",
        **_blocks(c.num_layers, "block", "transformer_layers", _BLOCK),
        "final_norm": "layer_norm",
    }


# T5 ----------------------------------------------------------------------------------------------------------

_T5_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "gelu_approximate": "gelu_tanh"}


def _t5_config(b) -> Values:
    name = b.activation.__name__
    if name not in _T5_ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(_T5_ACTIVATIONS)}. Received: activation={name!r}")
    return t5(
        b.num_layers,
        b.hidden_dim,
        b.num_heads,
        b.intermediate_dim,
        vocabulary_size=b.vocabulary_size,
        head_dim=b.key_value_dim or b.hidden_dim // b.num_heads,
        activation=_T5_ACTIVATIONS[name],
        gated=b.use_gated_activation,
        norm_epsilon=b.layer_norm_epsilon,
        tie_embeddings=b.tie_embedding_weights,
        scale_logits=b.tie_embedding_weights,
        dropout=b.dropout,
        attention_dropout=b.dropout,
    )


def _t5_settings(c: TransformerConfig) -> Values:
    approximate = c.activation == "gelu_tanh"
    get = keras.saving.get_registered_object if approximate else keras.activations.get
    return {
        **_sizes(c),
        "num_heads": c.num_heads,
        "key_value_dim": c.head_dim,
        "activation": get("keras_hub>gelu_approximate" if approximate else c.activation),
        "use_gated_activation": c.gated,
        "layer_norm_epsilon": c.norm_epsilon,
        "tie_embedding_weights": c.tie_embeddings,
    }


def _t5_layers(c: TransformerConfig) -> dict[str, str]:
    def attention(ours, theirs):
        names = {"query": "query", "key": "key", "value": "value", "output_dense": "output"}
        return {f"{ours}/{a}": f"{theirs}.{b}_projector" for a, b in names.items()}

    # What goes through the activation is our gate, if there is one.
    feed_forward = {"gate": "input", "up": "gate"} if c.gated else {"up": "input"}
    block = {
        **attention("attention", "self_attention"),
        "attention_norm": "self_attention_layer_norm",
        **{f"feed_forward/{a}": f"{b}_projector" for a, b in {**feed_forward, "down": "output"}.items()},
        "feed_forward_norm": "layer_norm",
    }
    source = {**attention("source_attention", "cross_attention"), "source_norm": "cross_attention_layer_norm"}
    table = {"embedding/tokens": "token_embedding"}
    for stack, layers in (("encoder", block), ("decoder", {**block, **source})):
        blocks = f"{stack}_transformer_layers"
        table |= _blocks(c.num_layers, f"{stack}/block", blocks, layers)
        table[f"{stack}/relative_bias"] = f"{blocks}.0.self_attention.relative_attention_bias"
        table[f"{stack}/final_norm"] = f"{stack}_layer_norm"
    return table


# Llama -------------------------------------------------------------------------------------------------------

_LLAMA_BLOCK = {
    **_BLOCK,
    "attention_norm": "_self_attention_layernorm",
    "feed_forward/gate": "_feedforward_gate_dense",
    "feed_forward_norm": "_feedforward_layernorm",
}
# Our keys of `rope_scaling` and KerasHub's settings.
_ROPE_SCALING = {
    "factor": "rope_frequency_adjustment_factor",
    "low_freq_factor": "rope_low_freq_factor",
    "high_freq_factor": "rope_high_freq_factor",
    "original_max_sequence_length": "rope_pretraining_sequence_length",
}


def _llama_config(b) -> Values:
    # KerasHub (0.32) takes this factor and computes without it: what such a backbone means is not what it does.
    if b.rope_position_scaling_factor != 1.0:
        raise ValueError(
            "KerasHub's LlamaBackbone does not use `rope_position_scaling_factor`, which must be 1. "
            f"Received: rope_position_scaling_factor={b.rope_position_scaling_factor}"
        )
    scaling = None
    if b.rope_frequency_adjustment_factor is not None:
        scaling = {"type": "llama3", **{ours: getattr(b, theirs) for ours, theirs in _ROPE_SCALING.items()}}
    return llama(
        b.num_layers,
        b.hidden_dim,
        b.num_query_heads,
        b.intermediate_dim,
        vocabulary_size=b.vocabulary_size,
        num_kv_heads=b.num_key_value_heads,
        rope_theta=b.rope_max_wavelength,
        rope_scaling=scaling,
        norm_epsilon=b.layer_norm_epsilon,
        tie_embeddings=b.tie_word_embeddings,
        dropout=b.dropout,
        attention_dropout=b.dropout,
    )


def _llama_settings(c: TransformerConfig) -> Values:
    scaling = c.rope_scaling if c.rope_scaling and c.rope_scaling["type"] == "llama3" else {}
    return {
        **_sizes(c),
        "num_query_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "rope_max_wavelength": c.rope_theta,
        "rope_position_scaling_factor": 1.0,
        **{theirs: scaling.get(ours) for ours, theirs in _ROPE_SCALING.items()},
        "layer_norm_epsilon": c.norm_epsilon,
        "tie_word_embeddings": c.tie_embeddings,
    }


def _llama_layers(c: TransformerConfig) -> dict[str, str]:
    return {
        "embedding/tokens": "token_embedding",
        **_blocks(c.num_layers, "block", "transformer_layers", _LLAMA_BLOCK),
        "final_norm": "layer_norm",
    }


FAMILIES = {
    "BertBackbone": Family("MaskedLM", _bert_config, _bert_settings, _bert_layers, ("pooler",)),
    "GPT2Backbone": Family("CausalLM", _gpt2_config, _gpt2_settings, _gpt2_layers, ()),
    "T5Backbone": Family("Seq2SeqLM", _t5_config, _t5_settings, _t5_layers, ("max_sequence_length",)),
    "LlamaBackbone": Family("CausalLM", _llama_config, _llama_settings, _llama_layers, ("max_sequence_length",)),
}
