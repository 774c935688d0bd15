"""T5's names in Hugging Face directories, 1.0 and 1.1: its config keys and its table of tensors."""

from kerasllm.config import TransformerConfig
from kerasllm.interop.family import (
    Family,
    check_full_attention,
    dense,
    is_copy,
    read_activation,
    read_aliases,
    read_keys,
    refuse,
    rms_norm,
    untie,
    write_activation,
    write_keys,
)

BEHAVIOUR = {"positions": "relative", "norm": "rms_norm", "use_bias": False, "attention_scale": 1.0}
KEYS = {
    "vocab_size": ("vocabulary_size", 32128),
    "n_positions": ("max_sequence_length", 512),
    "num_layers": ("num_encoder_layers", 6),
    "num_decoder_layers": ("num_layers", None),
    "num_heads": ("num_heads", 8),
    "d_kv": ("head_dim", 64),
    "d_model": ("hidden_dim", 512),
    "d_ff": ("intermediate_dim", 2048),
    "relative_attention_num_buckets": ("relative_buckets", 32),
    "relative_attention_max_distance": ("relative_max_distance", 128),
    "layer_norm_epsilon": ("norm_epsilon", 1e-6),
    "tie_word_embeddings": ("tie_embeddings", True),
    "dropout_rate": ("dropout", 0.1),
    "initializer_range": ("initializer_range", 0.05),  # T5 itself knows but a factor on several scales.
}
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def from_hf(values: dict) -> TransformerConfig:
    """Our config of a T5 `config.json`."""
    # transformers counts the decoder's layers before it looks at other names.
    num_layers = values.get("num_layers", KEYS["num_layers"][1])
    values = read_aliases(values, ALIASES)
    refuse(values, is_causal=True, is_encoder_decoder=True)
    fields = {**BEHAVIOUR, **read_keys(values, KEYS)}
    if fields["num_layers"] is None:
        fields["num_layers"] = num_layers
    fields["attention_dropout"] = fields["dropout"]
    # What scales the logits is a key of transformers 5; older ones take 1.1 to be what is not tied.
    fields["scale_logits"] = values.get("scale_decoder_outputs", fields["tie_embeddings"])
    activation, gated = _read_feed_forward(values)
    config = TransformerConfig.from_dict({**fields, "gated": gated, "activation": activation})
    check_full_attention(values, config.max_sequence_length)
    return config


def _read_feed_forward(values: dict) -> tuple[str, bool]:
    name = values.get("feed_forward_proj", "relu")
    gated = isinstance(name, str) and name.startswith("gated-")
    if gated:
        # By "gelu" alone T5 has always meant the approximation.
        name = "gelu_new" if name == "gated-gelu" else name.removeprefix("gated-")
    # What transformers makes of that key it also saves, and what is saved wins.
    if "dense_act_fn" in values:
        return read_activation(values, "dense_act_fn", "relu"), values.get("is_gated_act", gated)
    return read_activation({"feed_forward_proj": name}, "feed_forward_proj", "relu"), values.get("is_gated_act", gated)


def to_hf(config: TransformerConfig) -> dict:
    """The `config.json` of a T5."""
    name = write_activation(config)
    return {
        **write_keys(config, KEYS),
        "feed_forward_proj": ("gated-gelu" if name == "gelu_new" else f"gated-{name}") if config.gated else name,
        # "gated-gelu" means the approximation, so the exact one is named beside it.
        **({"dense_act_fn": name, "is_gated_act": True} if config.gated and name == "gelu" else {}),
        "scale_decoder_outputs": config.scale_logits,
        "is_encoder_decoder": True,
    }


def settle(config: TransformerConfig, tensors: dict, task: str) -> tuple[TransformerConfig, dict]:
    """As `Family.settle`. transformers 5 ties every T5 whose head is a copy, whatever config.json says."""
    tensors = dict(tensors)
    for name in COPIES:
        if name in tensors and not is_copy(tensors[name], tensors.setdefault("shared.weight", tensors[name])):
            raise ValueError(
                "This t5 is not supported: its encoder or its decoder has token embeddings of its own. Received: "
                f"a {name} that differs from shared.weight"
            )
        tensors.pop(name, None)
    return untie(config, tensors, "lm_head.weight", "shared.weight")


def tensors(config: TransformerConfig) -> dict[str, list[str]]:
    """As `Family.tensors`."""
    table = {"shared.weight": ["embedding/tokens/embeddings"]}
    if not config.tie_embeddings:
        table["lm_head.weight"] = ["embedding/tokens/reverse_embeddings.T"]
    for stack, num_layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_layers)):
        for i in range(num_layers):
            table |= _block(f"{stack}.block.{i}.layer", f"{stack}/block_{i}", stack == "decoder", config.gated)
        # Held by the first block, and shared by all.
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table[bias] = [f"{stack}/relative_bias/embeddings"]
        table |= rms_norm(f"{stack}.final_layer_norm", f"{stack}/final_norm")
    return table


def _block(theirs: str, ours: str, cross_attention: bool, gated: bool) -> dict[str, list[str]]:
    attentions = [("SelfAttention", "attention", "attention_norm")]
    if cross_attention:
        attentions.append(("EncDecAttention", "source_attention", "source_norm"))
    table = {}
    for i, (attention, name, norm) in enumerate(attentions):
        for hf, projection in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output_dense")):
            table |= dense(f"{theirs}.{i}.{attention}.{hf}", f"{ours}/{name}/{projection}", bias=False)
        table |= rms_norm(f"{theirs}.{i}.layer_norm", f"{ours}/{norm}")
    last = len(attentions)
    projections = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
    for hf, name in projections.items():
        table |= dense(f"{theirs}.{last}.DenseReluDense.{hf}", f"{ours}/feed_forward/{name}", bias=False)
    return table | rms_norm(f"{theirs}.{last}.layer_norm", f"{ours}/feed_forward_norm")


def ignored(name: str, config: TransformerConfig) -> bool:
    """A bias of the first cross-attention that old files carry and nobody reads."""
    return name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


FAMILY = Family(
    "t5",
    {"Seq2SeqLM": "T5ForConditionalGeneration"},
    from_hf,
    to_hf,
    tensors,
    settle=settle,
    ignored=ignored,
)
