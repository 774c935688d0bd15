"""One Transformer block: attention and feed-forward, each on a residual branch."""

import math

import keras

from kerasllm.config import TransformerConfig
from kerasllm.layers.attention import Attention
from kerasllm.layers.feed_forward import FeedForward
from kerasllm.layers.inner import inner


def make_norm(config: TransformerConfig, dtype=None, name=None) -> keras.layers.Layer:
    """The normalization layer that a config names."""
    if config.norm == "rms_norm":
        return keras.layers.RMSNormalization(epsilon=config.norm_epsilon, dtype=dtype, name=name)
    return keras.layers.LayerNormalization(epsilon=config.norm_epsilon, center=config.use_bias, dtype=dtype, name=name)


@keras.saving.register_keras_serializable("kerasllm")
class TransformerBlock(keras.layers.Layer):
    """Attention then feed-forward, pre-norm (x + f(norm(x))) or post-norm (norm(x + f(x))).

    Args:
        config: a `TransformerConfig`, or the dict of one.

    Call arguments:
        x: (batch, length, hidden_dim).
        attention_mask, causal, rotary, cache, update_cache, return_weights: as in `Attention`.

    Returns:
        x (batch, length, hidden_dim), and what `Attention` returned beside its output, if anything.

    Example:
    ```python
    config = kerasllm.TransformerConfig.from_name("gpt2_tiny")
    TransformerBlock(config)(keras.random.normal((2, 10, 128)), causal=True)
    ```

    Reference: Vaswani et al. (2017) for post-norm; Radford et al. (2019) for pre-norm and the initial scale
    1/√(2 · layers) of what is added to the residual stream.
    """

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        c, policy = self.config, self.dtype_policy
        inner = keras.initializers.RandomNormal(stddev=c.initializer_range)
        residual = keras.initializers.RandomNormal(stddev=c.initializer_range / math.sqrt(2 * c.num_layers))
        self.attention_norm = make_norm(c, policy, "attention_norm")
        self.attention = Attention(
            c.num_heads,
            c.head_dim,
            c.num_kv_heads,
            use_bias=c.use_bias,
            dropout=c.attention_dropout,
            kernel_initializer=inner,
            output_initializer=residual,
            dtype=policy,
            name="attention",
        )
        self.feed_forward_norm = make_norm(c, policy, "feed_forward_norm")
        self.feed_forward = FeedForward(
            c.intermediate_dim,
            c.activation,
            c.gated,
            c.use_bias,
            kernel_initializer=inner.clone(),
            output_initializer=residual.clone(),
            dtype=policy,
            name="feed_forward",
        )
        self.dropout = keras.layers.Dropout(c.dropout, dtype=policy, name="dropout")

    def build(self, x_shape):
        for layer in (self.attention_norm, self.attention, self.feed_forward_norm, self.feed_forward):
            layer.build(x_shape)
        self.built = True

    def call(
        self,
        x,
        attention_mask=None,
        causal=False,
        rotary=None,
        cache=None,
        update_cache=None,
        return_weights=False,
        training=None,
    ):
        pre = self.config.norm_position == "pre"
        attended = inner(
            self.attention,
            inner(self.attention_norm, x) if pre else x,
            attention_mask=attention_mask,
            causal=causal,
            rotary=rotary,
            cache=cache,
            update_cache=update_cache,
            return_weights=return_weights,
            training=training,
        )
        attended, *rest = attended if isinstance(attended, tuple) else (attended,)
        x = x + self._drop(attended, training)
        x = x if pre else inner(self.attention_norm, x)

        x = x + self._drop(inner(self.feed_forward, inner(self.feed_forward_norm, x) if pre else x), training)
        x = x if pre else inner(self.feed_forward_norm, x)
        return (x, *rest) if rest else x

    def _drop(self, x, training):
        return inner(self.dropout, x, training=True) if training and self.config.dropout else x

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}
