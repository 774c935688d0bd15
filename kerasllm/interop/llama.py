"""Llama's names in Hugging Face directories: its config keys and its table of tensors."""

from kerasllm.config import TransformerConfig
from kerasllm.interop.family import (
    Family,
    Table,
    check_full_attention,
    dense,
    read_activation,
    read_keys,
    refuse,
    rms_norm,
    untie,
    write_activation,
    write_keys,
)
from kerasllm.interop.tasks import LABELLING, READERS

BEHAVIOUR = {"positions": "rotary", "norm": "rms_norm", "gated": True}
KEYS = {
    "vocab_size": ("vocabulary_size", 32000),
    "max_position_embeddings": ("max_sequence_length", 2048),
    "num_hidden_layers": ("num_layers", 32),
    "num_attention_heads": ("num_heads", 32),
    "num_key_value_heads": ("num_kv_heads", None),
    "head_dim": ("head_dim", None),
    "hidden_size": ("hidden_dim", 4096),
    "intermediate_size": ("intermediate_dim", 11008),
    "rms_norm_eps": ("norm_epsilon", 1e-6),
    "tie_word_embeddings": ("tie_embeddings", False),
    "attention_bias": ("use_bias", False),
    "attention_dropout": ("attention_dropout", 0.0),
    "initializer_range": ("initializer_range", 0.02),
    "is_causal": ("causal", True),
}
ROPE_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_sequence_length",
}


def from_hf(values: dict) -> TransformerConfig:
    """Our config of a Llama `config.json`."""
    fields = {**BEHAVIOUR, **read_keys(values, KEYS), **_read_rope(values)}
    fields["activation"] = read_activation(values, "hidden_act", "silu")
    if values.get("mlp_bias", False) != fields["use_bias"]:
        raise ValueError(
            "A Llama has biases in attention and feed-forward, or in neither. Received: "
            f"attention_bias={fields['use_bias']!r}, mlp_bias={values.get('mlp_bias', False)!r}"
        )
    refuse(values, token_classification_bias=True)
    config = TransformerConfig.from_dict(fields)
    check_full_attention(values, config.max_sequence_length)
    if config.hidden_dim % config.num_heads:
        raise ValueError(
            "In a Llama `hidden_size` is a multiple of `num_attention_heads`. "
            f"Received: hidden_size={config.hidden_dim}, num_attention_heads={config.num_heads}"
        )
    return config


def to_hf(config: TransformerConfig) -> dict:
    """The `config.json` of a Llama, with its rotary positions in the words of transformers 5 and of older ones."""
    rope = config.rope_scaling or {"type": "default"}
    scaling = {"rope_type": rope["type"], **{theirs: rope[ours] for theirs, ours in ROPE_KEYS.items() if ours in rope}}
    return {
        **write_keys(config, KEYS),
        "mlp_bias": config.use_bias,
        "hidden_act": write_activation(config),
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling if config.rope_scaling else None,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
    }


def _read_rope(values: dict) -> dict:
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters in config.json must be a mapping. Received: {rope!r}")
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise ValueError(f"A Llama's rotary positions are those of all layers. Received: rope_parameters of {nested}")
    theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    # Without scaling, a Llama of transformers ignores this key.
    part = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise ValueError(f"A Llama rotates whole heads. Received: partial_rotary_factor={part!r}")
    scaling = {ours: rope[theirs] for theirs, ours in ROPE_KEYS.items() if theirs in rope}
    if kind == "linear":
        scaling = {"factor": scaling["factor"]} if "factor" in scaling else {}
    if kind == "llama3":
        length = values.get("max_position_embeddings", 2048)
        # The key beside the mapping wins over the one in it.
        length = values.get("original_max_position_embeddings", scaling.get("original_max_sequence_length", length))
        scaling["original_max_sequence_length"] = length
    return {"rope_theta": theta, "rope_scaling": {"type": kind, **scaling}}


def tensors(config: TransformerConfig) -> dict[str, list[str]]:
    """As `Family.tensors`."""
    table = {
        "model.embed_tokens.weight": ["embedding/tokens/embeddings"],
        **rms_norm("model.norm", "final_norm"),
    }
    if not config.tie_embeddings:
        table["lm_head.weight"] = ["embedding/tokens/reverse_embeddings.T"]
    for i in range(config.num_layers):
        theirs, ours = f"model.layers.{i}", f"block_{i}"
        table |= rms_norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm")
        table |= rms_norm(f"{theirs}.post_attention_layernorm", f"{ours}/feed_forward_norm")
        for hf, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "output_dense")):
            table |= dense(f"{theirs}.self_attn.{hf}", f"{ours}/attention/{name}", config.use_bias)
        for name in ("gate", "up", "down"):
            table |= dense(f"{theirs}.mlp.{name}_proj", f"{ours}/feed_forward/{name}", config.use_bias)
    return table


def heads(task: str, config: TransformerConfig) -> Table | None:
    """As `Family.heads`."""
    return dense("score", "classifier", bias=task == "TokenClassifier") if task in LABELLING else None


def settle(config: TransformerConfig, tensors: dict, task: str) -> tuple[TransformerConfig, dict]:
    """As `Family.settle`; a task that predicts no tokens needs no head."""
    if config.tie_embeddings or (task in READERS and "lm_head.weight" not in tensors):
        return untie(config, tensors, "lm_head.weight", "model.embed_tokens.weight")
    return config, tensors


def ignored(name: str, config: TransformerConfig) -> bool:
    """The frequencies that old files carry."""
    return name.endswith(".rotary_emb.inv_freq")


def standard_name(name: str) -> str:
    """The name as LlamaForCausalLM saves it; bare LlamaModel files lack the prefix."""
    return name if name.startswith(("model.", "lm_head.", "score.")) else f"model.{name}"


FAMILY = Family(
    "llama",
    {
        "CausalLM": "LlamaForCausalLM",
        "TextClassifier": "LlamaForSequenceClassification",
        "TokenClassifier": "LlamaForTokenClassification",
        "TextEmbedder": "LlamaModel",
    },
    from_hf,
    to_hf,
    tensors,
    heads=heads,
    options={"TextClassifier": {"pooling": "last", "use_bias": False}},
    fresh=("score.",),
    settle=settle,
    ignored=ignored,
    standard_name=standard_name,
)
