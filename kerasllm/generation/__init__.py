"""Samplers and the engine that makes tokens."""

from kerasllm.generation.sampling import Sampler

__all__ = ["Sampler"]
