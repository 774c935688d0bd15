"""Which layers of a model an adapter goes to."""

import difflib
import fnmatch
import re
from collections.abc import Iterable

import keras

from kerasllm.layers.embeddings import TokenEmbedding
from kerasllm.tuning.delta import Delta

LINEAR = (keras.layers.Dense, keras.layers.EinsumDense)
NORMS = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)


def named_layers(model: keras.Model, kinds: tuple[type, ...]) -> dict[str, keras.layers.Layer]:
    """The layers of these kinds under their dotted names, such as "block_0.attention.query".

    The name of the model, or of the transformer in one of ours, is left out. Position and segment tables are not
    among them: the network reads them in slices, without calling their layers.
    """
    layers = model._flatten_layers(include_self=False, recursive=True)
    ours = [layer for layer in layers if isinstance(layer, Delta)]
    hidden = {id(inside) for delta in ours for inside in delta._flatten_layers()}
    for layer in layers:
        if isinstance(layer, TokenEmbedding):
            hidden |= {id(getattr(layer, name, None)) for name in ("positions", "segments")}
    found = {}
    for layer in layers:
        if not isinstance(layer, kinds) or id(layer) in hidden or not layer.built:
            continue
        path = layer.path or layer.name
        for prefix in ("transformer", model.name):
            path = path.removeprefix(f"{prefix}/")
        found[path.replace("/", ".")] = layer
    return found


def matches(pattern: str, name: str) -> bool:
    """Whether a layer's dotted name, or an end of it, is what the pattern says.

    Args:
        pattern: a glob, such as "attention.*" or "*.query"; or "re:" and a regular expression.
        name: such as "block_0.attention.query", whose ends are "attention.query" and "query".
    """
    parts = name.split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts))]
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], end) for end in ends)
    return any(fnmatch.fnmatchcase(end, pattern) for end in ends)


def select(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that any of the patterns matches; one that is a whole name matches no other.

    Raises:
        ValueError: a pattern matches none; the message lists near names.
    """
    names, chosen = list(names), set()
    for pattern in patterns:
        found = {pattern} if pattern in names else {name for name in names if matches(pattern, name)}
        if not found:
            raise ValueError(f"No layer matches the target {pattern!r}.{near_names(pattern, names)}")
        chosen |= found
    return [name for name in names if name in chosen]


def value_for(setting, name: str, default=None):
    """A setting that is one value for all layers, or a dict of patterns to values: the whole name's, else the first."""
    if not isinstance(setting, dict) or name in setting:
        return setting[name] if isinstance(setting, dict) else setting
    return next((value for pattern, value in setting.items() if matches(pattern, name)), default)


def near_names(pattern: str, names: list[str]) -> str:
    """For the end of a message: names like the pattern, and the first of all."""
    if not names:
        return " The model has no layer that this adapter could go to; build it first, if it is not built."
    ends = list(dict.fromkeys(end for name in names for end in (name.split(".")[-1], ".".join(name.split(".")[-2:]))))
    near = difflib.get_close_matches(pattern.removeprefix("re:").strip("*."), ends, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{meant} Layers: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
