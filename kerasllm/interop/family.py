"""What a family of Hugging Face models is to us: its config keys and a table of its tensors' names."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasllm.config import TransformerConfig

Table = dict[str, list[str]]  # tensor → paths of our weights, see `Family.tensors`
Keys = dict[str, tuple[str, Any]]  # key of config.json → (our field, its value where the key is left out)

PIECE = 1 << 22  # values compared at once

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How directories of one `model_type` are read and written.

    Args:
        model_type: as config.json has it.
        architectures: the class of transformers that each of our tasks is saved as.
        from_hf: config.json's values → config; raises ValueError for what is not supported.
        to_hf: config → config.json's values.
        tensors: config → which of our weights each tensor holds: paths without the leading "transformer/", side by
            side on their last axis; a path that ends in ".T" is transposed.
        heads: (task, config) → the same for what a task has beside the transformer, if its tensors have names of
            their own; else `None`.
        options: what a task's options must be for a model to be saved as its architecture, which has no others; a
            model that is read as that task gets them.
        fresh: beginnings of names of tensors that a file may lack, all that begin so or none: their weights then
            start new.
        settle: (config, tensors of the file, task) → (config, tensors) without copies: those of tied weights are
            compared, and the config says afterwards whether they are tied. See `untie`.
        refine: (config, names of the tensors in the file, task) → config, corrected by what only they tell.
        ignored: (name, config) → whether a tensor may be there though nothing of ours holds it.
        standard_name: a tensor's name in some file → its name in the table.
    """

    model_type: str
    architectures: dict[str, str]
    from_hf: Callable[[dict], TransformerConfig]
    to_hf: Callable[[TransformerConfig], dict]
    tensors: Callable[[TransformerConfig], Table]
    heads: Callable[[str, TransformerConfig], Table | None] = lambda task, config: None
    options: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    settle: Callable[[TransformerConfig, dict, str], tuple[TransformerConfig, dict]] = lambda config, tensors, task: (
        config,
        tensors,
    )
    refine: Callable[[TransformerConfig, Any, str], TransformerConfig] = lambda config, names, task: config
    ignored: Callable[[str, TransformerConfig], bool] = lambda name, config: False
    standard_name: Callable[[str], str] = lambda name: name

    def covers(self, model, task: str) -> bool:
        """Whether a model can be saved as this family: whether what would be read again is the same."""
        needed = self.options.get(task, {})
        if task not in self.architectures or any(getattr(model, name) != value for name, value in needed.items()):
            return False
        try:
            again = self.from_hf(self.to_hf(model.config))
            return self.refine(again, self.tensors(model.config), task) == model.config
        except ValueError:
            return False


def read_keys(values: dict, keys: Keys) -> dict[str, Any]:
    """Our fields of a config.json."""
    return {ours: values.get(theirs, default) for theirs, (ours, default) in keys.items()}


def write_keys(config: TransformerConfig, keys: Keys) -> dict[str, Any]:
    """The config.json of our fields."""
    return {theirs: getattr(config, ours) for theirs, (ours, _) in keys.items()}


