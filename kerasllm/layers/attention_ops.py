"""The arithmetic of attention: one explicit form for every backend, and a fused form where the backend has one.

Shapes: query (batch, queries, heads, head_dim); key, value (batch, keys, kv_heads, head_dim);
mask: boolean, True where a query may look, broadcastable to (batch, heads, queries, keys);
bias: added to the scores, (1 or batch, heads, queries, keys).
"""

import math

import keras
from keras import ops

SMALLEST_BLOCK = 64  # queries


def causal_mask(queries: int, keys: int, window: int | None = None):
    """(1, 1, queries, keys): a query sees keys up to its own position, at most `window` of them."""
    rows = ops.expand_dims(ops.arange(queries), 1) + (keys - queries)
    columns = ops.expand_dims(ops.arange(keys), 0)
    mask = columns <= rows
    if window is not None:
        mask = ops.logical_and(mask, columns > rows - window)
    return mask[None, None]


def explicit_attention(query, key, value, mask=None, bias=None, scale=None, dropout=None):
    """Softmax attention written out. Returns (output, weights).

    Weights are (batch, heads, queries, keys) and sum to one over keys; the softmax is in float32.
    Grouped-query attention folds the group into the query axis, so keys and values are never repeated.
    """
    batch, queries, heads, head_dim = ops.shape(query)
    keys, kv_heads = ops.shape(key)[1:3]
    groups = heads // kv_heads
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale

    q = ops.transpose(query, (0, 2, 1, 3))
    k = ops.transpose(key, (0, 2, 3, 1))
    v = ops.transpose(value, (0, 2, 1, 3))
    q = ops.reshape(q, (batch, kv_heads, groups * queries, head_dim))
    scores = ops.cast(ops.matmul(q, k), "float32") * scale
    scores = ops.reshape(scores, (batch, heads, queries, keys))
    if bias is not None:
        scores = scores + ops.cast(bias, "float32")
    if mask is not None:
        scores = ops.where(mask, scores, -1e30)
    weights = ops.cast(ops.softmax(scores, axis=-1), query.dtype)
    used = weights if dropout is None else dropout(weights)
    used = ops.reshape(used, (batch, kv_heads, groups * queries, keys))
    output = ops.reshape(ops.matmul(used, v), (batch, heads, queries, head_dim))
    return ops.transpose(output, (0, 2, 1, 3)), weights


def fused_attention(query, key, value, mask=None, causal=False, bias=None, scale=None):
    """The same output without keeping the weights, through the backend's own kernel where there is one.

    `causal` may be used only without `mask` and for as many queries as keys: it is what lets the flash
    kernels run.
    """
    return _FUSED[keras.backend.backend()](query, key, value, mask, causal, bias, scale)


def _torch_attention(query, key, value, mask, causal, bias, scale):
    import torch.nn.functional as F

    # Straight to SDPA: keras.ops copies q, k and v, and turns a boolean mask into a float one.
    grouped = query.shape[2] != key.shape[2]
    if bias is not None:
        # SDPA has one argument for both, and takes no `is_causal` beside it.
        if causal:
            mask, causal = causal_mask(query.shape[1], key.shape[1]), False
        bias = bias.to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, -1e30 if bias.dtype.itemsize > 2 else -1e4)
    output = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=grouped,
    )
    return output.transpose(1, 2)


def _jax_attention(query, key, value, mask, causal, bias, scale):
    import jax

    half = query.dtype in ("bfloat16", "float16")
    if mask is None and bias is None and half and jax.default_backend() == "gpu":
        return jax.nn.dot_product_attention(query, key, value, is_causal=causal, scale=scale, implementation="cudnn")
    return _explicit_output(query, key, value, mask, causal, bias, scale)


def _explicit_output(query, key, value, mask, causal, bias, scale):
    if query.shape[1] == 1 and not causal and query.shape[2] == key.shape[2]:
        return _one_query(query, key, value, mask, bias, scale)
    if not causal:
        return explicit_attention(query, key, value, mask, bias, scale)[0]
    # A block of queries looks at no key beyond its own end; with four blocks, 3/8 of the work falls away.
    length = ops.shape(query)[1]
    if not isinstance(length, int):
        return explicit_attention(query, key, value, causal_mask(length, length), bias, scale)[0]
    size = max(SMALLEST_BLOCK, math.ceil(length / 4))
    outputs = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        block = query[:, start:stop], key[:, :stop], value[:, :stop]
        part = None if bias is None else bias[:, :, start:stop, :stop]
        outputs.append(explicit_attention(*block, causal_mask(stop - start, stop), part, scale)[0])
    return outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=1)


def _one_query(query, key, value, mask, bias, scale):
    """One query a row, a head a key: as products with vectors, for which XLA transposes no keys."""
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (key, value))
    scores = ops.cast(ops.einsum("bhd,bhkd->bhk", query[:, 0], k), "float32") * scale
    if bias is not None:
        scores = scores + ops.cast(bias[:, :, 0], "float32")
    if mask is not None:
        scores = ops.where(mask[:, :, 0], scores, -1e30)
    weights = ops.cast(ops.softmax(scores, axis=-1), query.dtype)
    return ops.einsum("bhk,bhkd->bhd", weights, v)[:, None]


_FUSED = {"torch": _torch_attention, "jax": _jax_attention, "tensorflow": _explicit_output}
