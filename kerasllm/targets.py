"""Which targets count, and how much: the same in every loss and metric, on every backend."""

import functools

import keras
from keras import ops

IGNORED = -100  # The label that PyTorch and transformers leave out.


def counted_targets(x, y, sample_weight=None):
    """Targets without `IGNORED`, and what each of them counts, of the same shape.

    A label of -100 counts 0. A weight for each row is one for each of its tokens. Where there are no weights, padding
    counts 0, as far as the inputs tell it.

    Args:
        x: the inputs, a dict or an array.
        y: integer targets, (batch, length) or (batch,); or a dict of such.
        sample_weight: weights, as Keras allows them, or a dict of such.

    Returns:
        (targets, float32 weights); dicts where `y` is one.
    """
    if isinstance(y, dict):
        pairs = {name: counted_targets(x, y[name], (sample_weight or {}).get(name)) for name in y}
        return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}
    y = ops.convert_to_tensor(y)
    counts = y != IGNORED
    weights = ops.cast(counts, "float32")
    if sample_weight is None:
        real = _real(x, y)
        weights = weights if real is None else weights * ops.cast(real, "float32")
    else:
        sample_weight = ops.cast(sample_weight, "float32")
        if len(sample_weight.shape) == 1 < len(y.shape):
            sample_weight = ops.expand_dims(sample_weight, 1)
        weights = weights * sample_weight
    return y * ops.cast(counts, y.dtype), weights


def tells_padding(x, y) -> bool:
    """Whether the inputs say which targets are padding."""
    return not isinstance(y, dict) and _real(x, y) is not None


def _real(x, y):
    """Where the inputs say that there is a token, if they say so of each target."""
    if not isinstance(x, dict) or len(y.shape) != 2:
        return None
    for key in ("decoder_padding_mask", "padding_mask"):
        if x.get(key) is not None:
            return x[key]
    return x["document_ids"] > 0 if x.get("document_ids") is not None else None


def marked(y_pred, weights):
    """The same predictions with Keras's mask: its losses and metrics leave out what weighs nothing, also in the mean.

    A weight of 0 alone would not do: Keras divides by all targets.
    """
    if isinstance(y_pred, dict):
        return {name: marked(y_pred[name], weights[name]) for name in y_pred}
    return _mask_layer()({"y_pred": y_pred, "counts": weights != 0})


@functools.cache
def _mask_layer():
    return _Mask()


class _Mask(keras.layers.Layer):
    """Gives a tensor a mask by Keras's own way, which works on tensors that take no attributes, too."""

    def __init__(self):
        super().__init__(name="mask", dtype="float32", autocast=False)
        self.supports_masking = self.built = True

    def call(self, inputs):
        return inputs["y_pred"]

    def compute_mask(self, inputs, previous_mask):
        return inputs["counts"]
