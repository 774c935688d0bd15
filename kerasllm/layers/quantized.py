"""The weights of a quantized layer as floating point numbers, and products with them."""

import keras
from keras import ops

from kerasllm.layers.recompute import is_recomputed

OWN_INPUTS = ("gptq", "awq")  # modes whose kernels lie (out, in)
WEIGHT_ONLY = ("int8", "int4", *OWN_INPUTS)


def float_kernel(layer):
    """The kernel that a `Dense` layer multiplies by, (in, out), quantized or not."""
    return _kernel(layer, *_stored(layer)) if _has_codes(layer) else layer.kernel


def multiplies_in_float(layer) -> bool:
    """Whether a `Dense` layer keeps codes for its weights, and reads its inputs as they are."""
    return _has_codes(layer) and not getattr(layer, "inputs_quantizer", None)


def product(inputs, layer):
    """`inputs @ kernel` of a quantized `Dense` layer, (rows, in) → (rows, out).

    The kernel in floating point is made again for the gradient of the inputs, not kept until then. What Keras's own
    quantized layers compute, in fewer operations.
    """
    if is_recomputed():
        return ops.matmul(inputs, ops.cast(float_kernel(layer), inputs.dtype))

    @ops.custom_gradient
    def multiply(inputs, *stored):
        def gradient(*given, upstream=None):
            upstream = given[0] if upstream is None else upstream
            kernel = ops.cast(_kernel(layer, *stored), upstream.dtype)
            return (ops.matmul(upstream, ops.transpose(kernel)), *[None] * len(stored))

        return ops.matmul(inputs, ops.cast(_kernel(layer, *stored), inputs.dtype)), gradient

    return multiply(inputs, *(ops.convert_to_tensor(each) for each in _stored(layer)))


def _has_codes(layer) -> bool:
    mode = layer.quantization_mode
    calibrated = mode not in OWN_INPUTS or getattr(layer, f"is_{mode}_calibrated")
    return mode in WEIGHT_ONLY and calibrated


def _stored(layer) -> list:
    """The variables that `_kernel` takes."""
    mode = layer.quantization_mode
    if mode in OWN_INPUTS:
        scales = [layer.awq_scales] if mode == "awq" else []
        return [layer.quantized_kernel, layer.kernel_scale, layer.kernel_zero, layer.g_idx, *scales]
    zero = getattr(layer, "kernel_zero", None)
    return [layer._kernel, layer.kernel_scale, *([] if zero is None else [zero])]


def _kernel(layer, codes, scale, *others):
    """The kernel, (in, out), from the values of the variables in `_stored`."""
    mode, units = layer.quantization_mode, layer.units
    if mode in OWN_INPUTS:
        zero, groups, *scales = others
        bits = 4 if mode == "awq" else layer.dtype_policy.weight_bits
        codes = _unpacked(codes, units, axis=0) if bits == 4 else codes
        kernel = ops.transpose(_ungrouped(codes, scale, zero, groups, axis=1))
        return kernel / ops.expand_dims(scales[0], -1) if scales else kernel
    if mode == "int4":
        codes = _unpacked(codes, units, axis=1)
    return _blockwise(codes, scale, others[0], axis=0) if others else _divided(codes, scale)


def _unpacked(packed, length: int, axis: int):
    """The numbers of four bits, two of which lie in a byte, next to each other on `axis`; signed if the bytes are."""
    packed = ops.convert_to_tensor(packed)
    low, high = ops.right_shift(ops.left_shift(packed, 4), 4), ops.right_shift(packed, 4)
    shape = list(packed.shape)
    shape[axis] *= 2
    codes = ops.reshape(ops.stack([low, high], axis=axis + 1), shape)
    return codes if shape[axis] == length else ops.split(codes, [length], axis=axis)[0]


def float_embeddings(layer):
    """The table of a `ReversibleEmbedding`, (tokens, dim), quantized or not."""
    table = layer.embeddings
    if layer.quantization_mode not in ("int8", "int4"):
        return table
    if getattr(layer, "embeddings_zero", None) is not None:
        return _blockwise(table, layer.embeddings_scale, layer.embeddings_zero, axis=1)
    return _divided(table, ops.expand_dims(layer.embeddings_scale, -1))


def float_head(layer):
    """What a `ReversibleEmbedding` multiplies by in reverse, (dim, tokens), quantized or not."""
    if layer.tie_weights:
        return ops.transpose(float_embeddings(layer))
    table = layer.reverse_embeddings
    if layer.quantization_mode not in ("int8", "int4"):
        return table
    if layer.quantization_mode == "int4":
        table = _unpacked(table, layer.output_dim, axis=0)
    if getattr(layer, "reverse_embeddings_zero", None) is not None:
        return _blockwise(table, layer.reverse_embeddings_scale, layer.reverse_embeddings_zero, axis=0)
    return _divided(table, layer.reverse_embeddings_scale)


def _divided(codes, scale):
    """codes / scale, in the scale's dtype."""
    codes, scale = ops.convert_to_tensor(codes), ops.convert_to_tensor(scale)
    if keras.backend.backend() == "torch":
        return codes / scale  # PyTorch itself makes no float copy of all codes before.
    return ops.cast(codes, scale.dtype) / scale


def _blockwise(values, scale, zero, axis):
    """(values − zero) · scale, where each scale belongs to a block of neighbours on `axis`; all blocks of one size."""
    scale, zero = ops.expand_dims(scale, axis + 1), ops.expand_dims(zero, axis + 1)
    blocks = scale.shape[axis]
    if values.shape[axis] % blocks:
        raise ValueError(f"{blocks} blocks do not divide {values.shape[axis]} weights.")
    shape = (*values.shape[:axis], blocks, values.shape[axis] // blocks, *values.shape[axis + 1 :])
    floats = ops.cast(ops.reshape(values, shape), scale.dtype) - ops.cast(zero, scale.dtype)
    return ops.reshape(floats * scale, values.shape)


def _ungrouped(values, scale, zero, groups, axis):
    """(values − zero) · scale, each of the group that a place on `axis` belongs to."""
    groups = ops.cast(groups, "int32")
    scale, zero = (ops.take(ops.convert_to_tensor(part), groups, axis=axis) for part in (scale, zero))
    return (ops.cast(values, scale.dtype) - ops.cast(zero, scale.dtype)) * scale
