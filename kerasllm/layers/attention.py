"""Multi-head attention: self or cross, multi-head, grouped or multi-query, rotary, windowed, cached."""

import keras
from keras import ops

from kerasllm.layers.attention_ops import causal_mask, explicit_attention, fused_attention
from kerasllm.layers.inner import inner
from kerasllm.layers.positions import rotate
from kerasllm.layers.projection import Projection


@keras.saving.register_keras_serializable("kerasllm")
class Attention(keras.layers.Layer):
    """Attention over one sequence (self) or from one to another (cross).

    Projections are plain 2-D `Dense` layers named `query`, `key`, `value` and `output_dense`, so that
    optimizers, LoRA and quantizers find ordinary kernels.

    Args:
        num_heads: query heads.
        head_dim: size of a head.
        num_kv_heads: key and value heads; `num_heads` when left out.
        use_bias: whether the projections have biases.
        dropout: rate on the attention weights while training.
        scale: what scores are multiplied by; 1 / √head_dim when left out.
        kernel_initializer: of query, key and value.
        output_initializer: of the output projection; `kernel_initializer` when left out.

    Call arguments:
        x: (batch, queries, dim).
        context: (batch, keys, dim), what is attended to; `x` when left out. Or the (key, value) that
            `project` made of it, so that a source is projected once for all steps of decoding.
        attention_mask: boolean, True where a query may look; broadcastable to (batch, heads, queries, keys).
        causal: without a mask, a query sees keys up to its own position; the fastest way to say so.
        bias: added to the scores, (1 or batch, heads, queries, keys); relative positions.
        rotary: (cos, sin) tables of the positions of `x`, or `None`.
        cache: `(key, value)` written so far, each (batch, keys, kv_heads, head_dim).
        update_cache: function (cache, (key, value) of `x`) → the (key, value) to attend to, which is also
            returned; this is how a cache is filled and used.
        return_weights: also return the weights, (batch, heads, queries, keys).

    Returns:
        output (batch, queries, dim); with `update_cache` `(output, (key, value))`; with `return_weights`
        `(output, weights)`.

    Example:
    ```python
    attention = Attention(num_heads=4, head_dim=16)
    y = attention(keras.random.normal((2, 10, 64)), causal=True)  # (2, 10, 64)
    ```

    Reference: Vaswani et al. (2017); Ainslie et al. (2023) for grouped queries.
    """

    def __init__(
        self,
        num_heads,
        head_dim,
        num_kv_heads=None,
        use_bias=True,
        dropout=0.0,
        scale=None,
        kernel_initializer="glorot_uniform",
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_kv_heads = num_kv_heads or num_heads
        self.use_bias = use_bias
        self.dropout = dropout
        self.scale = scale
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer or kernel_initializer)
        if num_heads % self.num_kv_heads:
            raise ValueError(
                "`num_heads` must be a multiple of `num_kv_heads`. "
                f"Received: num_heads={num_heads}, num_kv_heads={num_kv_heads}"
            )

        def dense(heads, name):
            return Projection(
                heads * head_dim,
                use_bias=use_bias,
                kernel_initializer=self.kernel_initializer.clone(),
                dtype=self.dtype_policy,
                name=name,
            )

        self.query = dense(num_heads, "query")
        self.key = dense(self.num_kv_heads, "key")
        self.value = dense(self.num_kv_heads, "value")
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, x_shape, context_shape=None):
        context_shape = context_shape or x_shape
        self.query.build(x_shape)
        self.key.build(context_shape)
        self.value.build(context_shape)
        self.output_dense = Projection(
            x_shape[-1],
            use_bias=self.use_bias,
            kernel_initializer=self.output_initializer,
            dtype=self.dtype_policy,
            name="output_dense",
        )
        self.output_dense.build((*x_shape[:-1], self.num_heads * self.head_dim))
        self.built = True

    def call(
        self,
        x,
        context=None,
        attention_mask=None,
        causal=False,
        bias=None,
        rotary=None,
        cache=None,
        update_cache=None,
        return_weights=False,
        training=None,
    ):
        query = self._split_heads(inner(self.query, x), self.num_heads)
        key, value = context if isinstance(context, tuple) else self.project(x if context is None else context)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if update_cache is not None:
            key, value = update_cache(cache, (key, value))

        weights = None
        dropping = bool(training) and self.dropout > 0
        if return_weights or dropping:
            if causal and attention_mask is None:
                attention_mask = causal_mask(ops.shape(query)[1], ops.shape(key)[1])
            output, weights = explicit_attention(
                query,
                key,
                value,
                attention_mask,
                bias,
                self.scale,
                dropout=(lambda w: inner(self.dropout_layer, w, training=True)) if dropping else None,
            )
        else:
            output = fused_attention(query, key, value, attention_mask, causal, bias, self.scale)
        batch, length = ops.shape(output)[:2]
        output = ops.reshape(output, (batch, length, self.num_heads * self.head_dim))
        output = inner(self.output_dense, output)
        if update_cache is not None:
            return output, (key, value)
        return (output, weights) if return_weights else output

    def project(self, context):
        """The (key, value) of a context (batch, keys, dim), each (batch, keys, kv_heads, head_dim)."""
        heads = self.num_kv_heads
        return tuple(self._split_heads(inner(layer, context), heads) for layer in (self.key, self.value))

    def _split_heads(self, x, heads):
        batch, length = ops.shape(x)[:2]
        return ops.reshape(x, (batch, length, heads, self.head_dim))

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "num_kv_heads": self.num_kv_heads,
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "scale": self.scale,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
