"""Weights that are not finite: what a model cannot compute with."""

import warnings

import keras
import numpy as np


def warn_if_not_finite(model) -> None:
    """Warns when weights are NaN or infinite; the message names them."""
    bad = [v.path for v in model.weights if "float" in v.dtype and not np.isfinite(_numpy(v)).all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        warnings.warn(
            f"The model that is saved has weights that are not finite (NaN or infinite): {', '.join(bad[:3])}{more}. "
            "It answers with nothing of use. Go back to a checkpoint or a model that was saved before.",
            stacklevel=3,
        )


def _numpy(variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable.value)
