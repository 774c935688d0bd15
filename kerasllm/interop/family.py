"""What a family of Hugging Face models is to us: its config keys and a table of its tensors' names."""

import dataclasses
from collections.abc import Callable
from typing import Any

from kerasllm.config import TransformerConfig

Table = dict[str, list[str]]  # tensor → paths of our weights, see `Family.tensors`
Keys = dict[str, tuple[str, Any]]  # key of config.json → (our field, its value where the key is left out)

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
        heads: the same for what a task has beside the transformer, where its tensors have names of their own.
        options: what a task's options must be for a model to be saved as its architecture, which has no others.
        fresh: beginnings of names of tensors that a file may lack, all that begin so or none: their weights then
            start new.
        refine: (config, names of the tensors in the file, task) → config, corrected by what only they tell.
        ignored: (name, config) → whether a tensor may be there though nothing of ours holds it.
        standard_name: a tensor's name in some file → its name in the table.
    """

    model_type: str
    architectures: dict[str, str]
    from_hf: Callable[[dict], TransformerConfig]
    to_hf: Callable[[TransformerConfig], dict]
    tensors: Callable[[TransformerConfig], Table]
    heads: dict[str, Table] = dataclasses.field(default_factory=dict)
    options: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    fresh: tuple[str, ...] = ()
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
        except ValueError:
            return False
        return self.refine(again, self.tensors(model.config), task) == model.config


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


def refuse(values: dict, **supported: Any) -> None:
    """Raises a ValueError if a key of config.json has another value than the one that is supported."""
    for key, value in supported.items():
        if values.get(key, value) != value:
            raise ValueError(
                f"This {values.get('model_type')} is not supported: config.json says {key}={values[key]!r}, "
                f"and only {value!r} is."
            )


def dense(theirs: str, ours: str, bias: bool = True) -> Table:
    """A linear layer of PyTorch, whose weight lies (out, in)."""
    table = {f"{theirs}.weight": [f"{ours}/kernel.T"]}
    return {**table, f"{theirs}.bias": [f"{ours}/bias"]} if bias else table


def layer_norm(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": [f"{ours}/gamma"], f"{theirs}.bias": [f"{ours}/beta"]}


def rms_norm(theirs: str, ours: str) -> Table:
    return {f"{theirs}.weight": [f"{ours}/scale"]}
