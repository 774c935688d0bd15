"""Telling one base model from another, so that no adapter is put on the wrong one."""

import hashlib

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
    digest = hashlib.sha256()
    for variable in model.weights:
        if variable.path.startswith(NOT_THE_BASE):
            continue
        if "int" in variable.dtype:
            return None
        size = int(np.prod(variable.shape))
        places = np.linspace(0, size - 1, min(size, SAMPLE)).astype("int64")
        values = np.asarray(keras.ops.convert_to_numpy(variable.value)).reshape(-1)[places]
        digest.update(str(tuple(variable.shape)).encode())
        digest.update(np.asarray(values).astype(ml_dtypes.bfloat16).tobytes())
    return digest.hexdigest()[:16]
