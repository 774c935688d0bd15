"""Our layers as ONNX nodes: the Transformer of `kerasllm.layers`, once more, for all its configs.

Written from config and weights instead of traced, the graphs are the same from every backend, for any batch and length,
and have the cache in the form that their users want. Shapes: hidden states (batch, length, dim); queries, keys and
values (batch, kv_heads, group, length, head_dim), where a group is the query heads that share a key's, 1 for keys.
"""

import math
from typing import NamedTuple

import numpy as np
from keras import ops

from kerasllm.layers.positions import relative_bucket, sinusoidal_table
from kerasllm.layers.quantized import float_embeddings, float_head, float_kernel
from kerasllm.serving.onnx_graph import Graph
from kerasllm.serving.onnx_packed import gather_packed, multiply_packed

HIDDEN = -1e30  # the score of what is not seen


class Seen(NamedTuple):
    """What queries see.

    Attributes:
        mask: bool, broadcastable to (batch, 1, 1, queries, keys).
        distances: int64 (queries, keys), key less query, for relative positions.
    """

    mask: str
    distances: str


def array(x) -> np.ndarray:
    """A variable or tensor as a float32 array."""
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")))


def linear(g: Graph, layer, x: str) -> str:
    y = multiply_packed(g, x, layer) if g.packed else None
    y = y or g("MatMul", x, array(float_kernel(layer)))
    return y if layer.bias is None else g("Add", y, array(layer.bias))


def norm(g: Graph, layer, x: str) -> str:
    if hasattr(layer, "gamma"):
        scale, shift = array(layer.gamma), None if layer.beta is None else array(layer.beta)
        return g("LayerNormalization", x, scale, shift, axis=-1, epsilon=layer.epsilon)
    size = g("Sqrt", g("Add", g("ReduceMean", g("Mul", x, x), [-1]), float(layer.epsilon)))
    return g("Mul", g("Div", x, size), array(layer.scale))


def activate(g: Graph, name: str, x: str) -> str:
    if name == "relu":
        return g("Relu", x)
    if name == "silu":
        return g("Mul", x, g("Sigmoid", x))
    if name == "gelu":
        return g("Mul", g("Mul", x, 0.5), g("Add", g("Erf", g("Mul", x, math.sqrt(0.5))), 1.0))
    cubed = g("Mul", g("Mul", x, x), x)
    inside = g("Mul", g("Add", x, g("Mul", cubed, 0.044715)), math.sqrt(2 / math.pi))
    return g("Mul", g("Mul", x, 0.5), g("Add", g("Tanh", inside), 1.0))


def embed(g: Graph, layer, ids: str, positions: str, segments: str | None = None) -> str:
    """A `TokenEmbedding`; `positions` is (1 or batch, length)."""
    c = layer.config
    x = gather_packed(g, layer.tokens, ids) if g.packed else None
    x = x or g("Gather", array(float_embeddings(layer.tokens)), ids)
    if c.scale_embeddings:
        x = g("Mul", x, math.sqrt(c.hidden_dim))
    if c.positions == "learned":
        x = g("Add", x, g("Gather", array(layer.positions.embeddings), positions))
    elif c.positions == "sinusoidal":
        x = g("Add", x, g("Gather", sinusoidal_table(c.max_sequence_length, c.hidden_dim), positions))
    if c.num_segments:
        x = g("Add", x, g("Gather", array(layer.segments.embeddings), 0 if segments is None else segments))
    return norm(g, layer.norm, x) if c.embedding_norm else x


def head(g: Graph, layer, hidden: str) -> str:
    """The logits of a `TokenEmbedding`."""
    c = layer.config
    if c.scale_logits:
        hidden = g("Mul", hidden, 1 / math.sqrt(c.hidden_dim))
    if g.packed and (logits := multiply_packed(g, hidden, layer.tokens)):
        return logits
    if c.tie_embeddings:  # the same weights as those that are gathered from
        return g("MatMul", hidden, g("Transpose", array(float_embeddings(layer.tokens)), perm=[1, 0]))
    return g("MatMul", hidden, array(float_head(layer.tokens)))


