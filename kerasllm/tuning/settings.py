"""What all adapters' settings have in common."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import keras

from kerasllm.tuning.delta import Delta
from kerasllm.tuning.offset import WEIGHT_NAMES, Offset, weight_names
from kerasllm.tuning.targets import LINEAR, named_layers, select

NEW_HEADS = ("classifier",)  # what a task begins with untrained


class Part(NamedTuple):
    """One delta of an adapter: the layer's dotted name, the layer, and what is put at it."""

    name: str
    layer: Any
    delta: Delta


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of an adapter. Not used by itself: see `LoRA`, `IA3`, `Bottleneck`, `PromptTuning` and the others.

    Args:
        targets: the layers it goes to: globs of dotted names or of their ends ("query", "attention.*",
            "block_0.*"), or "re:" and a regular expression; one or several. When left out, what the method's paper
            chose.
        also_train: layers trained whole beside it, chosen in the same way; a classifier's new head when left out.
    """

    targets: str | tuple[str, ...] | None = None
    also_train: str | tuple[str, ...] | None = None

    kinds: ClassVar[tuple[type, ...]] = LINEAR

    def __post_init__(self):
        for name in ("targets", "also_train"):
            patterns = getattr(self, name)
            if isinstance(patterns, list):
                object.__setattr__(self, name, tuple(patterns))
            patterns = (patterns,) if isinstance(patterns, str) else patterns
            if patterns is not None and not all(isinstance(p, str) and p for p in patterns):
                raise ValueError(f"`{name}` must be a pattern or a list of patterns. Received: {name}={patterns!r}")
        self.check()

    def check(self) -> None:
        """Raises a ValueError if a setting is out of range."""

    def default_targets(self, names: list[str]) -> list[str]:
        """The layers it goes to if nothing is said."""
        raise NotImplementedError

    def make(self, layer, name: str, gate, adapter: str) -> Delta:
        """The delta of one layer, not created yet."""
        raise NotImplementedError

    def find(self, model: keras.Model) -> dict[str, keras.layers.Layer]:
        """The layers of a model that this adapter goes to, by name.

        Raises:
            ValueError: there are none.
        """
        layers = named_layers(model, self.kinds)
        if self.targets is None:
            whole = self._trained_whole(model)
            names = [name for name in layers if name not in whole]
            names = self.default_targets(names) or select(["*"], names)
        else:
            names = select([self.targets] if isinstance(self.targets, str) else self.targets, layers)
        return {name: layers[name] for name in names}

    def build(self, model: keras.Model, gate, adapter: str) -> list["Part"]:
        """What it puts at the layers of a model, in which nothing is changed yet.

        Raises:
            ValueError: a target matches nothing, or a setting does not fit a layer.
        """
        found = self.find(model)
        parts = [Part(name, layer, self.make(layer, name, gate, adapter).create()) for name, layer in found.items()]
        return parts + self._whole(model, gate, adapter, parts)

    def _whole(self, model, gate, adapter, parts):
        """The layers that are trained whole."""
        taken = {part.name for part in parts}
        whole = []
        for name, layer in self._trained_whole(model).items():
            if name in taken:
                raise ValueError(f"A layer cannot be a target and be trained whole. Received: {name!r} as both")
            delta = Offset(gate, layer, f"whole_{adapter}", weight_names(layer))
            whole.append(Part(name, layer, delta.create()))
        return whole

    def _trained_whole(self, model) -> dict[str, keras.layers.Layer]:
        layers = named_layers(model, tuple(WEIGHT_NAMES))
        patterns = (self.also_train,) if isinstance(self.also_train, str) else self.also_train
        if patterns is None:
            patterns = [name for name in NEW_HEADS if name in layers and not getattr(model, "predicts_tokens", True)]
        return {name: layers[name] for name in select(patterns, layers)}

    def to_dict(self) -> dict[str, Any]:
        """For a file: the settings and the method's name."""
        return {"method": type(self).__name__, **dataclasses.asdict(self)}


def ends_with(names: list[str], *ends: str) -> list[str]:
    """The dotted names whose last part is one of these."""
    return [name for name in names if name.split(".")[-1] in ends]
