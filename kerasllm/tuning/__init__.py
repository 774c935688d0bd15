"""Fine-tuning: adapters of many kinds, with one interface, for our models and any Keras model; and what is trained."""

import functools

from kerasllm.lazy import submodule
from kerasllm.tuning.bottleneck import Bottleneck
from kerasllm.tuning.features import cache_features
from kerasllm.tuning.files import load_adapter, save_adapter
from kerasllm.tuning.forgetting import ForgettingReport, anchor, fisher_information, release
from kerasllm.tuning.freezing import freeze, trained, unfreeze
from kerasllm.tuning.gradual import GradualUnfreezing
from kerasllm.tuning.lora import LoRA
from kerasllm.tuning.lora_plus import lora_plus
from kerasllm.tuning.merging import combine_adapters
from kerasllm.tuning.model_adapters import (
    adapters,
    add_adapter,
    delete_adapter,
    disable_adapter,
    merge,
    scale,
    set_adapter,
    train_adapter,
    unmerge,
)
from kerasllm.tuning.prompts import PrefixTuning, PromptTuning, PTuning
from kerasllm.tuning.rates import layerwise_decay
from kerasllm.tuning.vectors import IA3, BitFit, LayerNormTuning

__all__ = [
    "IA3",
    "BitFit",
    "Bottleneck",
    "ForgettingReport",
    "GradualUnfreezing",
    "LayerNormTuning",
    "LoRA",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "adapters",
    "add_adapter",
    "anchor",
    "cache_features",
    "combine_adapters",
    "delete_adapter",
    "disable_adapter",
    "fisher_information",
    "freeze",
    "layerwise_decay",
    "load_adapter",
    "lora_plus",
    "merge",
    "release",
    "save_adapter",
    "scale",
    "set_adapter",
    "train_adapter",
    "trained",
    "unfreeze",
    "unmerge",
]

__getattr__ = functools.partial(submodule, __name__)
