"""The normalization layer that a config names."""

import keras

from kerasllm.config import TransformerConfig


def make_norm(config: TransformerConfig, dtype=None, name=None) -> keras.layers.Layer:
    """Layer norm (Ba et al., 2016) or RMS norm (Zhang and Sennrich, 2019), as `config.norm` says."""
    if config.norm == "rms_norm":
        return keras.layers.RMSNormalization(epsilon=config.norm_epsilon, dtype=dtype, name=name)
    return keras.layers.LayerNormalization(epsilon=config.norm_epsilon, center=config.use_bias, dtype=dtype, name=name)
