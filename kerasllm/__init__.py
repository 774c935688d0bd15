"""kerasllm: language models in Keras 3.

Names are loaded on first use, so that importing the package imports no backend.
"""

import importlib

from kerasllm.lazy import submodule

_HOMES = {
    "TransformerConfig": "kerasllm.config",
    "Tokenizer": "kerasllm.tokenizers",
    "CausalLM": "kerasllm.models.causal_lm",
    "Seq2SeqLM": "kerasllm.models.seq2seq_lm",
    "MaskedLM": "kerasllm.models.masked_lm",
    "PairedMaskedLM": "kerasllm.models.paired_masked_lm",
    "ReplacedTokenDetector": "kerasllm.models.replaced_token_detector",
    "TextClassifier": "kerasllm.models.text_classifier",
    "TokenClassifier": "kerasllm.models.token_classifier",
    "TextEmbedder": "kerasllm.models.text_embedder",
    "Sampler": "kerasllm.generation.sampling",
}
_MODULES = (
    "chat",
    "compression",
    "config",
    "data",
    "generation",
    "inspection",
    "interop",
    "layers",
    "losses",
    "metrics",
    "models",
    "objectives",
    "serving",
    "training",
    "tuning",
)
__all__ = [*_HOMES, *_MODULES]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOMES:
        return submodule(__name__, name)
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
