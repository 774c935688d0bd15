"""From logits to a token: plain functions on (rows, vocabulary), each row with its own settings.

Randomness is counted, not carried: the number that decides token `n` of a request is a function of the
request's seed and `n` alone, so a request gets the same answer alone or in any batch, on any backend.
"""

import dataclasses
import numbers

import numpy as np
from keras import ops

SAMPLERS = ("greedy", "temperature", "top_k", "top_p")
MAX_TEMPERATURE = 100.0


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a request's tokens are chosen.

    Args:
        temperature: logits are divided by it; 0 is greedy.
        top_k: only this many most likely tokens; 0 for all.
        top_p: only the fewest tokens whose probability reaches this (Holtzman et al., 2019); 1 for all.
        seed: of the counted randomness.

    Raises:
        ValueError: a setting is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ("temperature", "top_k", "top_p", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ValueError(f"`{name}` must be a number. Received: {name}={value!r}")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"`temperature` must be in [0, {MAX_TEMPERATURE:g}]. Received: temperature={self.temperature}"
            )
        if int(self.top_k) != self.top_k or self.top_k < 0:
            raise ValueError(f"`top_k` must be a whole number, at least 1. Received: top_k={self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be in (0, 1]. Received: top_p={self.top_p}")
        if int(self.seed) != self.seed or not 0 <= self.seed < 2**63:
            raise ValueError(f"`seed` must be a whole number in [0, 2**63). Received: seed={self.seed}")

    @classmethod
    def from_arguments(cls, sampler="greedy", temperature=None, top_k=None, top_p=None, seed=0) -> "Sampler":
        """The sampler that `generate(sampler="top_p", ...)` means; defaults are the usual ones (k 40, p 0.9)."""
        if isinstance(sampler, cls):
            return sampler
        if sampler not in SAMPLERS:
            raise ValueError(f"`sampler` must be one of {SAMPLERS} or a Sampler. Received: {sampler!r}")
        if sampler == "greedy":
            given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
            given = [name for name, value in given.items() if value is not None and value != 0]
            if given:
                raise ValueError(
                    f"{given[0]!r} means nothing to sampler='greedy'. Use sampler='temperature', 'top_k' or 'top_p'."
                )
            return cls(temperature=0.0, seed=seed)
        if top_k is None:
            top_k = 40 if sampler == "top_k" else 0
        elif isinstance(top_k, numbers.Real) and top_k < 1:
            raise ValueError(f"`top_k` must be a whole number, at least 1. Received: top_k={top_k}")
        if top_p is None:
            top_p = 0.9 if sampler == "top_p" else 1.0
        return cls(1.0 if temperature is None else temperature, top_k, top_p, seed)

    def uniform(self, count: int) -> float:
        """The number in [0, 1) that decides the request's token `count`."""
        generator = np.random.Philox(key=self.seed, counter=count)
        return float((generator.random_raw() >> 40) / 2.0**24)


def greedy(logits):
    """The most likely token of each row, (rows,) int32."""
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def sample(logits, temperature, top_k, top_p, uniforms):
    """Draws a token a row by inverting the cumulative distribution of the tokens that are kept.

    Args:
        logits: (rows, vocabulary) float32.
        temperature, top_k, top_p: (rows,), each row's settings; temperature 0 is greedy.
        uniforms: (rows,) in [0, 1).

    Returns:
        (rows,) int32.
    """
    order = ops.argsort(-logits, axis=-1)  # among equals the first comes first, as in argmax
    ranked = ops.take_along_axis(logits, order, axis=-1)
    cold = temperature <= 0
    ranked = ranked / ops.where(cold, 1.0, temperature)[:, None]
    probabilities = ops.softmax(top_k_filter(ranked, ops.where(cold, 1, top_k)), axis=-1)
    probabilities = top_p_filter(probabilities, top_p)
    cumulative = ops.cumsum(probabilities, axis=-1)
    threshold = uniforms[:, None] * cumulative[:, -1:]
    place = ops.sum(ops.cast(cumulative <= threshold, "int32"), axis=-1)
    place = ops.minimum(place, logits.shape[-1] - 1)
    return ops.cast(ops.take_along_axis(order, place[:, None], axis=-1)[:, 0], "int32")


def top_k_filter(ranked, top_k):
    """Logits sorted downwards, all but the first `top_k` of each row lowered to −1e30; 0 keeps all."""
    ranks = ops.arange(ranked.shape[-1])[None, :]
    return ops.where((ranks < top_k[:, None]) | (top_k[:, None] == 0), ranked, -1e30)


def top_p_filter(probabilities, top_p):
    """Probabilities sorted downwards, those after the first that reach `top_p` together set to 0."""
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    return ops.where(before < top_p[:, None], probabilities, 0.0)
