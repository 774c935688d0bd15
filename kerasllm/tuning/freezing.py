"""Choosing which weights of a model are trained: by name, or the first or last blocks."""

import math
import re
from collections.abc import Container, Iterable
from typing import NamedTuple

import keras

from kerasllm.layers.stack import Stack
from kerasllm.tuning.model_adapters import forget_compiled, state_of
from kerasllm.tuning.targets import matches, near_names

BLOCKS = re.compile(r"(first|last) (\d+)")


class Trained(NamedTuple):
    """What of a model is trained. Printed, it is a table.

    Attributes:
        parameters: how many are trained.
        total: how many there are.
        layers: layer → (trained, all), by dotted name.
    """

    parameters: int
    total: int
    layers: dict[str, tuple[int, int]]

    def __str__(self):
        share = self.parameters / max(self.total, 1)
        lines = [f"{self.parameters:,} of {self.total:,} parameters are trained ({share:.1%})"]
        width = max(map(len, self.layers), default=0)
        for name, (count, total) in self.layers.items():
            state = "trained" if count == total else "frozen" if not count else f"{count:,} trained"
            lines.append(f"  {name:{width}}  {total:>12,}  {state}")
        return "\n".join(lines)


def freeze(model: keras.Model, *what: str) -> Trained:
    """Takes layers out of training. Compile the model after it, as always when what is trainable has changed.

    Args:
        model: a built Keras model; "first n" and "last n" are for ours.
        what: globs of dotted names of layers, of their ends or of what they are part of ("embedding",
            "*.attention.*", "block_0", "transformer.embedding*"), "re:" and a regular expression, or "first n" and
            "last n", so many blocks of each stack. A tied token embedding is the head, too.

    Returns:
        what is trained now.

    Raises:
        ValueError: nothing matches; the message lists near names. Or the model has adapters, which freeze it whole.

    Example:
    ```python
    print(model.freeze("embedding", "first 4"))
    ```
    """
    _check_plain(model)
    found = _select(model, what)
    ours = _frozen(model)
    for variable in found:
        if variable.trainable:
            variable.trainable = False
            ours[id(variable)] = variable
    forget_compiled(model)
    return trained(model)


def unfreeze(model: keras.Model, *what: str) -> Trained:
    """Trains again what `freeze` took out; all of it when nothing is named. Arguments and errors as of `freeze`.

    What was never trained, such as weights that a task has no use for, stays as it is.

    Example:
    ```python
    model.freeze("*")
    model.unfreeze("last 2", "final_norm")
    ```
    """
    _check_plain(model)
    ours = _frozen(model)
    for variable in _select(model, what or ("*",)):
        if ours.pop(id(variable), None) is not None:
            variable.trainable = True
    forget_compiled(model)
    return trained(model)


def trained(model: keras.Model) -> Trained:
    """How much of a model is trained, by block and by what is beside the blocks."""
    layers: dict[str, tuple[int, int]] = {}
    trainable = {id(v) for v in model.trainable_variables}
    for name, variables in _named_variables(model).items():
        key = re.sub(r"(block_\d+)\..*", r"\1", name)
        count, total = layers.get(key, (0, 0))
        for variable in variables:
            size = math.prod(variable.shape)
            count, total = count + size * (id(variable) in trainable), total + size
        layers[key] = (count, total)
    return Trained(sum(c for c, _ in layers.values()), sum(t for _, t in layers.values()), layers)


def blocks(model: keras.Model) -> list[list[keras.layers.Layer]]:
    """The blocks of each stack of one of our models, the first one first."""
    return [layer.blocks for layer in model._flatten_layers() if isinstance(layer, Stack)]