def stack(g: Graph, layer, x: str, seen: Seen, positions: str, past=None, sources=None, source_mask=None):
    """A `Stack`.

    Args:
        past: a (key, value) a block of what was read before, each (batch, kv_heads, places, head_dim).
        sources: what cross-attention attends to: a (key, value) a block in the same shape.
        source_mask: bool, broadcastable to (batch, 1, 1, queries, keys).

    Returns:
        hidden states, and a (key, value) a block, of what was read before and now.
    """
    rotary, bias = _rotary(g, layer, positions), _bias(g, layer, seen)
    present = []
    for i, block in enumerate(layer.blocks):

        def branch(its_norm, x, function, pre=layer.config.norm_position == "pre"):
            y = g("Add", x, function(norm(g, its_norm, x) if pre else x))
            return y if pre else norm(g, its_norm, y)

        def attend_self(x, i=i, block=block):
            pair = project(g, block.attention, x, rotary)
            if past is not None:
                pair = tuple(g("Concat", old, new, axis=2) for old, new in zip(past[i], pair))
            present.append(pair)
            return attend(g, block.attention, x, pair, seen.mask, rotary, bias)

        def think(x, layer=block.feed_forward):
            up = linear(g, layer.up, x)
            gate = linear(g, layer.gate, x) if layer.gated else up
            hidden = activate(g, layer.activation, gate)
            return linear(g, layer.down, g("Mul", hidden, up) if layer.gated else hidden)

        x = branch(block.attention_norm, x, attend_self)
        if layer.cross_attention:
            attention, pair = block.source_attention, sources[i]
            x = branch(block.source_norm, x, lambda x, a=attention, p=pair: attend(g, a, x, p, source_mask))
        x = branch(block.feed_forward_norm, x, think)
    return norm(g, layer.final_norm, x) if layer.config.norm_position == "pre" else x, present


def project(g: Graph, layer, x: str, rotary=None) -> tuple[str, str]:
    """The (key, value) that an `Attention` makes of what is attended to, each (batch, kv_heads, length, head_dim)."""
    key, value = (
        _heads(g, linear(g, part, x), layer.num_kv_heads, 1, layer.head_dim) for part in (layer.key, layer.value)
    )
    return g("Squeeze", _rotated(g, key, rotary), [2]), g("Squeeze", value, [2])


def attend(g: Graph, layer, x: str, pair, mask: str, rotary=None, bias: str | None = None) -> str:
    """What an `Attention` gives for queries from `x`, keys and values."""
    groups = layer.num_heads // layer.num_kv_heads
    query = _rotated(g, _heads(g, linear(g, layer.query, x), layer.num_kv_heads, groups, layer.head_dim), rotary)
    key, value = (g("Unsqueeze", part, [2]) for part in pair)
    scale = 1 / math.sqrt(layer.head_dim) if layer.scale is None else layer.scale
    scores = g("MatMul", g("Mul", query, float(scale)), g("Transpose", key, perm=[0, 1, 2, 4, 3]))
    if bias is not None:
        scores = g("Add", scores, bias)
    weights = g("Softmax", g("Where", mask, scores, HIDDEN), axis=-1)
    attended = g("Transpose", g("MatMul", weights, value), perm=[0, 3, 1, 2, 4])
    return linear(g, layer.output_dense, g("Reshape", attended, [0, 0, layer.num_heads * layer.head_dim]))


def _heads(g, x, kv_heads, groups, head_dim):
    return g("Transpose", g("Reshape", x, [0, 0, kv_heads, groups, head_dim]), perm=[0, 2, 3, 1, 4])


def _rotary(g, layer, positions):
    """(cos, sin) of the positions, each (1 or batch, 1, 1, length, head_dim / 2)."""
    if layer.config.positions != "rotary":
        return None
    return tuple(g("Unsqueeze", g("Gather", table, positions), [1, 2]) for table in layer._rotary)


def _rotated(g, x, rotary):
    if rotary is None:
        return x
    cos, sin = rotary
    first, second = g("Split", x, outputs=2, axis=-1, num_outputs=2)
    turned = g("Sub", g("Mul", first, cos), g("Mul", second, sin))
    return g("Concat", turned, g("Add", g("Mul", second, cos), g("Mul", first, sin)), axis=-1)


def _bias(g, layer, seen):
    """The bias on scores, (kv_heads, group, queries, keys), looked up by distance."""
    c = layer.config
    if c.positions != "relative":
        return None
    reach = c.max_sequence_length - 1
    distances = np.arange(-reach, reach + 1)
    buckets = relative_bucket(
        ops.convert_to_tensor(distances, "int32"), not layer.causal, c.relative_buckets, c.relative_max_distance
    )
    table = array(layer.relative_bias.embeddings)[ops.convert_to_numpy(buckets)]
    # Beyond the model's reach there is only padding, which nobody sees.
    places = g("Clip", g("Add", seen.distances, reach), 0, 2 * reach)
    bias = g("Gather", table.reshape(-1, c.num_kv_heads, c.num_heads // c.num_kv_heads), places)
    return g("Transpose", bias, perm=[2, 3, 0, 1])
