"""What every model here is made of."""

import functools

from kerasllm.layers.attention import Attention
from kerasllm.layers.block import TransformerBlock
from kerasllm.layers.feed_forward import FeedForward
from kerasllm.lazy import submodule

__all__ = ["Attention", "FeedForward", "TransformerBlock"]

__getattr__ = functools.partial(submodule, __name__)
