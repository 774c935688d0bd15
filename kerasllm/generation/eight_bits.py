"""Keys and values of eight bits: each head of each token has a scale of its own, which lies beside its numbers.

An array (…, head_dim) becomes int8 (…, head_dim + 2): whole numbers, and the scale as 2 ** exponent · mantissa. So it
is copied, cut and written like any other.
"""

from keras import ops

EXTRA = 2  # numbers a head beside its own
LARGEST = 127
SMALLEST = 1e-30  # zeros have a scale, too


def packed(x):
    """float (…, head_dim) → int8 (…, head_dim + EXTRA)."""
    x = ops.cast(x, "float32")
    wanted = ops.maximum(ops.max(ops.abs(x), axis=-1, keepdims=True), SMALLEST) / LARGEST
    exponent = ops.ceil(ops.log2(wanted / LARGEST))  # The mantissa is then from 64 to 127.
    mantissa = ops.clip(ops.ceil(wanted / _power(exponent)), 1, LARGEST)
    codes = ops.clip(ops.round(x / (_power(exponent) * mantissa)), -LARGEST, LARGEST)
    return ops.cast(ops.concatenate([codes, exponent, mantissa], axis=-1), "int8")


def unpacked(codes, dtype):
    """int8 (…, head_dim + EXTRA) → (…, head_dim) of a floating point dtype."""
    codes = ops.cast(codes, "float32")
    scale = _power(codes[..., -2:-1]) * codes[..., -1:]
    return ops.cast(codes[..., :-EXTRA] * scale, dtype)


def _power(exponent):
    return ops.power(ops.cast(2.0, "float32"), exponent)
