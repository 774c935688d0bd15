"""What every model here is made of."""

from kerasllm.layers.attention import Attention
from kerasllm.layers.block import TransformerBlock
from kerasllm.layers.feed_forward import FeedForward

__all__ = ["Attention", "FeedForward", "TransformerBlock"]
