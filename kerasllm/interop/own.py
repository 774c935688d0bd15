"""Our own names, for what no family covers: the config is ours, and a tensor's name is its weight's path."""

from kerasllm.config import TransformerConfig
from kerasllm.interop.family import Family
from kerasllm.interop.shapes import head_shapes, weight_shapes
from kerasllm.interop.tasks import TASKS


def from_hf(values: dict) -> TransformerConfig:
    if not isinstance(values.get("transformer"), dict):
        raise ValueError("config.json of model_type 'kerasllm' lacks its 'transformer' section.")
    return TransformerConfig.from_dict(values["transformer"])


def to_hf(config: TransformerConfig) -> dict:
    return {"transformer": config.to_dict(), "vocab_size": config.vocabulary_size}


def tensors(config: TransformerConfig) -> dict[str, list[str]]:
    return _named(weight_shapes(config))


def head(task: str, config: TransformerConfig, options: dict) -> dict[str, list[str]]:
    """The tensors of the head of a task made with these options, for families that have no names for it."""
    return _named(head_shapes(task, config, num_labels=1, use_bias=options.get("use_bias", True)))


def _named(paths) -> dict[str, list[str]]:
    return {path.replace("/", "."): [path] for path in paths}


FRESH = ("masked_head.", "next_sentence.", "detector_", "classifier.")
FAMILY = Family("kerasllm", {task: f"KerasLLMFor{task}" for task in TASKS}, from_hf, to_hf, tensors, fresh=FRESH)
