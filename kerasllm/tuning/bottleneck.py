"""Bottleneck adapters: a small network on a residual branch behind a layer."""

import dataclasses
import math
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kerasllm.layers.feed_forward import ACTIVATIONS
from kerasllm.tuning.delta import Delta
from kerasllm.tuning.lora import linear
from kerasllm.tuning.settings import Settings, ends_with

PLACES = {"houlsby": ("output_dense", "down"), "pfeiffer": ("down",)}


@dataclasses.dataclass(frozen=True)
class Bottleneck(Settings):
    """`y + up(activation(down(y)))` on a layer's output y, with two small projections that begin as nothing.

    Args:
        targets: see `Settings`; when left out, what `place` says.
        also_train: see `Settings`.
        place: "houlsby" (behind the attention and behind the feed-forward of each block) or "pfeiffer" (behind the
            feed-forward alone).
        dim: width inside.
        activation: "relu", "gelu", "gelu_tanh" or "silu".
        seed: of the random beginning.

    Example:
    ```python
    model.add_adapter("poems", Bottleneck(dim=32, place="pfeiffer"))
    ```

    References: Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP"; Pfeiffer et al. (2020),
    "AdapterFusion".
    """

    place: str = "houlsby"
    dim: int = 16
    activation: str = "relu"
    seed: int = 0

    kinds: ClassVar[tuple[type, ...]] = (keras.layers.Dense,)

    def check(self):
        for name, choices in (("place", tuple(PLACES)), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={getattr(self, name)!r}")
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 1:
            raise ValueError(f"`dim` must be a whole number of at least 1. Received: dim={self.dim!r}")

    def default_targets(self, names):
        return ends_with(names, *PLACES[self.place])

    def make(self, layer, name, gate, adapter):
        return BottleneckDelta(gate, layer, f"bottleneck_{adapter}", name, self)


class BottleneckDelta(Delta):
    """The projections `down` (width, dim) and `up` (dim, width), with biases."""

    mergeable = False

    def __init__(self, gate, host, name, layer_name, settings: Bottleneck):
        super().__init__(gate, host, name)
        self._settings, self._width = settings, host.units
        self._layer_seed = [settings.seed, *layer_name.encode()]

    def build(self):
        dim, bound = self._settings.dim, 1 / math.sqrt(self._width)
        start = np.random.default_rng(self._layer_seed).uniform(-bound, bound, (self._width, dim)).astype("float32")
        self.down = self.add_weight(shape=start.shape, initializer=keras.initializers.Constant(start), name="down")
        self.down_bias = self.add_weight(shape=(dim,), initializer="zeros", name="down_bias")
        self.up = self.add_weight(shape=(dim, self._width), initializer="zeros", name="up")
        self.up_bias = self.add_weight(shape=(self._width,), initializer="zeros", name="up_bias")
        self.built = True

    def call(self, x, y, training=False):
        down, down_bias, up, up_bias = (
            ops.cast(w, y.dtype) for w in (self.down, self.down_bias, self.up, self.up_bias)
        )
        inside = ACTIVATIONS[self._settings.activation](linear(y, down) + down_bias)
        return self.gated(linear(inside, up) + up_bias)
