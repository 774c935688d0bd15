"""A model of fewer blocks, or of smaller ones, with the weights of a larger one."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from keras import ops

from kerasllm.config import TransformerConfig
from kerasllm.interop.presets import variables_by_path

STACKS = {"": "num_layers", "encoder/": "num_encoder_layers", "decoder/": "num_layers"}

Parts = Mapping[str, tuple[int, np.ndarray]]  # weight's path → (axis, what stays on it)


def stacks_of(model) -> dict[str, int]:
    """The beginning of the paths of each stack, and how many blocks it has."""
    names = ("encoder/", "decoder/") if model.config.num_encoder_layers else ("",)
    return {name: getattr(model.config, STACKS[name]) for name in names}


def rebuilt(model, blocks: Mapping[str, Sequence[int]] | None = None, parts: Parts | None = None, **changes):
    """A new model of the same task and tokenizer, with the weights of `model`.

    Args:
        model: without adapters, with float weights. It stays as it is.
        blocks: which blocks each stack keeps; all, of stacks that are left out.
        parts: of weights of `model`, what is kept.
        changes: of the config, beside the number of blocks.
    """
    blocks = {name: list((blocks or {}).get(name, range(count))) for name, count in stacks_of(model).items()}
    config = model.config.replace(**{STACKS[name]: len(kept) for name, kept in blocks.items()}, **changes)
    new = _empty(model, config)
    old = variables_by_path(model)
    for path, variable in variables_by_path(new).items():
        source = _source(path, blocks)
        value = ops.convert_to_numpy(old[source].value)
        if source in (parts or {}):
            axis, kept = parts[source]
            value = np.take(value, kept, axis=axis)
        variable.assign(value)
    return new


def _empty(model, config: TransformerConfig):
    values = {**model.get_config(), "config": config.to_dict(), "tokenizer": None}
    del values["structure"]  # of layers that the new model may not have
    new = type(model).from_config(values) if model.tokenizer is None else None
    return new or type(model).from_config({**values, "tokenizer": model.tokenizer.get_config()})


def _source(path: str, blocks: Mapping[str, list[int]]) -> str:
    """Where a weight of the new model was in the old one."""
    found = re.match(r"((?:encoder/|decoder/)?)block_(\d+)/", path)
    if not found:
        return path
    return f"{found[1]}block_{blocks[found[1]][int(found[2])]}/{path[found.end() :]}"
