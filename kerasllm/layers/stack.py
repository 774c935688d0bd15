"""A stack of blocks: what turns vectors into vectors, told where each token stands and what it may see."""

import keras
from keras import ops

from kerasllm.config import TransformerConfig
from kerasllm.layers.attention_ops import causal_mask
from kerasllm.layers.block import TransformerBlock
from kerasllm.layers.inner import inner
from kerasllm.layers.norms import make_norm
from kerasllm.layers.positions import relative_bucket, rotary_tables
from kerasllm.layers.recompute import recompute


class Visibility:
    """Which tokens each token may see, in words; `attention_mask` is the same as an array.

    Args:
        padding_mask: (batch, length), True (or 1) on real tokens.
        document_ids: (batch, length), for rows packed from several documents: a token sees only its own; 0 marks
            padding.
        prefix_lengths: (batch,), how many tokens at a row's start every token sees, causal or not.
        attention_mask: boolean, broadcastable to (batch, heads, queries, keys); replaces all of the above.
    """

    def __init__(self, padding_mask=None, document_ids=None, prefix_lengths=None, attention_mask=None):
        self.padding_mask, self.document_ids = padding_mask, document_ids
        self.prefix_lengths, self.attention_mask = prefix_lengths, attention_mask

    def resolve(self, length, causal: bool, window: int | None):
        """(mask, causal): no mask at all where "causal" says it, which lets the fastest kernels run."""
        if self.attention_mask is not None:
            return self.attention_mask, False
        parts = []
        if self.padding_mask is not None:
            parts.append(ops.expand_dims(ops.cast(self.padding_mask, "bool"), (1, 2)))
        if self.document_ids is not None:
            parts.append(self.document_ids[:, None, :, None] == self.document_ids[:, None, None, :])
        if causal:
            if not parts and window is None and self.prefix_lengths is None:
                return None, True
            earlier = causal_mask(length, length, window)
            if self.prefix_lengths is not None:
                prefix = ops.arange(length)[None, None, None, :] < self.prefix_lengths[:, None, None, None]
                earlier = ops.logical_or(earlier, prefix)
            parts.append(earlier)
        if not parts:
            return None, False
        mask = parts[0]
        for part in parts[1:]:
            mask = ops.logical_and(mask, part)
        if self.padding_mask is not None:
            # A row of padding sees nothing; let it see itself, so that no softmax is over an empty set.
            places = ops.arange(length)
            mask = ops.logical_or(mask, (places[:, None] == places[None, :])[None, None])
        return mask, False


