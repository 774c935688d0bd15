"""GPT-2's names in Hugging Face directories: its config keys and its table of tensors."""

from kerasllm.config import TransformerConfig

MODEL_TYPE = "gpt2"
ARCHITECTURE = "GPT2LMHeadModel"
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
# What GPT-2 is, in our terms; a config that differs in one of these is not a GPT-2.
BEHAVIOUR = {
    "causal": True,
    "positions": "learned",
    "sliding_window": None,
    "norm": "layer_norm",
    "norm_position": "pre",
    "gated": False,
    "use_bias": True,
    "scale_embeddings": False,
}


def covers(config: TransformerConfig) -> bool:
    """Whether a config can be saved as a GPT-2."""
    plain_heads = config.num_kv_heads == config.num_heads and config.num_heads * config.head_dim == config.hidden_dim
    return plain_heads and all(getattr(config, key) == value for key, value in BEHAVIOUR.items())


def from_hf(values: dict) -> TransformerConfig:
    """Our config of a GPT-2 `config.json`."""
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if values.get(key):
            raise ValueError(f"This GPT-2 is not supported: {key} is true in config.json.")
    if not values.get("scale_attn_weights", True):
        raise ValueError("This GPT-2 is not supported: scale_attn_weights is false in config.json.")
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"Unknown activation_function {activation!r}. Known: {', '.join(ACTIVATIONS)}")
    return TransformerConfig.from_dict(
        {
            **BEHAVIOUR,
            "vocabulary_size": values.get("vocab_size", 50257),
            "max_sequence_length": values.get("n_positions", 1024),
            "num_layers": values.get("n_layer", 12),
            "num_heads": values.get("n_head", 12),
            "hidden_dim": values.get("n_embd", 768),
            "intermediate_dim": values.get("n_inner"),
            "norm_epsilon": values.get("layer_norm_epsilon", 1e-5),
            "activation": ACTIVATIONS[activation],
            "tie_embeddings": values.get("tie_word_embeddings", True),
            "dropout": values.get("resid_pdrop", 0.1),
            "attention_dropout": values.get("attn_pdrop", 0.1),
            "initializer_range": values.get("initializer_range", 0.02),
        }
    )


def to_hf(config: TransformerConfig) -> dict:
    """The `config.json` of a config that `covers` accepts."""
    return {
        "vocab_size": config.vocabulary_size,
        "n_positions": config.max_sequence_length,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.hidden_dim,
        "n_inner": config.intermediate_dim,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": next(hf for hf, ours in ACTIVATIONS.items() if ours == config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "initializer_range": config.initializer_range,
        "scale_attn_weights": True,
    }


def tensors(config: TransformerConfig) -> dict[str, list[str]]:
    """Which of our variables (paths below the transformer) each tensor holds, side by side on its last axis.

    GPT-2's kernels lie (in, out), as ours do, so nothing is transposed but an untied head.
    """
    table = {
        "transformer.wte.weight": ["embedding/tokens/embeddings"],
        "transformer.wpe.weight": ["embedding/positions/embeddings"],
        "transformer.ln_f.weight": ["final_norm/gamma"],
        "transformer.ln_f.bias": ["final_norm/beta"],
    }
    if not config.tie_embeddings:
        table["lm_head.weight"] = ["embedding/tokens/reverse_embeddings.T"]
    for i in range(config.num_layers):
        theirs, ours = f"transformer.h.{i}", f"block_{i}"
        for hf, name in (("ln_1", "attention_norm"), ("ln_2", "feed_forward_norm")):
            table[f"{theirs}.{hf}.weight"] = [f"{ours}/{name}/gamma"]
            table[f"{theirs}.{hf}.bias"] = [f"{ours}/{name}/beta"]
        for hf, name in (("weight", "kernel"), ("bias", "bias")):
            table[f"{theirs}.attn.c_attn.{hf}"] = [f"{ours}/attention/{p}/{name}" for p in ("query", "key", "value")]
            table[f"{theirs}.attn.c_proj.{hf}"] = [f"{ours}/attention/output_dense/{name}"]
            table[f"{theirs}.mlp.c_fc.{hf}"] = [f"{ours}/feed_forward/up/{name}"]
            table[f"{theirs}.mlp.c_proj.{hf}"] = [f"{ours}/feed_forward/down/{name}"]
    return table


def ignored(name: str, config: TransformerConfig) -> bool:
    """Tensors that some GPT-2 files carry and nobody needs: mask buffers, and a copy of a tied head."""
    return name.endswith((".attn.bias", ".attn.masked_bias")) or (config.tie_embeddings and name == "lm_head.weight")


def standard_name(name: str) -> str:
    """The name as GPT2LMHeadModel saves it; bare GPT2Model files lack the prefix."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
