"""GPT-2's names in Hugging Face directories: its config keys and its table of tensors."""

from kerasllm.config import TransformerConfig
from kerasllm.interop.family import (
    Family,
    Table,
    check_full_attention,
    dense,
    layer_norm,
    read_activation,
    read_aliases,
    read_keys,
    refuse,
    untie,
    write_activation,
    write_keys,
)
from kerasllm.interop.tasks import READERS

KEYS = {
    "vocab_size": ("vocabulary_size", 50257),
    "n_positions": ("max_sequence_length", 1024),
    "n_layer": ("num_layers", 12),
    "n_head": ("num_heads", 12),
    "n_embd": ("hidden_dim", 768),
    "n_inner": ("intermediate_dim", None),
    "layer_norm_epsilon": ("norm_epsilon", 1e-5),
    "tie_word_embeddings": ("tie_embeddings", True),
    "embd_pdrop": ("dropout", 0.1),
    "resid_pdrop": ("dropout", 0.1),
    "attn_pdrop": ("attention_dropout", 0.1),
    "initializer_range": ("initializer_range", 0.02),
    "is_causal": ("causal", True),
}
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def from_hf(values: dict) -> TransformerConfig:
    """Our config of a GPT-2 `config.json`."""
    values = read_aliases(values, ALIASES)
    refuse(values, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False, scale_attn_weights=True)
    activation = read_activation(values, "activation_function", "gelu_new")
    config = TransformerConfig.from_dict({**read_keys(values, KEYS), "activation": activation})
    check_full_attention(values, config.max_sequence_length)
    return config


def to_hf(config: TransformerConfig) -> dict:
    """The `config.json` of a GPT-2."""
    return {**write_keys(config, KEYS), "activation_function": write_activation(config), "scale_attn_weights": True}


def tensors(config: TransformerConfig) -> dict[str, list[str]]:
    """As `Family.tensors`. GPT-2's kernels lie (in, out), as ours do, so nothing is transposed but an untied head."""
    table = {
        "transformer.wte.weight": ["embedding/tokens/embeddings"],
        "transformer.wpe.weight": ["embedding/positions/embeddings"],
        **layer_norm("transformer.ln_f", "final_norm"),
    }
    if not config.tie_embeddings:
        table["lm_head.weight"] = ["embedding/tokens/reverse_embeddings.T"]
    for i in range(config.num_layers):
        theirs, ours = f"transformer.h.{i}", f"block_{i}"
        table |= layer_norm(f"{theirs}.ln_1", f"{ours}/attention_norm")
        table |= layer_norm(f"{theirs}.ln_2", f"{ours}/feed_forward_norm")
        for hf, name in (("weight", "kernel"), ("bias", "bias")):
            table[f"{theirs}.attn.c_attn.{hf}"] = [f"{ours}/attention/{p}/{name}" for p in ("query", "key", "value")]
            table[f"{theirs}.attn.c_proj.{hf}"] = [f"{ours}/attention/output_dense/{name}"]
            table[f"{theirs}.mlp.c_fc.{hf}"] = [f"{ours}/feed_forward/up/{name}"]
            table[f"{theirs}.mlp.c_proj.{hf}"] = [f"{ours}/feed_forward/down/{name}"]
    return table


def heads(task: str, config: TransformerConfig) -> Table | None:
    """As `Family.heads`."""
    own = {
        "TextClassifier": dense("score", "classifier", bias=False),
        "TokenClassifier": dense("classifier", "classifier"),
    }
    return own.get(task)


def settle(config: TransformerConfig, tensors: dict, task: str) -> tuple[TransformerConfig, dict]:
    """As `Family.settle`; a task that predicts no tokens needs no head."""
    if config.tie_embeddings or (task in READERS and "lm_head.weight" not in tensors):
        return untie(config, tensors, "lm_head.weight", "transformer.wte.weight")
    return config, tensors


def ignored(name: str, config: TransformerConfig) -> bool:
    """Mask buffers that some GPT-2 files carry and nobody needs."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def standard_name(name: str) -> str:
    """The name as GPT2LMHeadModel saves it; bare GPT2Model files lack the prefix."""
    heads = ("lm_head.", "score.", "classifier.")
    return name if name.startswith(("transformer.", *heads)) else f"transformer.{name}"


FAMILY = Family(
    "gpt2",
    {
        "CausalLM": "GPT2LMHeadModel",
        "TextClassifier": "GPT2ForSequenceClassification",
        "TokenClassifier": "GPT2ForTokenClassification",
        "TextEmbedder": "GPT2Model",
    },
    from_hf,
    to_hf,
    tensors,
    heads=heads,
    options={"TextClassifier": {"pooling": "last", "use_bias": False}},
    fresh=("score.", "classifier."),
    settle=settle,
    ignored=ignored,
    standard_name=standard_name,
)
