"""Weights of a layer that are trained as they are: kept as what is added to them, so that the base stays."""

import keras
from keras import ops

from kerasllm.tuning.delta import Delta, numpy

BIAS_NAMES = ("bias", "beta")
WEIGHT_NAMES = {
    keras.layers.Dense: ("kernel", "bias"),
    keras.layers.EinsumDense: ("kernel", "bias"),
    keras.layers.Embedding: ("embeddings",),
    keras.layers.LayerNormalization: ("gamma", "beta"),
    keras.layers.RMSNormalization: ("scale",),
}


def weight_names(layer) -> list[str]:
    """The attributes under which a layer has its weights."""
    names = next(names for kind, names in WEIGHT_NAMES.items() if isinstance(layer, kind))
    return [name for name in names if getattr(layer, name, None) is not None]


class Offset(Delta):
    """What is added to some of a layer's weights. The layer's output is linear in them, and so is what it adds.

    Args:
        gate, host, name: see `Delta`.
        attributes: which weights, such as "bias"; see `WEIGHT_NAMES`.
    """

    def __init__(self, gate, host, name, attributes):
        super().__init__(gate, host, name)
        self.attributes = tuple(attributes)

    def build(self):
        self._offsets = {
            name: self.add_weight(
                shape=getattr(self.site.layer, name).shape, initializer="zeros", name=f"{name}_offset"
            )
            for name in self.attributes
        }
        self.built = True

    def call(self, x, y, training=False):
        host = self.site.layer
        w = {name: self.gated(ops.cast(weight, y.dtype)) for name, weight in self._offsets.items()}
        if isinstance(host, keras.layers.RMSNormalization):
            return ops.rms_normalization(x, w["scale"], axis=host.axis, epsilon=host.epsilon)
        if isinstance(host, keras.layers.LayerNormalization):
            return self._normalized(host, x, w)
        added = w.get("bias")
        if "embeddings" in w:
            return ops.take(w["embeddings"], ops.cast(x, "int32"), axis=0)
        if "kernel" in w:
            product = _product(host, x, w["kernel"])
            added = product if added is None else product + added
        return added

    def _normalized(self, host, x, w):
        if "gamma" not in w:
            return w["beta"]
        return ops.layer_normalization(x, w["gamma"], w.get("beta"), axis=host.axis, epsilon=host.epsilon)

    def weight(self, name: str) -> keras.Variable:
        """The variable that is added to one of the host's weights."""
        return self._offsets[name]

    def offsets(self):
        return {name: numpy(weight) for name, weight in self._offsets.items()}


def _product(host, x, kernel):
    if isinstance(host, keras.layers.EinsumDense):
        return ops.einsum(host.equation, x, kernel)
    return ops.matmul(x, kernel)
