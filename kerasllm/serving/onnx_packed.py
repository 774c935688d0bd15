"""Quantized weights in an ONNX graph as the whole numbers that they are, which runtimes multiply by as they are."""

import math
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from kerasllm.serving.onnx_graph import MICROSOFT, Graph

BLOCK, LEAST = 128, 16  # inputs that share a scale: as many, a power of two


class Packed(NamedTuple):
    """A matrix of `(code - zero) * scale`.

    Attributes:
        codes: uint8 (out, in).
        scale: float32 (out, blocks).
        zero: uint8 (out, blocks).
        bits: 4 or 8.
        order: (in,), the inputs as `codes` has them, or `None` if as they come.
        input_scales: float32 (in,), which inputs are divided by first, or `None`.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    bits: int
    order: np.ndarray | None = None
    input_scales: np.ndarray | None = None

    def bytes(self, values: np.ndarray) -> np.ndarray:
        """(rows, columns) of codes as uint8; with 4 bits two in a byte, the first one low."""
        if self.bits == 8:
            return values
        values = np.pad(values, ((0, 0), (0, values.shape[1] % 2)))
        return values[:, 0::2] | (values[:, 1::2] << 4)


def multiply_packed(g: Graph, x: str, layer) -> str | None:
    """`x` times a `Dense` layer's kernel, or times what a `ReversibleEmbedding` has in reverse.

    Returns:
        the result, or `None` for a layer that is not quantized, or in groups that no runtime knows.
    """
    packed = _packed(layer, _is_table(layer) and not layer.tie_weights)
    if packed is None:
        return None
    if packed.input_scales is not None:
        x = g("Div", x, packed.input_scales)
    if packed.order is not None:
        x = g("Gather", x, packed.order, axis=-1)
    (units, inputs), blocks = packed.codes.shape, packed.scale.shape[1]
    parts = packed.bytes(packed.codes).reshape(units, blocks, -1), packed.scale, packed.bytes(packed.zero)
    # In ONNX Runtime inputs become whole numbers too, each block by its own scale; floats are many times slower.
    settings = {"K": inputs, "N": units, "bits": packed.bits, "block_size": inputs // blocks, "accuracy_level": 4}
    return g("MatMulNBits", x, *parts, domain=MICROSOFT, **settings)


def gather_packed(g: Graph, layer, ids: str) -> str | None:
    """Rows of a `ReversibleEmbedding`, (batch, length, dim); `None` as in `multiply_packed`."""
    packed = _packed(layer, False)
    if packed is None:
        return None
    units, blocks = packed.scale.shape
    codes = g("Cast", g("Gather", packed.bytes(packed.codes), ids), to=1)
    if packed.bits == 4:
        high = g("Floor", g("Div", codes, 16.0))
        halves = g("Sub", codes, g("Mul", high, 16.0)), high
        codes = g("Concat", *(g("Unsqueeze", half, [-1]) for half in halves), axis=-1)
    codes = g("Reshape", codes, [0, 0, blocks, packed.codes.shape[1] // blocks])
    zero, scale = (g("Gather", part.reshape(units, blocks, 1).astype("float32"), ids) for part in packed[2:0:-1])
    return g("Reshape", g("Mul", g("Sub", codes, zero), scale), [0, 0, packed.codes.shape[1]])


def _packed(layer, reverse: bool) -> Packed | None:
    mode = layer.quantization_mode
    if mode not in ("int8", "int4", "gptq", "awq"):
        return None
    name = "reverse_embeddings" if reverse else "embeddings" if _is_table(layer) else "kernel"
    codes, scale, zero = (getattr(layer, name + part, None) for part in ("", "_scale", "_zero"))
    if reverse and mode == "int4":
        codes = keras.quantizers.unpack_int4(codes, layer.output_dim, axis=0)
    codes, scale, zero = (None if part is None else ops.convert_to_numpy(part) for part in (codes, scale, zero))
    bits, groups, input_scales = 8 if mode == "int8" else 4, None, None
    if mode in ("gptq", "awq"):
        bits = getattr(layer.dtype_policy, "weight_bits", 4)
        bits, groups = 8 if bits == 8 else 4, ops.convert_to_numpy(layer.g_idx)
        input_scales = ops.convert_to_numpy(layer.awq_scales) if mode == "awq" else None
    else:
        middle = 2 ** (bits - 1)  # Keras's codes have a sign.
        if name != "embeddings":  # (in, out)
            codes, scale, zero = codes.T, scale.T, None if zero is None else zero.T
        if zero is None:
            scale, zero = 1 / scale[:, None], np.zeros((len(scale), 1))
        codes, zero = codes.astype("int16") + middle, zero.astype("int16") + middle
    return _in_blocks(codes.astype("uint8"), scale.astype("float32"), zero.astype("uint8"), bits, groups, input_scales)


def _in_blocks(codes, scale, zero, bits, groups, input_scales) -> Packed | None:
    """With groups that are wider than runtimes know, or out of order, in blocks as they want them."""
    inputs, order = codes.shape[1], None
    if groups is not None and (np.diff(groups) < 0).any():
        order = np.argsort(groups, kind="stable")
        codes = codes[:, order]
    block = math.gcd(BLOCK, inputs // scale.shape[1])
    if block < LEAST:
        return None
    times = inputs // block // scale.shape[1]
    return Packed(codes, scale.repeat(times, axis=1), zero.repeat(times, axis=1), bits, order, input_scales)


def _is_table(layer) -> bool:
    return isinstance(layer, keras.layers.ReversibleEmbedding)