def depths(model: keras.Model) -> dict[int, int]:
    """How far each variable is from the top, by its id: 0 above the blocks, 1 in the last block, one more in each
    block below it, and most in the embeddings.

    Raises:
        ValueError: the model has no blocks.
    """
    stacks = _stacks(model)
    found = {id(v): 1 + max(map(len, stacks)) for v in model.transformer.embedding.variables}
    for stack in stacks:
        for depth, block in enumerate(reversed(stack), start=1):
            found |= {id(v): depth for v in block.variables}
    return found


def frozen_by_us(model: keras.Model, layer: keras.layers.Layer, except_for: Container[int] = ()) -> bool:
    """Whether something in a layer, but for variables of these ids, is out of training because of `freeze`."""
    return any(id(v) in _frozen(model) and id(v) not in except_for for v in layer.variables)


def kept_frozen(model: keras.Model) -> list[keras.Variable]:
    """The variables that `freeze` took out of training."""
    return list(_frozen(model).values())


def keep_frozen(model: keras.Model, variables: Iterable[keras.Variable]) -> None:
    """Notes that `freeze` took these variables out of training, as in the model that this one is a copy of."""
    _frozen(model).update({id(variable): variable for variable in variables})


def unfreeze_layers(model: keras.Model, layers: Iterable[keras.layers.Layer]) -> None:
    """`unfreeze` of all that is in these layers, in a model that may be in training."""
    for variable in (v for layer in layers for v in layer.variables):
        if _frozen(model).pop(id(variable), None) is not None:
            variable.trainable = True


def _select(model, what) -> list[keras.Variable]:
    if not what:
        raise ValueError('Say what to freeze, such as "embedding", "*.attention.*" or "first 4".')
    named, found = _named_variables(model), {}
    for pattern in what:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"Layers are named by text. Received: {pattern!r}")
        chosen = BLOCKS.fullmatch(pattern)
        if chosen:
            variables = _blocks_variables(model, pattern, *chosen.groups())
        else:
            names = [name for name in named if any(matches(pattern, part) for part in _beginnings(name))]
            if not names:
                raise ValueError(f"No layer matches {pattern!r}.{near_names(pattern, list(named))}")
            variables = [v for name in names for v in named[name]]
        found |= {id(v): v for v in variables}
    return list(found.values())


def _blocks_variables(model, pattern: str, which: str, count: str) -> list[keras.Variable]:
    stacks, count = _stacks(model), int(count)
    if not 1 <= count <= max(map(len, stacks)):
        raise ValueError(f"The model has {max(map(len, stacks))} blocks. Received: {pattern!r}")
    chosen = [stack[:count] if which == "first" else stack[-count:] for stack in stacks]
    return [v for stack in chosen for block in stack for v in block.variables]


def _stacks(model):
    found = blocks(model)
    if not found:
        raise ValueError(f"Only our models have blocks that can be counted. Received: {type(model).__name__}")
    return found


def _named_variables(model) -> dict[str, list[keras.Variable]]:
    """The weights of each layer that has some of its own, under its dotted name, without the model's.

    States of random generators and metrics are no weights.
    """
    found: dict[str, list[keras.Variable]] = {}
    for variable in model.weights:
        path = variable.path.removeprefix(f"{model.name}/")
        found.setdefault(path.rpartition("/")[0].replace("/", ".") or path, []).append(variable)
    return found


def _beginnings(name: str) -> list[str]:
    """A dotted name, and the names of all that the layer is part of."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _frozen(model) -> dict[int, keras.Variable]:
    if getattr(model, "_kept_frozen", None) is None:
        model._kept_frozen = _Kept()
    return model._kept_frozen.variables


class _Kept:
    """Holds variables without making them another part of the model."""

    def __init__(self):
        self.variables: dict[int, keras.Variable] = {}


def _check_plain(model) -> None:
    if not model.built:
        raise ValueError("The model is not built, so it has no weights to freeze yet. Call it on an input first.")
    if state_of(model) is not None:
        raise ValueError(
            f"The model has adapters ({', '.join(state_of(model).all)}), which freeze all of it. Freeze and unfreeze "
            "before adding adapters, or delete them."
        )
