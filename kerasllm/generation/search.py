"""What beam search and contrastive search share: slots for their candidates, and scores as the request wants them."""

from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from kerasllm.generation.constraints import bias_of
from kerasllm.generation.draws import has_penalties
from kerasllm.generation.programs import programs_of
from kerasllm.generation.requests import Request, check_numbers
from kerasllm.generation.slots import SMALLEST_BUCKET, Slots, bucket

FORBIDDEN = -1e20  # Scores below it are those of tokens that a constraint took out.


def begun(model, request: Request, size: int, read: bool = True) -> Slots:
    """Slots that each hold the prompt but its last token, and the source."""
    programs = programs_of(model)
    needed = max(min(programs.limit, len(request.prompt) + request.max_new_tokens), len(request.source or ()))
    length = bucket(needed, programs.limit, SMALLEST_BUCKET)
    slots = Slots(programs, bucket(size, 1 << 30), length, source_length=length)
    slots.read_sources({0: request.source})
    if read:
        slots.read({0: request.prompt[:-1]})
        slots.copy(dict.fromkeys(range(slots.size), 0))
    return slots


def fed(slots: Slots, tokens) -> tuple[np.ndarray, np.ndarray]:
    """Feeds a token to each slot; logits (slots, vocabulary) and hidden states (slots, 1, hidden_dim).

    Raises:
        ValueError: the logits are not numbers.
    """
    token_ids = np.zeros((slots.size, 1), "int32")
    token_ids[: len(tokens), 0] = tokens
    logits, hidden, slots.cache = slots.programs.logits(slots.cache, token_ids, slots.positions, slots.source)
    slots.positions = slots.positions + 1
    logits = ops.convert_to_numpy(logits)[:, 0]
    check_numbers(logits[: len(tokens)])
    return logits, ops.convert_to_numpy(hidden)


def scored(request: Request, scores: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Scores of the next token, (vocabulary,), as the request's constraints and penalties change them.

    Args:
        request: whose they are.
        scores: logits, or log-probabilities.
        tokens: the answer so far.
    """
    bias = bias_of(request.constraints, request.prompt, tokens, len(scores))
    scores = scores if bias is None else scores + bias
    sampler = request.sampler
    if has_penalties(sampler):
        scores = scores.copy()
        said = np.unique([*request.prompt, *tokens])
        before, factor = scores[said], sampler.repetition_penalty
        scores[said] = np.where(before > 0, before / factor, before * factor)
        ids, counts = np.unique(np.asarray(tokens, "int64"), return_counts=True)
        scores[ids] -= sampler.frequency_penalty * counts + sampler.presence_penalty
    return scores


def holds_string(tokenizer, prompt: list[int], strings: Sequence[str]) -> Callable[[list[int]], bool]:
    """Whether an answer has one of some strings in its text."""
    context = prompt[-8:]
    before = len(tokenizer.decode(context)) if strings else 0

    def holds(tokens: list[int]) -> bool:
        text = tokenizer.decode(context + tokens)[before:] if strings else ""
        return any(string in text.rstrip("\N{REPLACEMENT CHARACTER}") for string in strings)

    return holds
