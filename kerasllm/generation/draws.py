"""What `choose` reads beside the logits: each slot's settings, random numbers and what was said so far."""

import keras
import numpy as np
from keras import ops

from kerasllm.generation.constraints import bias_of
from kerasllm.generation.requests import NO_TOKEN_LEFT, Request
from kerasllm.generation.sampling import COLD, NEVER, PENALTIES, Sampler, settings_of


class Draws:
    """The samplers of an engine's slots.

    Args:
        slots: of the engine.
        vocabulary_size: of the model.
    """

    def __init__(self, slots: int, vocabulary_size: int):
        self.slots, self.vocabulary_size = slots, vocabulary_size
        self.mu = np.zeros(slots, "float32")  # Mirostat's state.
        self._blank = {}

    def admit(self, requests: dict[int, Request]) -> None:
        for slot, request in requests.items():
            self.mu[slot] = 2 * request.sampler.mirostat

    def of(self, running: dict[int, Request], width: int, rows: np.ndarray | None = None) -> dict:
        """The arguments of `choose` for the next `width` tokens of each slot, or of the slots `rows`, as a dict.

        `uniforms` is (slots, width); `counts`, `seen` and `bias` are (slots, vocabulary).
        """
        rows = np.arange(self.slots) if rows is None else rows
        asked = [running.get(int(slot)) for slot in rows]
        uniforms = np.zeros((len(rows), width), "float32")
        for row, request in enumerate(asked):
            if request is not None and request.sampler.temperature > COLD:
                uniforms[row] = request.sampler.uniforms(len(request.new_tokens), width)
        samplers = [None if request is None else request.sampler for request in asked]
        draw = {"settings": settings_of(samplers, len(rows)), "uniforms": uniforms, "mu": self.mu[rows]}
        return draw | self._said(asked) | {"bias": self._bias(asked)}

    def keep(self, mu, rows: np.ndarray | None = None) -> None:
        self.mu[slice(None) if rows is None else rows] = ops.convert_to_numpy(mu)

    def _said(self, asked):
        if not any(request is not None and has_penalties(request.sampler) for request in asked):
            return {"counts": self._zeros(len(asked), "int32"), "seen": self._zeros(len(asked), "bool")}
        counts = np.zeros((len(asked), self.vocabulary_size), "int32")
        seen = np.zeros((len(asked), self.vocabulary_size), "bool")
        for row, request in enumerate(asked):
            if request is not None and has_penalties(request.sampler):
                np.add.at(counts[row], request.new_tokens, 1)
                seen[row, request.prompt] = True
        return {"counts": counts, "seen": seen}

    def _bias(self, asked):
        if not any(request is not None and request.constraints for request in asked):
            return self._zeros(len(asked), "float32")
        bias = np.zeros((len(asked), self.vocabulary_size), "float32")
        for row, request in enumerate(asked):
            if request is not None and request.constraints:
                arguments = request.prompt, request.new_tokens, self.vocabulary_size
                bias[row] = bias_of(request.constraints, *arguments)
                if not (bias[row] > NEVER / 2).any():
                    request.fail(ValueError(NO_TOKEN_LEFT))
        return bias

    def _zeros(self, rows, dtype):
        # Made once, on the device: mostly nobody asks for more.
        if (rows, dtype) not in self._blank:
            self._blank[rows, dtype] = ops.zeros((rows, self.vocabulary_size), dtype)
        return self._blank[rows, dtype]


def is_greedy(request: Request) -> bool:
    """Whether the likeliest token is always the next."""
    return request.sampler.temperature <= COLD and not depends_on_text(request)


def depends_on_text(request: Request) -> bool:
    """Whether a choice depends on the tokens before it otherwise than through the model."""
    return has_penalties(request.sampler) or bool(request.constraints) or request.sampler.mirostat > 0


def repeated(draw: dict, width: int) -> dict:
    """The draw of `width` tokens a slot at once, as if each were a row of its own: for `choose` on (slots · width)."""
    rows = {name: value for name, value in draw.items() if name != "uniforms"}
    rows = keras.tree.map_structure(lambda x: ops.repeat(x, width, axis=0), rows)
    return rows | {"uniforms": draw["uniforms"].reshape(-1)}


def has_penalties(sampler: Sampler) -> bool:
    """Whether a token's logit depends on how often it was said."""
    return any(getattr(sampler, name) != getattr(Sampler, name) for name in PENALTIES)
