"""Where a token stands: sinusoidal tables, rotary embeddings, relative buckets (learned ones are an Embedding)."""

import math

import numpy as np
from keras import ops


def sinusoidal_table(length: int, dim: int) -> np.ndarray:
    """Fixed position vectors, shape (length, dim): sines in the first half, cosines in the second.

    Reference: Vaswani et al. (2017), "Attention Is All You Need", section 3.5. The two halves are the paper's
    interleaved columns in another order, which the next layer cannot tell apart.
    """
    rates = 10000.0 ** (-np.arange((dim + 1) // 2) * 2.0 / dim)
    angles = np.arange(length)[:, None] * rates[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)[:, :dim].astype("float32")


def rotary_tables(
    length: int, head_dim: int, theta: float = 10000.0, scaling: dict | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of every position's rotation, each (length, head_dim / 2).

    Args:
        length: positions.
        head_dim: size of a head, even.
        theta: base of the frequencies.
        scaling: `TransformerConfig.rope_scaling`.

    Reference: Su et al. (2021), "RoFormer", in the rotate-half layout of Llama's published weights; Chen et al.
    (2023), "Extending Context Window of Large Language Models via Positional Interpolation", for "linear".
    """
    rates = rotary_rates(head_dim, theta, scaling)
    angles = np.arange(length)[:, None] * rates[None, :]
    return np.cos(angles).astype("float32"), np.sin(angles).astype("float32")


def rotary_rates(head_dim: int, theta: float, scaling: dict | None = None) -> np.ndarray:
    """Radians a position, of each pair of a head, (head_dim / 2,)."""
    return _scaled(theta ** (-np.arange(0, head_dim, 2, dtype="float64") / head_dim), scaling)


def _scaled(rates: np.ndarray, scaling: dict | None) -> np.ndarray:
    if scaling is None:
        return rates
    slow = rates / scaling["factor"]
    if scaling["type"] == "linear":
        return slow
    # Llama 3: fast rotations stay, slow ones are stretched, and those between are blended.
    turns = scaling["original_max_sequence_length"] * rates / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - blend) * slow + blend * rates


def relative_bucket(distance, bidirectional: bool, num_buckets: int, max_distance: int):
    """The bucket of a distance "key position − query position": exact for near keys, logarithmic for far ones.

    Args:
        distance: integer tensor of any shape.
        bidirectional: whether later keys have buckets of their own; else they share that of distance 0.
        num_buckets: buckets in all.
        max_distance: from here on all share the last bucket.

    Reference: Raffel et al. (2019), "Exploring the Limits of Transfer Learning", section 2.1.
    """
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = ops.cast(distance > 0, "int32") * num_buckets
        distance = ops.abs(distance)
    else:
        distance = ops.maximum(-distance, 0)
    exact = num_buckets // 2
    ratio = ops.cast(ops.maximum(distance, 1), "float32") / exact
    far = exact + ops.cast(ops.log(ratio) / math.log(max_distance / exact) * (num_buckets - exact), "int32")
    return offset + ops.where(distance < exact, ops.cast(distance, "int32"), ops.minimum(far, num_buckets - 1))


def rotate(x, cos, sin):
    """Rotates queries or keys by their positions.

    Args:
        x: (batch, length, heads, head_dim).
        cos, sin: (length, head_dim / 2) or (batch, length, head_dim / 2).
    """
    cos = ops.cast(ops.expand_dims(cos, -2), x.dtype)
    sin = ops.cast(ops.expand_dims(sin, -2), x.dtype)
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
