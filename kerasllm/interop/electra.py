"""ELECTRA's names in Hugging Face directories: BERT's under another beginning, and a detector on top."""

from kerasllm.config import TransformerConfig
from kerasllm.interop import bert
from kerasllm.interop.family import Family, Table, dense

DETECTOR = {
    **dense("discriminator_predictions.dense", "detector_dense"),
    **dense("discriminator_predictions.dense_prediction", "detector_logit"),
}


def from_hf(values: dict) -> TransformerConfig:
    """Our config of an ELECTRA `config.json`."""
    hidden_size = values.get("hidden_size", 256)
    if values.get("embedding_size", 128) != hidden_size:
        raise ValueError(
            "This electra is not supported: its embeddings are of another width than its hidden states. Received: "
            f"embedding_size={values.get('embedding_size', 128)}, hidden_size={hidden_size}"
        )
    defaults = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    return bert.from_hf({**defaults, **values}).replace(pooler=False)


def to_hf(config: TransformerConfig) -> dict:
    """The `config.json` of an ELECTRA."""
    return {**bert.to_hf(config), "embedding_size": config.hidden_dim}


def tensors(config: TransformerConfig) -> Table:
    """As `Family.tensors`."""
    return {name.replace("bert.", "electra.", 1): paths for name, paths in bert.tensors(config).items()}


def ignored(name: str, config: TransformerConfig) -> bool:
    """The numbers 0, 1, 2 … that old files carry."""
    return name == "electra.embeddings.position_ids"


def standard_name(name: str) -> str:
    """The name as ElectraForPreTraining saves it; bare ElectraModel files lack the prefix."""
    return name if name.startswith(("electra.", "discriminator_predictions.", "classifier.")) else f"electra.{name}"


FAMILY = Family(
    "electra",
    {
        "ReplacedTokenDetector": "ElectraForPreTraining",
        "TokenClassifier": "ElectraForTokenClassification",
        "TextEmbedder": "ElectraModel",
    },
    from_hf,
    to_hf,
    tensors,
    heads={"ReplacedTokenDetector": DETECTOR, "TokenClassifier": dense("classifier", "classifier")},
    fresh=("discriminator_predictions.", "classifier."),
    ignored=ignored,
    standard_name=standard_name,
)
