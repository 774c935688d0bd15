"""BERT's names in Hugging Face directories: its config keys and its table of tensors."""

from kerasllm.config import TransformerConfig
from kerasllm.interop.family import (
    Family,
    dense,
    layer_norm,
    read_activation,
    read_keys,
    refuse,
    write_activation,
    write_keys,
)

BEHAVIOUR = {"causal": False, "embedding_norm": True, "norm_position": "post", "pooler": True}
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
}
MASKED_HEAD = {
    "cls.predictions.bias": ["masked_head/bias"],
    **dense("cls.predictions.transform.dense", "masked_head/dense"),
    **layer_norm("cls.predictions.transform.LayerNorm", "masked_head/norm"),
}


def from_hf(values: dict) -> TransformerConfig:
    """Our config of a BERT `config.json`."""
    refuse(
        values,
        tie_word_embeddings=True,
        is_decoder=False,
        add_cross_attention=False,
        position_embedding_type="absolute",
    )
    if not values.get("type_vocab_size", 2):
        raise ValueError("A BERT has at least one kind of segment. Received: type_vocab_size=0")
    activation = read_activation(values, "hidden_act", "gelu")
    return TransformerConfig.from_dict({**BEHAVIOUR, **read_keys(values, KEYS), "activation": activation})


def to_hf(config: TransformerConfig) -> dict:
    """The `config.json` of a BERT."""
    return {**write_keys(config, KEYS), "hidden_act": write_activation(config)}


def refine(config: TransformerConfig, names, task: str) -> TransformerConfig:
    """Not all architectures have the pooler; a task that reads it has a new one if need be."""
    return config.replace(pooler=task in ("TextClassifier", "PairedMaskedLM") or "bert.pooler.dense.weight" in names)


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
    """Copies of tied weights, and the numbers 0, 1, 2 … that old files carry."""
    return name == "bert.embeddings.position_ids" or name.startswith("cls.predictions.decoder.")


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
    heads={
        "MaskedLM": MASKED_HEAD,
        "PairedMaskedLM": {**MASKED_HEAD, **dense("cls.seq_relationship", "next_sentence")},
        "TextClassifier": dense("classifier", "classifier"),
        "TokenClassifier": dense("classifier", "classifier"),
    },
    options={"TextClassifier": {"pooling": "pooler"}},
    fresh=("cls.predictions.", "cls.seq_relationship.", "classifier.", "bert.pooler."),
    refine=refine,
    ignored=ignored,
    standard_name=standard_name,
)
