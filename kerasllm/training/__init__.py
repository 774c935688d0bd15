"""Optimizers and schedules, callbacks, exact resume, recipes. Names are loaded on first use."""

import importlib

from kerasllm.lazy import submodule

_HOMES = {
    "Checkpoint": "checkpoint",
    "Interrupted": "checkpoint",
    "adamw": "optimizers",
    "muon": "optimizers",
    "Progress": "callbacks",
    "Throughput": "callbacks",
    "JSONLLogger": "callbacks",
    "StopOnNaN": "callbacks",
    "Samples": "callbacks",
    "plot_curves": "plots",
    "load_recipe": "recipe",
    "train": "run",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        return submodule(__name__, name)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
