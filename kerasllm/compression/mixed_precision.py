"""Which layers bear 4 bits: mixed precision within a stated loss."""

import contextlib
import math
from collections.abc import Iterable, Iterator

import keras
import numpy as np
from keras import ops

from kerasllm.compression.evaluation import mean_loss
from kerasllm.compression.rounding import nearest
from kerasllm.compression.schemes import fitting_group_size, quantizable_layers


def search(model, batches, max_rise: float = 0.01, keep_table: bool = False) -> dict[str, str]:
    """The mode of each layer, for `quantize`: int4 for as many as the loss bears, the least sensitive first, else int8.

    A layer's sensitivity is what the loss rises by when it alone has 4 bits. The model is as it was afterwards.

    Args:
        model: with float weights.
        batches: of `evaluation_batches`.
        max_rise: of perplexity, as a share: 0.01 for one percent.
        keep_table: leaves out the token embedding.

    Raises:
        ValueError: `max_rise` is not positive.
    """
    if not max_rise > 0:
        raise ValueError(f"`max_rise` must be a positive share. Received: max_rise={max_rise!r}")
    layers = quantizable_layers(model)
    if keep_table:
        layers = {n: each for n, each in layers.items() if not isinstance(each, keras.layers.ReversibleEmbedding)}
    size, base = fitting_group_size(layers.values()), mean_loss(model, batches)

    def rise(names: Iterable[str]) -> float:
        with _rounded([layers[name] for name in names], size):
            return mean_loss(model, batches) - base

    names = sorted(layers, key=lambda name: rise([name]))
    # The loss rises with each further layer, all but for noise: halving finds the last that fits.
    fits, too_many = 0, len(names) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if rise(names[:middle]) <= math.log1p(max_rise) else (fits, middle)
    return {name: "int4" if i < fits else "int8" for i, name in enumerate(names)}


@contextlib.contextmanager
def _rounded(layers, group_size: int) -> Iterator[None]:
    """Inside of it, the weights of layers are what 4 bits would leave of them."""
    variables = [(v, axis) for layer in layers for v, axis in _matrices(layer)]
    originals = [np.array(ops.convert_to_numpy(v.value)) for v, _ in variables]
    try:
        for (variable, axis), value in zip(variables, originals):
            kernel = np.moveaxis(value.astype("float32"), axis, 0)
            variable.assign(np.moveaxis(nearest(kernel, 4, group_size).values(), 0, axis).astype(value.dtype))
        yield
    finally:
        for (variable, _), value in zip(variables, originals):
            variable.assign(value)


def _matrices(layer) -> list:
    """Each matrix of a layer, with the axis that groups lie on."""
    if not isinstance(layer, keras.layers.ReversibleEmbedding):
        return [(layer._kernel, 0)]
    return [(layer._embeddings, 1), *([] if layer.tie_weights else [(layer.reverse_embeddings, 0)])]
