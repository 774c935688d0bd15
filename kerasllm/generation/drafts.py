"""Speculative decoding: tokens are guessed cheaply, and the model checks several of them in one step.

Each token has its own counted random number, so the model's token at a place does not depend on what was guessed
for it: with or without drafts, greedy or sampled, the answer is the same. A guess is right if it is that token.
"""

import numpy as np

from kerasllm.generation.draws import depends_on_text, is_greedy
from kerasllm.generation.programs import CHUNK, ends_of, programs_of
from kerasllm.generation.slots import Slots

LONGEST_NGRAM = 3


class Drafts:
    """Guesses the next tokens of requests.

    Args:
        model: a smaller `CausalLM` with the same vocabulary, which writes the drafts. Without one they are looked up:
            what followed the last time when the text ended as it does now.
        size: tokens guessed at once.

    Raises:
        ValueError: a size out of range.

    Example:
    ```python
    engine = Engine(model, drafts=Drafts(small_model, size=4))
    ```

    Reference: Leviathan et al. (2023), "Fast Inference from Transformers via Speculative Decoding"; Saxena (2023) for
    looking drafts up in the prompt. Instead of their rejection sampling, model and draft share their random numbers.
    """

    def __init__(self, model=None, size: int = 4):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < CHUNK:
            raise ValueError(f"A draft has 1 to {CHUNK - 1} tokens. Received: size={size!r}")
        self.model, self.size = model, size

    def start(self, engine) -> None:
        """Called by the engine that these drafts are for."""
        self._engine, self._slots = engine, None
        if self.model is None:
            return
        sizes = [m.config.vocabulary_size for m in (self.model, engine.programs.model)]
        if sizes[0] != sizes[1] or self.model.config.num_encoder_layers:
            raise ValueError(
                "A draft model is a decoder with the vocabulary of the model it drafts for. "
                f"Received: vocabulary sizes {sizes[0]} and {sizes[1]}"
            )
        programs = programs_of(self.model)
        self._slots = Slots(programs, engine.slots.size, min(engine.slots.length, programs.limit))

    def forget(self, slot: int) -> None:
        """The slot holds another text now."""
        if self._slots is not None:
            self._slots.positions[slot] = 0

    def guess(self, running: dict) -> dict[int, list[int]]:
        """Up to `size` tokens that may follow each request's text."""
        room = {slot: self._room(slot, request) for slot, request in running.items()}
        if self._slots is None:
            return {slot: look_up(request.context, room[slot]) for slot, request in running.items()}
        drafting = {slot: request for slot, request in running.items() if room[slot]}
        made = self._written(drafting) if drafting else {}
        return {slot: list(made.get(slot, ()))[: room[slot]] for slot in running}

    def _room(self, slot, request) -> int:
        """How many tokens may be guessed: none where the choice depends on more than the text."""
        if depends_on_text(request):
            return 0
        held = self._engine.slots.positions[slot]
        ends = [self._engine.slots.length] + ([self._slots.length] if self._slots else [])
        return max(0, min(self.size, request.remaining - 1, min(ends) - held - 1))

    def _written(self, requests) -> dict:
        slots, engine = self._slots, self._engine
        missing = {}
        for slot in requests:
            held, wanted = slots.positions[slot], engine.slots.positions[slot]
            # What was guessed wrong is written over.
            slots.positions[slot] = min(held, wanted)
            missing[slot] = engine.text(slot)[slots.positions[slot] : wanted]
        slots.read(missing)
        last = np.zeros(slots.size, "int32")
        for slot in requests:
            last[slot] = engine.text(slot)[-1]
        ends = ends_of(slots.size, {}, list(requests), least=1, limit=self.size)
        arguments = slots.cache, slots.part(), last, slots.positions, slots.source, ends
        if all(is_greedy(request) for request in requests.values()):
            made, _, slots.cache = slots.programs.make_greedy(*arguments)
        else:
            made, _, _, slots.cache = slots.programs.make_sampled(*arguments, engine.draws.of(requests, CHUNK))
        made = np.asarray(made)
        for slot in requests:
            slots.positions[slot] += self.size
        return {slot: made[slot, : self.size].tolist() for slot in requests}


def look_up(tokens: list[int], count: int) -> list[int]:
    """What followed the latest earlier place where the text stood as it ends now, by its longest end found.

    Args:
        tokens: the text.
        count: tokens to return at the most.

    Returns:
        the tokens; none if the text never stood like this.
    """
    text = np.asarray(tokens)
    for size in range(min(LONGEST_NGRAM, len(text) - 1), 0, -1) if count > 0 else ():
        windows = np.lib.stride_tricks.sliding_window_view(text[:-1], size)
        found = np.flatnonzero((windows == text[-size:]).all(axis=1))
        if len(found):
            start = int(found[-1]) + size
            return text[start : start + count].tolist()
    return []