@keras.saving.register_keras_serializable("kerasllm")
class Stack(keras.layers.Layer):
    """The blocks of an encoder or a decoder, with the final norm of pre-norm models.

    Args:
        config: a `TransformerConfig`, or the dict of one.
        num_layers: blocks; `config.num_layers` when left out.
        causal: whether a token sees only what came before; `config.causal` when left out.
        cross_attention: whether the blocks attend to a source.

    Call arguments:
        x: (batch, length, hidden_dim).
        visibility: a `Visibility`; all tokens, or all earlier ones, when left out.
        positions: (batch, length) integer; 0, 1, 2 … when left out.
        source: what cross-attention attends to: (batch, keys, hidden_dim), or a (key, value) a layer from
            `project_source`.
        source_mask: (batch, keys), True on the source's real tokens.
        cache: list of a (key, value) pair a layer, with `update_cache` as in `Attention`.
        trace: also return what happened inside.
        start, stop: which blocks are run; all when left out. A `stop` leaves out the final norm, too.

    Returns:
        hidden states (batch, length, hidden_dim), after the final norm.
        With `update_cache`: `(hidden, cache)`.
        With `trace`: `(hidden, hidden_states, attentions)`, lists over layers; `hidden_states` begins with `x` and
        so has one more. With cross-attention `(hidden, hidden_states, attentions, cross_attentions)`.

    Attributes:
        recompute: whether training keeps the input of each block alone, and runs the block again for its gradients:
            much less memory for a third more work. Not for blocks with dropout, which would be another one.
    """

    recompute = False

    def __init__(self, config, num_layers=None, causal=None, cross_attention=False, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        c, policy = self.config, self.dtype_policy
        self.num_layers = c.num_layers if num_layers is None else num_layers
        self.causal = c.causal if causal is None else causal
        self.cross_attention = cross_attention
        self.blocks = [
            TransformerBlock(c, cross_attention, dtype=policy, name=f"block_{i}") for i in range(self.num_layers)
        ]
        if c.norm_position == "pre":
            self.final_norm = make_norm(c, policy, "final_norm")
        if c.positions == "rotary":
            self._rotary = rotary_tables(c.max_sequence_length, c.head_dim, c.rope_theta, c.rope_scaling)
        if c.positions == "relative":
            self.relative_bias = keras.layers.Embedding(
                c.relative_buckets,
                c.num_heads,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=c.initializer_range),
                dtype=policy,
                name="relative_bias",
            )

    def build(self, x_shape):
        for block in self.blocks:
            block.build(x_shape)
        if self.config.norm_position == "pre":
            self.final_norm.build(x_shape)
        if self.config.positions == "relative":
            self.relative_bias.build(x_shape[:2])
        self.built = True

    def call(
        self,
        x,
        visibility=None,
        positions=None,
        source=None,
        source_mask=None,
        cache=None,
        update_cache=None,
        trace=False,
        start=0,
        stop=None,
        training=None,
    ):
        length = ops.shape(x)[1]
        window = self.config.sliding_window if self.causal else None
        mask, causal = (visibility or Visibility()).resolve(length, self.causal, window)
        arguments = {
            "attention_mask": mask,
            "causal": causal,
            "rotary": self._rotary_of(positions, length),
            "bias": self._bias_of(positions, length, ops.shape(cache[0][0])[1] if cache else None),
            "training": training,
        }
        if source_mask is not None:
            arguments["source_mask"] = ops.expand_dims(ops.cast(source_mask, "bool"), (1, 2))

        hidden_states, attentions, cross_attentions, new_cache = [x], [], [], []
        for i, block in list(enumerate(self.blocks))[start:stop]:
            if self.cross_attention:
                arguments["source"] = source[i] if isinstance(source, list) else source
            if update_cache is not None:
                arguments |= {"cache": cache and cache[i], "update_cache": update_cache}
                x, pair = inner(block, x, **arguments)
                new_cache.append(pair)
            elif trace:
                x, weights, *cross = inner(block, x, return_weights=True, **arguments)
                hidden_states.append(x)
                attentions.append(weights)
                cross_attentions += cross
            elif training and self.recompute:
                x = recomputed(block, x, arguments)
            else:
                x = inner(block, x, **arguments)
        if self.config.norm_position == "pre" and stop is None:
            x = inner(self.final_norm, x)
        if update_cache is not None:
            return x, new_cache
        if not trace:
            return x
        return (x, hidden_states, attentions, *([cross_attentions] if self.cross_attention else []))

    def project_source(self, source):
        """What each block's cross-attention makes of a source: a list of (key, value) pairs."""
        return [block.source_attention.project(source) for block in self.blocks]

    def compute_output_shape(self, x_shape):
        return x_shape

    def _rotary_of(self, positions, length):
        if self.config.positions != "rotary":
            return None
        tables = (ops.convert_to_tensor(table) for table in self._rotary)
        if positions is None:
            return tuple(table[:length] for table in tables)
        return tuple(ops.take(table, positions, axis=0) for table in tables)

    def _bias_of(self, positions, length, keys):
        """The bias on attention scores, (1 or batch, heads, queries, keys), of tokens at `positions` (batch, length) or
        0, 1, 2 …; the keys are these tokens or, if their number is given, those of a cache, at 0, 1, 2 …"""
        if self.config.positions != "relative":
            return None
        queries = ops.arange(length)[None, :] if positions is None else positions
        return self.bias_between(queries, queries if keys is None else ops.arange(keys, dtype=queries.dtype)[None, :])

    def bias_between(self, queries, keys):
        """The bias of relative positions, (1 or batch, heads, queries, keys), from (1 or batch, places) of both."""
        c = self.config
        distance = keys[:, None, :] - queries[:, :, None]
        buckets = relative_bucket(distance, not self.causal, c.relative_buckets, c.relative_max_distance)
        return ops.transpose(inner(self.relative_bias, buckets), (0, 3, 1, 2))

    def get_config(self):
        return {
            **super().get_config(),
            "config": self.config.to_dict(),
            "num_layers": self.num_layers,
            "causal": self.causal,
            "cross_attention": self.cross_attention,
        }


def recomputed(block, x, arguments: dict):
    """What a block makes of `x`, of which nothing is kept for the gradients but what it is given."""
    # Given as arguments, since TensorFlow computes no gradients of what a function just refers to.
    given = {name: arguments[name] for name in ("source", "bias") if arguments.get(name) is not None}
    others = {name: value for name, value in arguments.items() if name not in given}

    def run(x, *values):
        return inner(block, x, **others, **dict(zip(given, values)))

    return recompute(block, run, x, *given.values())
