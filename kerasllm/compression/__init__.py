"""Smaller models: `model.quantize(...)`, what it costs, and engines that run the result fast."""

import importlib

_HOMES = {
    "compare": "kerasllm.compression.report",
    "evaluation_batches": "kerasllm.compression.evaluation",
    "quantize": "kerasllm.compression.post_training",
    "quantized_layers": "kerasllm.compression.post_training",
    "search": "kerasllm.compression.mixed_precision",
    "use_engine": "kerasllm.compression.engines",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'kerasllm.compression' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
