"""BERT's names in Hugging Face directories: its config keys and its table of tensors."""

from kerasllm.config import TransformerConfig
from kerasllm.interop.family import (
    Family,
    Table,
    check_full_attention,
    dense,
    layer_norm,
    read_activation,
    read_keys,
    refuse,
    untie,
    write_activation,
    write_keys,
)
from kerasllm.interop.tasks import LABELLING

BEHAVIOUR = {"embedding_norm": True, "norm_position": "post", "pooler": True}
KEYS = {
    "vocab_size": ("vocabulary_size", 30522),
    "max_position_embeddings": ("max_sequence_length", 512),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "hidden_size": ("hidden_dim", 768),
    "intermediate_size": ("intermediate_dim", 3072),
    "type_vocab_size": ("num_segments", 2),
    "layer_norm_eps": ("norm_epsilon", 1e-12),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "initializer_range": ("initializer_range", 0.02),
    "tie_word_embeddings": ("tie_embeddings", True),
}
MASKED_HEAD = {
    "cls.predictions.bias": ["masked_head/bias"],
    **dense("cls.predictions.transform.dense", "masked_head/dense"),
    **layer_norm("cls.predictions.transform.LayerNorm", "masked_head/norm"),
}
# An untied head; transformers has the bias twice, and reads this one.
UNTIED_HEAD = {
    "cls.predictions.decoder.weight": ["embedding/tokens/reverse_embeddings.T"],
    "cls.predictions.decoder.bias": ["masked_head/bias"],
}
PREDICTORS = ("MaskedLM", "PairedMaskedLM")  # the tasks whose head is one of tokens


def from_hf(values: dict) -> TransformerConfig:
    """Our config of a BERT `config.json`."""
    refuse(values, add_cross_attention=False, position_embedding_type="absolute")
    if not values.get("type_vocab_size", 2):
        raise ValueError("A BERT has at least one kind of segment. Received: type_vocab_size=0")
    fields = {**BEHAVIOUR, **read_keys(values, KEYS)}
    fields["activation"] = read_activation(values, "hidden_act", "gelu")
    fields["causal"] = bool(values.get("is_decoder", False) and values.get("is_causal", True))
    config = TransformerConfig.from_dict(fields)
    if config.causal:
        check_full_attention(values, config.max_sequence_length)
    return config


def to_hf(config: TransformerConfig) -> dict:
    """The `config.json` of a BERT."""
    values = {**write_keys(config, KEYS), "hidden_act": write_activation(config)}
    return {**values, "is_decoder": True} if config.causal else values


def settle(config: TransformerConfig, tensors: dict, task: str) -> tuple[TransformerConfig, dict]:
    """As `Family.settle`."""
    check_no_decoder_head(config, task)
    tensors = dict(tensors)
    weight, bias = UNTIED_HEAD
    if task not in PREDICTORS:
        return config.replace(tie_embeddings=True), {n: t for n, t in tensors.items() if n not in UNTIED_HEAD}
    if config.tie_embeddings:
        config, tensors = untie(config, tensors, weight, "bert.embeddings.word_embeddings.weight")
        if not config.tie_embeddings:
            tensors.setdefault(bias, tensors.get("cls.predictions.bias"))
    if bias in tensors:
        tensors["cls.predictions.bias"] = tensors[bias]
    if config.tie_embeddings:
        tensors.pop(bias, None)
    return config, {name: tensor for name, tensor in tensors.items() if tensor is not None}


def check_no_decoder_head(config: TransformerConfig, task: str) -> None:
    """Raises a ValueError where a causal encoder is asked for next tokens."""
    if config.causal and task == "CausalLM":
        raise ValueError(
            "A CausalLM has no layers between the hidden states and the token embedding, and this model's head has. "
            "Open it with TextClassifier.from_preset, TokenClassifier.from_preset or TextEmbedder.from_preset. "
            "Received: is_decoder=True"
        )


def heads(task: str, config: TransformerConfig) -> Table | None:
    """As `Family.heads`."""
    if task in LABELLING:
        return dense("classifier", "classifier")
    if task not in PREDICTORS:
        return None
    table = {**MASKED_HEAD, **({} if config.tie_embeddings else UNTIED_HEAD)}
    return table if task == "MaskedLM" else {**table, **dense("cls.seq_relationship", "next_sentence")}


def refine(config: TransformerConfig, names, task: str) -> TransformerConfig:
    """Not all architectures have the pooler; a task that reads it has a new one if need be. Nor has each a head."""
    pooler = task in ("TextClassifier", "PairedMaskedLM") or "bert.pooler.dense.weight" in names
    return config.replace(pooler=pooler, tie_embeddings=config.tie_embeddings or task not in PREDICTORS)


def tensors(config: TransformerConfig) -> dict[str, list[str]]:
    """As `Family.tensors`."""
    embeddings = {"word_embeddings": "tokens", "position_embeddings": "positions", "token_type_embeddings": "segments"}
    table = {
        f"bert.embeddings.{theirs}.weight": [f"embedding/{ours}/embeddings"] for theirs, ours in embeddings.items()
    }
    table |= layer_norm("bert.embeddings.LayerNorm", "embedding/norm")
    for i in range(config.num_layers):
        theirs, ours = f"bert.encoder.layer.{i}", f"block_{i}"
        for name in ("query", "key", "value"):
            table |= dense(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
        table |= dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output_dense")
        table |= layer_norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm")
        table |= dense(f"{theirs}.intermediate.dense", f"{ours}/feed_forward/up")
        table |= dense(f"{theirs}.output.dense", f"{ours}/feed_forward/down")
        table |= layer_norm(f"{theirs}.output.LayerNorm", f"{ours}/feed_forward_norm")
    if config.pooler:
        table |= dense("bert.pooler.dense", "pooler")
    return table


def ignored(name: str, config: TransformerConfig) -> bool:
    """The numbers 0, 1, 2 … that old files carry."""
    return name == "bert.embeddings.position_ids"


def standard_name(name: str) -> str:
    """The name as BertForMaskedLM saves it; bare BertModel files lack the prefix, old ones say gamma and beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.", "classifier.")) else f"bert.{name}"


FAMILY = Family(
    "bert",
    {
        "MaskedLM": "BertForMaskedLM",
        "PairedMaskedLM": "BertForPreTraining",
        "TextClassifier": "BertForSequenceClassification",
        "TokenClassifier": "BertForTokenClassification",
        "TextEmbedder": "BertModel",
    },
    from_hf,
    to_hf,
    tensors,
    heads=heads,
    options={"TextClassifier": {"pooling": "pooler", "pooler_activation": "tanh"}},
    fresh=("cls.predictions.", "cls.seq_relationship.", "classifier.", "bert.pooler."),
    settle=settle,
    refine=refine,
    ignored=ignored,
    standard_name=standard_name,
)
