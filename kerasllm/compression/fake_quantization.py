"""`quantization_aware(model, ...)`: training that knows what quantizing will do to the weights."""

import contextlib
from collections.abc import Iterable, Sequence

import keras
from keras import ops

from kerasllm.compression.divergence import as_tensor
from kerasllm.compression.post_training import forget_compiled, planned
from kerasllm.compression.schemes import Scheme, quantizable_layers

MODES = ("int8", "int4")
CODES = {"int8": (-127, 127), "int4": (-8, 7)}


def quantization_aware(
    model,
    mode: str,
    *,
    keep: str | Sequence[str] = (),
    embeddings: bool = True,
    group_size: int | None = None,
    activations: bool = False,
) -> None:
    """From now on the model computes with its weights as `quantize` would round them; training changes the weights
    underneath, as if rounding were not there.

    Train it with `fit`, then call `model.quantize` with the same arguments: it computes what it did. A .keras file
    has all of it in between; `save_to_preset` refuses until then, for it would save the weights underneath.

    Args:
        model: one of ours, with float weights and without adapters.
        mode: "int8" or "int4".
        keep, embeddings, group_size, activations: as in `quantize`.

    Raises:
        ValueError: another mode, or what `quantize` raises; the model is then as it was.

    Example:
    ```python
    quantization_aware(model, "int4", group_size=32)
    model.compile(keras.optimizers.AdamW(1e-4))
    model.fit(texts)
    model.quantize("int4", group_size=32)
    ```

    Reference: Jacob et al. (2017), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference"; Bengio et al. (2013) for the straight-through estimator.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}. Received: mode={mode!r}")
    aware = next(iter(aware_layers(model).items()), None)
    if aware:
        raise ValueError(
            f"The model is trained for quantization already: {aware[0]!r} for {aware[1].scheme.policy}. Call "
            "quantization_unaware(model) first."
        )
    options = {"keep": keep, "embeddings": embeddings, "group_size": group_size, "activations": activations}
    layers, schemes = planned(model, mode, **options)
    make_aware(model, [(layers[name], scheme) for name, scheme in schemes.items()])


def make_aware(model, pairs: Iterable[tuple[keras.layers.Layer, Scheme]]) -> None:
    """Makes layers of a model compute with weights that are rounded, each by its scheme."""
    for layer, scheme in pairs:
        kind = AwareTable if isinstance(layer, keras.layers.ReversibleEmbedding) else AwareProjection
        cls = type(layer)
        # The object itself changes class, so that all who hold it find the rounded weights.
        layer.__class__ = type(cls.__name__, (kind, cls), {"__module__": cls.__module__})
        layer.scheme = scheme
    forget_compiled(model)


def quantization_unaware(model) -> None:
    """Makes the model compute with its weights as they are."""
    for layer in aware_layers(model).values():
        layer.__class__ = type(layer).__bases__[1]
        del layer.scheme
    forget_compiled(model)


def aware_layers(model) -> dict[str, keras.layers.Layer]:
    """The layers that compute with rounded weights, by name."""
    return {name: layer for name, layer in quantizable_layers(model).items() if isinstance(layer, Aware)}


def check_as_trained(model, schemes: dict[str, Scheme]) -> None:
    """Raises a ValueError unless a model is quantized as it was trained to be, if it was."""
    trained = {name: layer.scheme for name, layer in aware_layers(model).items()}
    if not trained or trained == schemes:
        return
    name = next(name for name in {**trained, **schemes} if trained.get(name) != schemes.get(name))
    was, asked = (found[name].policy if name in found else "float" for found in (trained, schemes))
    raise ValueError(
        f"The model was trained for another quantization: {name!r} for {was}, and is to be {asked}. Give `quantize` "
        "the same arguments as `quantization_aware`, or call quantization_unaware(model) first."
    )


class Aware:
    """Mixed into a layer whose weights are rounded as its `scheme` says."""

    scheme: Scheme

    def read(self, x):
        """What the layer reads, rounded too if the scheme says so."""
        if not self.scheme.activations:
            return x
        return straight_through(lambda x: _rounded(x, CODES["int8"], axis=-1), x)

    def save_own_variables(self, store):
        with _underneath(self):
            self.save_own_variables(store)

    def load_own_variables(self, store):
        with _underneath(self):
            self.load_own_variables(store)


class AwareProjection(Aware):
    """A `Dense` layer with a rounded kernel."""

    @property
    def kernel(self):
        return _as_quantized(super().kernel, self.scheme)

    def call(self, inputs, training=None):
        return super().call(self.read(inputs), training=training)


class AwareTable(Aware):
    """A `ReversibleEmbedding` with a rounded table and, if it is another, a rounded head."""

    @property
    def embeddings(self):
        return ops.transpose(_as_quantized(ops.transpose(super().embeddings), self.scheme))

    @property
    def reverse_embeddings(self):
        return _as_quantized(vars(self)["reverse_embeddings"], self.scheme)

    def call(self, inputs, reverse=False):
        return super().call(self.read(inputs) if reverse else inputs, reverse=reverse)


@contextlib.contextmanager
def _underneath(layer):
    """Inside a `with`, the layer has its weights as they are."""
    cls = type(layer)
    layer.__class__ = cls.__bases__[1]
    try:
        yield
    finally:
        layer.__class__ = cls


def straight_through(function, x):
    """`function(x)`, with the gradient of `x`."""

    @ops.custom_gradient
    def through(x):
        def gradient(*arguments, upstream=None):
            return arguments[0] if upstream is None else upstream

        return function(x), gradient

    return through(as_tensor(x))


def _as_quantized(kernel, scheme: Scheme):
    """A kernel (in, out) on the grid that Keras's quantized layers keep."""
    if scheme.group_size == -1:
        return straight_through(lambda x: _rounded(x, CODES[scheme.mode], axis=0), kernel)
    return straight_through(lambda x: _grouped(x, scheme.group_size), kernel)


def _rounded(x, codes: tuple[int, int], axis: int):
    values, scale = keras.quantizers.abs_max_quantize(x, axis=axis, value_range=codes, dtype="int8")
    return ops.cast(values, x.dtype) / scale


def _grouped(kernel, group_size: int):
    """As `keras.quantizers.abs_max_quantize_grouped_with_zero_point`, which TensorFlow's graphs do not take."""
    least, most = CODES["int4"]
    grouped = ops.reshape(kernel, (-1, group_size, kernel.shape[1]))
    low, high = ops.min(grouped, axis=1, keepdims=True), ops.max(grouped, axis=1, keepdims=True)
    low, high = ops.where(low == high, low - 1, low), ops.where(low == high, high + 1, high)
    scale = (high - low + keras.backend.epsilon()) / (most - least)
    zero = ops.clip(ops.round(-low / scale) + least, least, most)
    codes = ops.clip(ops.round(grouped / scale) + zero, least, most)
    return ops.reshape((codes - zero) * scale, kernel.shape)
