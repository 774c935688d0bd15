"""One Transformer block: attention and feed-forward, each on a residual branch."""

import math

import keras

from kerasllm.config import TransformerConfig
from kerasllm.layers.attention import Attention
from kerasllm.layers.feed_forward import FeedForward
from kerasllm.layers.inner import inner
from kerasllm.layers.norms import make_norm


@keras.saving.register_keras_serializable("kerasllm")
class TransformerBlock(keras.layers.Layer):
    """Attention, perhaps to a source too, then feed-forward; pre-norm (x + f(norm(x))) or post-norm (norm(x + f(x))).

    Args:
        config: a `TransformerConfig`, or the dict of one.
        cross_attention: whether the block also attends to a source, between its other two branches.

    Call arguments:
        x: (batch, length, hidden_dim).
        attention_mask, causal, bias, rotary, cache, update_cache, return_weights: as in `Attention`.
        source: what the cross-attention attends to, (batch, keys, hidden_dim) or its (key, value).
        source_mask: boolean, True where the source is; broadcastable to (batch, heads, queries, keys).

    Returns:
        x (batch, length, hidden_dim), and what `Attention` returned beside its output, if anything: with
        `return_weights`, the weights of the cross-attention follow those of the self-attention.

    Example:
    ```python
    config = kerasllm.TransformerConfig.from_name("gpt2_tiny")
    TransformerBlock(config)(keras.random.normal((2, 10, 128)), causal=True)
    ```

    Reference: Vaswani et al. (2017) for post-norm; Radford et al. (2019) for pre-norm and the initial scale
    1/√(2 · layers) of what is added to the residual stream.
    """

    def __init__(self, config, cross_attention=False, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        self.cross_attention = cross_attention
        c, policy = self.config, self.dtype_policy
        initial = keras.initializers.RandomNormal(stddev=c.initializer_range)
        residual = keras.initializers.RandomNormal(stddev=c.initializer_range / math.sqrt(2 * c.num_layers))
        self.attention_norm = make_norm(c, policy, "attention_norm")

        def attention(name):
            return Attention(
                c.num_heads,
                c.head_dim,
                c.num_kv_heads,
                use_bias=c.use_bias,
                dropout=c.attention_dropout,
                scale=c.attention_scale,
                kernel_initializer=initial.clone(),
                output_initializer=residual.clone(),
                dtype=policy,
                name=name,
            )

        self.attention = attention("attention")
        if cross_attention:
            self.source_norm = make_norm(c, policy, "source_norm")
            self.source_attention = attention("source_attention")
        self.feed_forward_norm = make_norm(c, policy, "feed_forward_norm")
        self.feed_forward = FeedForward(
            c.intermediate_dim,
            c.activation,
            c.gated,
            c.use_bias,
            kernel_initializer=initial.clone(),
            output_initializer=residual.clone(),
            dtype=policy,
            name="feed_forward",
        )
        self.dropout = keras.layers.Dropout(c.dropout, dtype=policy, name="dropout")

    def build(self, x_shape):
        layers = [self.attention_norm, self.attention, self.feed_forward_norm, self.feed_forward]
        if self.cross_attention:
            layers += [self.source_norm, self.source_attention]
        for layer in layers:
            layer.build(x_shape)
        self.built = True

    def call(
        self,
        x,
        attention_mask=None,
        causal=False,
        bias=None,
        rotary=None,
        source=None,
        source_mask=None,
        cache=None,
        update_cache=None,
        return_weights=False,
        training=None,
    ):
        shared = {"return_weights": return_weights, "training": training}
        attended = inner(
            self.attention,
            self._before(self.attention_norm, x),
            attention_mask=attention_mask,
            causal=causal,
            bias=bias,
            rotary=rotary,
            cache=cache,
            update_cache=update_cache,
            **shared,
        )
        attended, *extras = attended if isinstance(attended, tuple) else (attended,)
        x = self._after(self.attention_norm, x, attended, training)
        if self.cross_attention:
            asking = self._before(self.source_norm, x)
            attended = inner(self.source_attention, asking, context=source, attention_mask=source_mask, **shared)
            attended, *more = attended if isinstance(attended, tuple) else (attended,)
            x = self._after(self.source_norm, x, attended, training)
            extras += more
        thought = inner(self.feed_forward, self._before(self.feed_forward_norm, x), training=training)
        x = self._after(self.feed_forward_norm, x, thought, training)
        return (x, *extras) if extras else x

    def _before(self, norm, x):
        return inner(norm, x) if self.config.norm_position == "pre" else x

    def _after(self, norm, x, branch, training):
        x = x + self._drop(branch, training)
        return x if self.config.norm_position == "pre" else inner(norm, x)

    def _drop(self, x, training):
        return inner(self.dropout, x, training=True) if training and self.config.dropout else x

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict(), "cross_attention": self.cross_attention}