def read_activation(values: dict, key: str, default: str) -> str:
    """Our name of an activation in config.json."""
    name = values.get(key, default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"Unknown {key} {name!r}. Known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def write_activation(config: TransformerConfig) -> str:
    """transformers' name of a config's activation."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)


def read_aliases(values: dict, aliases: dict[str, str]) -> dict:
    """config.json's values with each key under its own name, not under another that transformers knows it by.

    Args:
        aliases: transformers' `attribute_map`: other name → own name.

    Raises:
        ValueError: both names are there, with different values.
    """
    values = dict(values)
    for alias, key in aliases.items():
        if alias in values and values.setdefault(key, values[alias]) != values.pop(alias):
            raise ValueError(
                f"config.json says one thing in two ways: `{alias}` is another name of `{key}`. Remove the wrong one. "
                f"Received: {key}={values[key]!r}, and another {alias}"
            )
    return values


def refuse(values: dict, **supported: Any) -> None:
    """Raises a ValueError if a key of config.json has another value than the one that is supported."""
    for key, value in supported.items():
        if values.get(key, value) != value:
            raise ValueError(
                f"This {values.get('model_type')} is not supported: config.json says {key}={values[key]!r}, "
                f"and only {value!r} is."
            )


# Keys that transformers reads for models of any family, and that change what is computed or which file is read.
REMEDIES = {
    "per_layer_config": "Layers of different shapes are not supported.",
    "quantization_config": "Dequantize it first: in transformers, `model.dequantize()` and `save_pretrained`.",
    "transformers_weights": "Rename that file to model.safetensors, and remove the key.",
    "fusion_config": "Remove the key: fused layers compute the same, up to rounding.",
    "pruned_heads": "transformers 5 does not read it either. Remove the heads that are named from the weights.",
    "kv_sharing_modes": "Layers that share keys and values are not supported.",
}


def check_common(values: dict) -> None:
    """Raises a ValueError for keys of config.json, common to all families, that change what a model computes.

    Keys that no code of transformers reads for these families are ignored here as they are there.
    """
    for key, remedy in REMEDIES.items():
        if values.get(key):
            raise ValueError(f"config.json says {key}={str(values[key])[:80]}, which is not supported. {remedy}")
    code = values.get("auto_map") or {}
    classes = [name for name in code if str(name).startswith("AutoModel")] if isinstance(code, dict) else [code]
    if classes:
        raise ValueError(
            f"config.json names code of its own for the model, which is never run: auto_map={str(code)[:80]}. If the "
            f"model is a plain {values.get('model_type')}, remove auto_map from config.json."
        )


def check_full_attention(values: dict, max_length: int) -> None:
    """Raises a ValueError for a window or kinds of layers that transformers' cache would obey and its masks would not.

    These decoders have neither: transformers reads the keys all the same where it generates with a cache, and then
    writes another text than without one.

    Args:
        max_length: positions of the model; a window as large changes nothing.
    """
    for key in ("sliding_window", "attention_chunk_size"):
        size = values.get(key)
        if size is not None and not (isinstance(size, int) and size >= max_length):
            raise ValueError(
                f"A {values.get('model_type')} has no windows: transformers obeys {key} in its cache, and not in its "
                f"attention. Remove the key for full attention. Received: {key}={size!r}"
            )
    kinds = values.get("layer_types")
    if kinds and not all(kind == "full_attention" for kind in kinds):
        raise ValueError(
            f"A {values.get('model_type')} has layers of full attention alone. Received: layer_types={str(kinds)[:80]}"
        )


def untie(config: TransformerConfig, tensors: dict, head: str, embeddings: str) -> tuple[TransformerConfig, dict]:
    """(config, tensors) of a model that config.json says is tied, as transformers 5 reads them.

    A head equal to the embeddings is left out; another one unties the two; where only the head is there, it is both.
    """
    tensors = dict(tensors)
    if embeddings not in tensors and head in tensors:
        tensors[embeddings] = tensors[head]
    if head not in tensors or is_copy(tensors[head], tensors[embeddings]):
        tensors.pop(head, None)
        return config.replace(tie_embeddings=True), tensors
    return config.replace(tie_embeddings=False), tensors


def is_copy(first, second) -> bool:
    """Whether two tensors of files have the same values: one pass over both, a piece at a time."""
    if first is second:
        return True
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    one, other = (tensor.read().reshape(-1) for tensor in (first, second))
    return all(np.array_equal(one[i : i + PIECE], other[i : i + PIECE]) for i in range(0, one.size, PIECE))


def dense(theirs: str, ours: str, bias: bool = True) -> Table:
    """A linear layer of PyTorch, whose weight lies (out, in)."""
    table = {f"{theirs}.weight": [f"{ours}/kernel.T"]}
    return {**table, f"{theirs}.bias": [f"{ours}/bias"]} if bias else table


def layer_norm(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": [f"{ours}/gamma"], f"{theirs}.bias": [f"{ours}/beta"]}


def rms_norm(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": [f"{ours}/scale"]}
