"""T5's names in Hugging Face directories, 1.0 and 1.1: its config keys and its table of tensors."""

from kerasllm.config import TransformerConfig
from kerasllm.interop.family import Family, dense, read_activation, read_keys, rms_norm, write_activation, write_keys

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


def from_hf(values: dict) -> TransformerConfig:
    """Our config of a T5 `config.json`."""
    fields = {**BEHAVIOUR, **read_keys(values, KEYS)}
    fields["num_layers"] = fields["num_layers"] or fields["num_encoder_layers"]
    fields["attention_dropout"] = fields["dropout"]
    # What scales the logits is a key of transformers 5; older ones take 1.1 to be what is not tied.
    fields["scale_logits"] = values.get("scale_decoder_outputs", fields["tie_embeddings"])
    feed_forward = values.get("feed_forward_proj", "relu")
    gated = isinstance(feed_forward, str) and feed_forward.startswith("gated-")
    if feed_forward == "gated-gelu":
        feed_forward = "gated-gelu_new"  # By that name T5 has always meant the approximation.
    name = feed_forward.removeprefix("gated-") if gated else feed_forward
    activation = read_activation({"feed_forward_proj": name}, "feed_forward_proj", "relu")
    return TransformerConfig.from_dict({**fields, "gated": gated, "activation": activation})


def to_hf(config: TransformerConfig) -> dict:
    """The `config.json` of a T5."""
    activation = write_activation(config)
    if config.gated:
        activation = "gated-gelu" if config.activation == "gelu_tanh" else f"gated-{activation}"
    values = write_keys(config, KEYS)
    more = {"feed_forward_proj": activation, "scale_decoder_outputs": config.scale_logits, "is_encoder_decoder": True}
    return {**values, **more}


def refine(config: TransformerConfig, names, task: str) -> TransformerConfig:
    """transformers 5 writes that the embeddings are tied in any case: whether 1.1's are, its tensors tell."""
    return config.replace(tie_embeddings=config.scale_logits or "lm_head.weight" not in names)


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
    """Copies of tied weights, and a bias of the first cross-attention that old files carry and nobody reads."""
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *["lm_head.weight"] * config.tie_embeddings)
    return name in (*copies, "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight")


FAMILY = Family(
    "t5",
    {"Seq2SeqLM": "T5ForConditionalGeneration"},
    from_hf,
    to_hf,
    tensors,
    refine=refine,
    ignored=ignored,
)
