"""Whether a model still has the weights that something was computed with."""

import weakref
import zlib

import keras
import numpy as np

SAMPLE = (
    2**22
)  # weights that a checksum looks at, which TensorFlow needs: all of a small model, every so many of others


class Weights:
    """Notices other weights, however they came: by training, loading, merging or an `assign` on a variable.

    JAX makes a new array of a variable that changes, and PyTorch counts its changes: looking at these takes
    microseconds. TensorFlow tells neither, so there a checksum is made, and only when asked for.

    What is switched without changing a weight is not noticed here: see `model.adapter_state`.

    Args:
        model: a model of ours.
    """

    def __init__(self, model):
        self.model = model
        self._marks, self._sum = self._marked(), None

    def changed(self, thorough: bool = False) -> bool:
        """Whether there are other weights than at the last call.

        Args:
            thorough: whether to make the checksum that TensorFlow needs; else this is `False` there.
        """
        if keras.backend.backend() == "tensorflow":
            before, self._sum = self._sum, self._checksum() if thorough else self._sum
            return thorough and before is not None and before != self._sum
        if self._is_as_marked():
            return False
        self._marks = self._marked()
        return True

    def _variables(self) -> list:
        switches = {id(variable) for variable in self.model.adapter_switches}
        return [variable for variable in self.model.transformer.variables if id(variable) not in switches]

    def _marked(self) -> list[tuple]:
        """(variable, its value, how often that was changed, where it lies) of each; values are not kept alive."""
        if keras.backend.backend() == "tensorflow":
            return []
        return [(variable, weakref.ref(variable._value), *_changes(variable._value)) for variable in self._variables()]

    def _is_as_marked(self) -> bool:
        for variable, value, *changes in self._marks:
            now = variable._value
            if value() is not now or changes != _changes(now):
                return False
        return True

    def _checksum(self) -> int:
        values = [variable.value for variable in self._variables()]
        step, total = -(-sum(int(np.prod(value.shape)) for value in values) // SAMPLE) or 1, 0
        for value in values:
            part = keras.ops.reshape(value, (-1,))[::step]
            total = zlib.crc32(np.ascontiguousarray(part).view("uint8"), total)
        return total


def _changes(value) -> list:
    """Of a PyTorch tensor, how often it was changed in place, and where it lies: `data` can be replaced."""
    return [value._version, value.data_ptr()] if keras.backend.backend() == "torch" else []
