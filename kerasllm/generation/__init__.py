"""Samplers and the engine that makes tokens."""

import functools

from kerasllm.generation.sampling import Sampler
from kerasllm.lazy import submodule

__all__ = ["Sampler"]

__getattr__ = functools.partial(submodule, __name__)
