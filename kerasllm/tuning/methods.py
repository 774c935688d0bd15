"""The methods of `kerasllm finetune`: what each one adds to a model, or leaves to be trained."""

import keras

from kerasllm.training.recipe import WHOLE_MODEL, Tuning
from kerasllm.tuning.bottleneck import Bottleneck
from kerasllm.tuning.forgetting import anchor
from kerasllm.tuning.freezing import blocks
from kerasllm.tuning.lora import LoRA
from kerasllm.tuning.prompts import PrefixTuning, PromptTuning
from kerasllm.tuning.rates import layerwise_decay
from kerasllm.tuning.settings import Settings
from kerasllm.tuning.vectors import IA3, BitFit

ADAPTER = "default"  # the name of the one adapter


def prepare(model: keras.Model, tuning: Tuning) -> None:
    """Makes a model, not compiled yet, train what a recipe says.

    Raises:
        ValueError: a setting does not fit the model.
    """
    if tuning.method not in WHOLE_MODEL:
        model.add_adapter(ADAPTER, settings(tuning))
    elif tuning.method != "full":
        _freeze_below(model, tuning.trained_blocks, tuning.method)
    if tuning.anchor:
        anchor(model, tuning.anchor)


def with_rates(optimizer, model: keras.Model, tuning: Tuning):
    """The same optimizer, with the layer-wise learning rates of a recipe."""
    return optimizer if tuning.layer_decay == 1 else layerwise_decay(optimizer, model, tuning.layer_decay)


def settings(tuning: Tuning) -> Settings:
    """The settings of a method's adapter."""
    targets = tuning.targets and [pattern.strip() for pattern in tuning.targets.split(",")]
    if tuning.method in ("lora", "dora"):
        return LoRA(rank=tuning.rank, alpha=tuning.alpha, targets=targets, dora=tuning.method == "dora")
    if tuning.method == "adapter":
        return Bottleneck(dim=tuning.bottleneck_dim, targets=targets)
    if tuning.method in ("ia3", "bitfit"):
        return (IA3 if tuning.method == "ia3" else BitFit)(targets=targets)
    if targets:
        raise ValueError(f"`tuning.targets` is not for the method {tuning.method!r}, which goes to no layer.")
    return (PromptTuning if tuning.method == "prompt" else PrefixTuning)(num_tokens=tuning.prompt_length)


def _freeze_below(model, trained_blocks: int, method: str) -> None:
    """Leaves the last blocks and what is above them; a tied embedding is below them, too."""
    longest = max(map(len, blocks(model)))
    least = 1 if method == "last-n" else 0
    if not least <= trained_blocks <= longest:
        raise ValueError(
            f"`tuning.trained_blocks` must be in [{least}, {longest}], the model's blocks. Received: {trained_blocks}"
        )
    model.freeze("embedding", f"first {longest}")
    if trained_blocks:
        model.unfreeze(f"last {trained_blocks}")
