"""Smaller models: quantized, pruned or distilled ones, what it costs, and engines that run the result fast."""

import importlib

from kerasllm.lazy import submodule

_HOMES = {
    "Distiller": "kerasllm.compression.distillation",
    "GradualPruning": "kerasllm.compression.pruning",
    "Magnitude": "kerasllm.compression.pruning",
    "OnPolicy": "kerasllm.compression.written",
    "SparseGPT": "kerasllm.compression.pruning",
    "Wanda": "kerasllm.compression.pruning",
    "compare": "kerasllm.compression.report",
    "evaluation_batches": "kerasllm.compression.evaluation",
    "free_zeros": "kerasllm.compression.pruning",
    "keep_zeros": "kerasllm.compression.pruning",
    "prune": "kerasllm.compression.pruning",
    "prune_structure": "kerasllm.compression.structured_pruning",
    "quantization_aware": "kerasllm.compression.fake_quantization",
    "quantization_unaware": "kerasllm.compression.fake_quantization",
    "quantize": "kerasllm.compression.post_training",
    "quantized_layers": "kerasllm.compression.post_training",
    "search": "kerasllm.compression.mixed_precision",
    "smooth": "kerasllm.compression.smoothing",
    "sparsity": "kerasllm.compression.pruning",
    "student_from": "kerasllm.compression.students",
    "use_engine": "kerasllm.compression.engines",
    "written_rows": "kerasllm.compression.written",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        return submodule(__name__, name)
    return getattr(importlib.import_module(_HOMES[name]), name)
