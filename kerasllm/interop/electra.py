"""ELECTRA's names in Hugging Face directories: BERT's under another beginning, and a detector on top."""

from kerasllm.config import TransformerConfig
from kerasllm.interop import bert
from kerasllm.interop.family import Family, Table, dense, layer_norm, untie

DETECTOR = {
    **dense("discriminator_predictions.dense", "detector_dense"),
    **dense("discriminator_predictions.dense_prediction", "detector_logit"),
}
GENERATOR = {
    **dense("generator_predictions.dense", "masked_head/dense"),
    **layer_norm("generator_predictions.LayerNorm", "masked_head/norm"),
    "generator_lm_head.bias": ["masked_head/bias"],
}
HEAD = "generator_lm_head.weight"


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
    table = bert.tensors(config.replace(pooler=False))
    return {name.replace("bert.", "electra.", 1): paths for name, paths in table.items()}


def heads(task: str, config: TransformerConfig) -> Table | None:
    """As `Family.heads`. The first layer of the classifier's head is our pooler, with another activation."""
    if task == "MaskedLM":
        untied = {} if config.tie_embeddings else {HEAD: ["embedding/tokens/reverse_embeddings.T"]}
        return {**GENERATOR, **untied}
    return {
        "ReplacedTokenDetector": DETECTOR,
        "TextClassifier": {**dense("classifier.dense", "pooler"), **dense("classifier.out_proj", "classifier")},
        "TokenClassifier": dense("classifier", "classifier"),
    }.get(task)


def settle(config: TransformerConfig, tensors: dict, task: str) -> tuple[TransformerConfig, dict]:
    """As `Family.settle`."""
    bert.check_no_decoder_head(config, task)
    if task != "MaskedLM":
        return config.replace(tie_embeddings=True), {n: tensor for n, tensor in tensors.items() if n != HEAD}
    if config.tie_embeddings:
        return untie(config, tensors, HEAD, "electra.embeddings.word_embeddings.weight")
    return config, tensors


def refine(config: TransformerConfig, names, task: str) -> TransformerConfig:
    """A classifier has a pooler, which is in the table of its head; only a generator predicts tokens."""
    if task == "MaskedLM" and config.activation != "gelu":
        raise ValueError(
            "The head of an ELECTRA generator has the activation gelu, and a MaskedLM that of its blocks. Received: "
            f"hidden_act={config.activation!r}"
        )
    return config.replace(pooler=task == "TextClassifier", tie_embeddings=config.tie_embeddings or task != "MaskedLM")


def ignored(name: str, config: TransformerConfig) -> bool:
    """The numbers 0, 1, 2 … that old files carry."""
    return name == "electra.embeddings.position_ids"


def standard_name(name: str) -> str:
    """The name as ElectraForPreTraining saves it; bare ElectraModel files lack the prefix."""
    heads = ("discriminator_predictions.", "generator_predictions.", "generator_lm_head.", "classifier.")
    return name if name.startswith(("electra.", *heads)) else f"electra.{name}"


FAMILY = Family(
    "electra",
    {
        "MaskedLM": "ElectraForMaskedLM",
        "ReplacedTokenDetector": "ElectraForPreTraining",
        "TextClassifier": "ElectraForSequenceClassification",
        "TokenClassifier": "ElectraForTokenClassification",
        "TextEmbedder": "ElectraModel",
    },
    from_hf,
    to_hf,
    tensors,
    heads=heads,
    options={"TextClassifier": {"pooling": "pooler", "pooler_activation": "gelu"}},
    fresh=("discriminator_predictions.", "generator_predictions.", "generator_lm_head.", "classifier."),
    settle=settle,
    refine=refine,
    ignored=ignored,
    standard_name=standard_name,
)
