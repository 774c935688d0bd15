"""Fine-tuning with few weights: adapters of many kinds, with one interface, for our models and any Keras model."""

from kerasllm.tuning.bottleneck import Bottleneck
from kerasllm.tuning.files import load_adapter, save_adapter
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
from kerasllm.tuning.vectors import IA3, BitFit, LayerNormTuning

__all__ = [
    "IA3",
    "BitFit",
    "Bottleneck",
    "LayerNormTuning",
    "LoRA",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "adapters",
    "add_adapter",
    "combine_adapters",
    "delete_adapter",
    "disable_adapter",
    "load_adapter",
    "lora_plus",
    "merge",
    "save_adapter",
    "scale",
    "set_adapter",
    "train_adapter",
    "unmerge",
]
