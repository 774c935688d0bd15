"""The weights of a quantized layer as floating point numbers, which losses, reports and exports read."""

import keras
from keras import ops

OWN_INPUTS = ("gptq", "awq")  # modes whose kernels lie (out, in)


def float_kernel(layer):
    """The kernel that a `Dense` layer multiplies by, (in, out), quantized or not."""
    mode = layer.quantization_mode
    kernel = layer.kernel
    if mode not in ("int8", "int4", *OWN_INPUTS):
        return kernel
    if mode in OWN_INPUTS:
        if not (layer.is_gptq_calibrated if mode == "gptq" else layer.is_awq_calibrated):
            return kernel
        kernel = ops.transpose(_ungrouped(kernel, layer.kernel_scale, layer.kernel_zero, layer.g_idx, axis=1))
        return kernel / ops.expand_dims(layer.awq_scales, -1) if mode == "awq" else kernel
    if getattr(layer, "kernel_zero", None) is not None:
        return _blockwise(kernel, layer.kernel_scale, layer.kernel_zero, axis=0)
    return _divided(kernel, layer.kernel_scale)


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
        table = keras.quantizers.unpack_int4(table, layer.output_dim, axis=0)
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
