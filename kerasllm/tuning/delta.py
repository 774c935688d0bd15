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
        self.gate, self.site = gate, Site(host)

    def create(self) -> "Delta":
        """Makes the weights, under the host's path."""
        with contextlib.ExitStack() as stack:
            for part in (self.site.layer.path or self.site.layer.name).split("/"):
                stack.enter_context(keras.name_scope(part))
            self.build()
        return self

    def attach(self) -> None:
        """Puts it at its host."""
        for method in METHODS:
            if not hasattr(self.site.layer, method):
                continue
            if method not in vars(self.site.layer):
                setattr(self.site.layer, method, Hosted(self.site.layer, method))
            vars(self.site.layer)[method].deltas[self.name] = self
        self._own(True)

    def detach(self) -> None:
        """Takes it away again; a layer without deltas is as it was."""
        for method in METHODS:
            hosted = vars(self.site.layer).get(method)
            if hosted is None:
                continue
            del hosted.deltas[self.name]
            if not hosted.deltas:
                delattr(self.site.layer, method)
        self._own(False)

    def _own(self, attached: bool) -> None:
        """Makes it a part of its host, or no longer one; Keras lets nobody add to what is built."""
        tracker = self.site.layer._tracker
        tracker.unlock()
        if attached:
            setattr(self.site.layer, self.name, self)
        else:
            tracker.untrack(self)
            delattr(self.site.layer, self.name)
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

    def save_own_variables(self, store):
        """Its weights, without the gate: which adapters are active is no weight. Nothing while they are merged, when
        the base's weights have it all."""
        for i, variable in enumerate([] if self._is_merged() else self._saved()):
            store[str(i)] = variable

    def load_own_variables(self, store):
        if self._is_merged():
            raise ValueError("Adapters are merged into the base. Call unmerge() before loading weights.")
        variables = self._saved()
        if len(store.keys()) != len(variables):
            raise ValueError(
                f"The file has no weights for {self.name!r} at {self.site.layer.path!r}, or those of another adapter. "
                f"Received: {len(store.keys())} weights, where the adapter has {len(variables)}."
            )
        for i, variable in enumerate(variables):
            variable.assign(store[str(i)])

    def _saved(self):
        return [v for v in (*self._trainable_variables, *self._non_trainable_variables) if v is not self.gate]

    def _is_merged(self) -> bool:
        return self.site.state is not None and self.site.state.originals is not None

    def check_weight(self, weight: float) -> None:
        """Raises a ValueError if the adapter cannot count this much."""

    def gated(self, x):
        """`x` times the gate."""
        return x * ops.cast(self.gate, x.dtype)


class Site:
    """Where a delta is. An object of its own: Keras would take a layer for a part of the one that holds it, and walk in
    circles when it loads weights.

    Attributes:
        layer: the adapted layer.
        state: the adapters of the model, see `kerasllm.tuning.model_adapters.Adapters`.
    """

    def __init__(self, layer):
        self.layer, self.state = layer, None


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
