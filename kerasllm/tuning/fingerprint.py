"""Telling one base model from another, so that no adapter is put on the wrong one."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import keras
import ml_dtypes
import numpy as np

SAMPLE = 64  # values of each weight
# A new head, which begins at random and is in the adapter's files whole; what `anchor` keeps beside the model.
NOT_THE_BASE = ("classifier/", "anchor/")


def fingerprint(model: keras.Model) -> str | None:
    """A short hash of a model's weights: their shapes, and values taken evenly from each.

    The same for a base in float32 and in bfloat16. `None` for a quantized base, whose values are others.
    """
    return _hash(model.weights, lambda variable: np.asarray(keras.ops.convert_to_numpy(variable.value)))


def directory_of_base(model: keras.Model) -> str | None:
    """The whole path of the directory that a model with adapters was read from, or saved to; `None` if there is none,
    or if the base's weights are no longer those of its files, by their fingerprint.
    """
    from kerasllm.interop.presets import stored_weights

    state, directory = model._adapters, getattr(model, "_preset", None)
    if directory is None or state.fingerprint is None:
        return None
    added = {id(variable) for adapter in state.all.values() for variable in (*adapter.variables, adapter.gate)}
    try:
        stored = stored_weights(model, Path(directory))
        found = _hash([v for v in model.weights if id(v) not in added], lambda variable: stored[variable.path])
    except (OSError, KeyError, ValueError):  # It is gone, or holds another model by now.
        return None
    return os.path.abspath(directory) if found == state.fingerprint else None


def _hash(variables, read: Callable[[keras.Variable], np.ndarray]) -> str | None:
    digest = hashlib.sha256()
    for variable in variables:
        if variable.path.startswith(NOT_THE_BASE):
            continue
        if "int" in variable.dtype:
            return None
        shape = tuple(variable.shape)
        size = int(np.prod(shape))
        places = np.linspace(0, size - 1, min(size, SAMPLE)).astype("int64")
        values = read(variable).flat[places]  # of a file's map, these alone are read
        digest.update(str(shape).encode())
        digest.update(np.asarray(values).astype(ml_dtypes.bfloat16).tobytes())
    return digest.hexdigest()[:16]
