"""Adapters of a vector a layer: (IA)³, BitFit and the tuning of norms."""

import dataclasses
from typing import ClassVar

import keras
from keras import ops

from kerasllm.tuning.delta import Delta, numpy
from kerasllm.tuning.offset import BIAS_NAMES, Offset, weight_names
from kerasllm.tuning.settings import Settings, ends_with
from kerasllm.tuning.targets import LINEAR, NORMS, matches, select


@dataclasses.dataclass(frozen=True)
class IA3(Settings):
    """(IA)³: each target's output, or its input, is multiplied by a trained vector that begins with ones.

    Args:
        targets: see `Settings`; when left out, keys, values and the last projection of each feed-forward.
        also_train: see `Settings`.
        on_input: those targets whose input is multiplied instead; as `targets`. Each must match a target, but for the
            last projections that it is when left out.

    Example:
    ```python
    model.add_adapter("poems", IA3())
    ```

    Reference: Liu et al. (2022), "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
    Learning".
    """

    on_input: str | tuple[str, ...] = ("feed_forward.down",)

    kinds: ClassVar[tuple[type, ...]] = (keras.layers.Dense,)

    def check(self):
        if not isinstance(self.on_input, str):
            object.__setattr__(self, "on_input", tuple(self.on_input))

    def default_targets(self, names):
        return ends_with(names, "key", "value", "down")

    def find(self, model):
        found = super().find(model)
        if self.on_input != type(self).on_input:  # The default may be meant for layers that are no targets.
            select(self._patterns, found)
        return found

    @property
    def _patterns(self) -> tuple[str, ...]:
        return (self.on_input,) if isinstance(self.on_input, str) else self.on_input

    def make(self, layer, name, gate, adapter):
        return IA3Delta(gate, layer, f"ia3_{adapter}", any(matches(pattern, name) for pattern in self._patterns))


class IA3Delta(Delta):
    """The vector `factor`, (in,) or (out,)."""

    def __init__(self, gate, host, name, on_input):
        super().__init__(gate, host, name)
        self.on_input = on_input

    def build(self):
        host = self.site.layer
        width = host.input_spec.axes[-1] if self.on_input else host.units
        self.factor = self.add_weight(shape=(width,), initializer="ones", name="factor")
        self.built = True

    def before(self, x):
        return x + x * self._change(x.dtype) if self.on_input else x

    def call(self, x, y, training=False):
        return None if self.on_input else y * self._change(y.dtype)

    def _change(self, dtype):
        return self.gated(ops.cast(self.factor - 1.0, dtype))

    def offsets(self):
        host = self.site.layer
        change, kernel = numpy(self.factor) - 1, numpy(host.kernel)
        if self.on_input:
            return {"kernel": change[:, None] * kernel}
        found = {"kernel": kernel * change}
        return found if host.bias is None else {**found, "bias": numpy(host.bias) * change}


@dataclasses.dataclass(frozen=True)
class BitFit(Settings):
    """Trains the biases alone, those of norms included.

    Args:
        targets: see `Settings`; when left out, every layer that has a bias.
        also_train: see `Settings`.

    Example:
    ```python
    model.add_adapter("poems", BitFit())
    ```

    Reference: Ben Zaken et al. (2021), "BitFit".
    """

    kinds: ClassVar[tuple[type, ...]] = (*LINEAR, *NORMS)
    attributes: ClassVar[tuple[str, ...] | None] = BIAS_NAMES

    def default_targets(self, names):
        return names

    def find(self, model):
        found = {name: layer for name, layer in super().find(model).items() if self._trained(layer)}
        if not found:
            raise ValueError(
                f"{type(self).__name__} trains {' and '.join(self.attributes or ('norms',))}, and no target has any. "
                f"Received: targets={self.targets!r}"
            )
        return found

    def _trained(self, layer) -> list[str]:
        return [name for name in weight_names(layer) if self.attributes is None or name in self.attributes]

    def make(self, layer, name, gate, adapter):
        return Offset(gate, layer, f"offset_{adapter}", self._trained(layer))


@dataclasses.dataclass(frozen=True)
class LayerNormTuning(BitFit):
    """Trains the gains and biases of the norms alone.

    Args:
        targets: see `Settings`; when left out, every norm.
        also_train: see `Settings`.

    Example:
    ```python
    model.add_adapter("poems", LayerNormTuning())
    ```

    Reference: Zhao et al. (2023), "Tuning LayerNorm in Attention".
    """

    kinds: ClassVar[tuple[type, ...]] = NORMS
    attributes: ClassVar[tuple[str, ...] | None] = None
