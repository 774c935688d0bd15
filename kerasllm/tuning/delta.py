"""What an adapter has at one layer, and how the layer is made to add it."""

import contextlib

import keras
import numpy as np
from keras import ops

METHODS = ("call", "quantized_call")


class Delta(keras.layers.Layer):
    """An adapter's weights at one layer, and what they add to the layer's output.

    Args:
        gate: the adapter's scalar variable, shared by all its deltas: 0 when it is not active, else its weight. It is
            read in the graph, so that switching adapters compiles nothing.
        host: the adapted layer.
    """

    mergeable = True

    def __init__(self, gate, host, name):
        # Weights are in float32, whatever the base is in: updates are small.
        policy = host.dtype_policy
        half = policy.compute_dtype if policy.compute_dtype in ("bfloat16", "float16") else None
        super().__init__(name=name, dtype=f"mixed_{half}" if half else "float32")
        self.gate, self._site = gate, _Site(host)

    @property
    def host(self):
        """The adapted layer."""
        return self._site.layer

    def create(self) -> "Delta":
        """Makes the weights, under the host's path."""
        with contextlib.ExitStack() as stack:
            for part in (self.host.path or self.host.name).split("/"):
                stack.enter_context(keras.name_scope(part))
            self.build()
        return self

    def attach(self) -> None:
        """Puts it at its host."""
        for method in METHODS:
            if not hasattr(self.host, method):
                continue
            if method not in vars(self.host):
                setattr(self.host, method, Hosted(self.host, method))
            vars(self.host)[method].deltas[self.name] = self
        self._own(True)

    def detach(self) -> None:
        """Takes it away again; a layer without deltas is as it was."""
        for method in METHODS:
            hosted = vars(self.host).get(method)
            if hosted is None:
                continue
            del hosted.deltas[self.name]
            if not hosted.deltas:
                delattr(self.host, method)
        self._own(False)

    def _own(self, attached: bool) -> None:
        """Makes it a part of its host, or no longer one; Keras lets nobody add to what is built."""
        tracker = self.host._tracker
        tracker.unlock()
        if attached:
            setattr(self.host, self.name, self)
        else:
            tracker.untrack(self)
            delattr(self.host, self.name)
        tracker.lock()

    def before(self, x):
        """The layer's input, changed."""
        return x

    def call(self, x, y, training=False):
        """What is added to the layer's output `y`, which it made of `x`; `None` for nothing."""
        return None

    def offsets(self) -> dict[str, np.ndarray]:
        """What merging adds to the host's weights, by attribute, at a gate of 1."""
        raise NotImplementedError

    def trainable_parameters(self) -> list[keras.Variable]:
        """Its weights that training changes."""
        return list(self._trainable_variables)

    def check_weight(self, weight: float) -> None:
        """Raises a ValueError if the adapter cannot count this much."""

    def gated(self, x):
        """`x` times the gate."""
        return x * ops.cast(self.gate, x.dtype)


class _Site:
    """Holds a layer without making it a part of the one that holds it."""

    def __init__(self, layer):
        self.layer = layer


class Hosted:
    """Stands in for a layer's `call`: the layer's own, and what the deltas at it add.

    It takes the place of the method on the one object, so that all who call the layer find it: Keras's `__call__`,
    and `kerasllm.layers.inner`.
    """

    def __init__(self, layer, method: str):
        self.layer, self.deltas = layer, {}
        self.base = getattr(type(layer), method).__get__(layer)

    def __call__(self, x, *arguments, **keywords):
        if keywords.get("reverse"):  # A tied embedding as the head.
            return self.base(x, *arguments, **keywords)
        for delta in self.deltas.values():
            x = delta.before(x)
        activation = getattr(self.layer, "activation", None)
        if activation in (None, keras.activations.linear):
            return self._added(x, self.base(x, *arguments, **keywords), keywords)
        self.layer.activation = None  # What is added comes before it.
        try:
            y = self.base(x, *arguments, **keywords)
        finally:
            self.layer.activation = activation
        return activation(self._added(x, y, keywords))

    def _added(self, x, y, keywords):
        parts = [delta.call(x, y, keywords.get("training")) for delta in self.deltas.values()]
        for part in parts:
            y = y if part is None else y + part
        return y


def is_training(given, delta: Delta) -> bool:
    """Whether this is a step of training; layers that others call inside are not told, but Keras knows."""
    if given is not None:
        return bool(given)
    training = delta._get_call_context().get_value("training")
    delta._maybe_reset_call_context()
    return bool(training)


def numpy(x) -> np.ndarray:
    """A variable or tensor as float32 on the host."""
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")))
