"""Where a token stands: sinusoidal tables and rotary embeddings (learned positions are a plain Embedding)."""

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


def rotary_tables(length: int, head_dim: int, theta: float = 10000.0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of every position's rotation, each (length, head_dim / 2).

    Reference: Su et al. (2021), "RoFormer", in the rotate-half layout of Llama's published weights.
    """
    rates = theta ** (-np.arange(0, head_dim, 2, dtype="float64") / head_dim)
    angles = np.arange(length)[:, None] * rates[None, :]
    return np.cos(angles).astype("float32"), np.sin(angles).astype("float32")


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
