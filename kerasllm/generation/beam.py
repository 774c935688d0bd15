"""Beam search: the likeliest whole answers, not the likeliest next tokens."""

import dataclasses

import numpy as np

from kerasllm.generation.engine import Engine, Request


@dataclasses.dataclass(frozen=True)
class Beams:
    """How many answers are pursued at once, and which is the best.

    Args:
        num_beams: answers pursued; 1 is greedy search.
        length_penalty: an answer's score is its log-likelihood over its length to this power: 0 favours short
            answers, larger values long ones.
        early_stopping: end when there are `num_beams` whole answers, though a better one might follow.

    Raises:
        ValueError: a setting is out of range.

    Reference: Sutskever et al. (2014); Wu et al. (2016) for length normalization, in the form of transformers.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self):
        size = self.num_beams
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 1024:
            raise ValueError(f"`num_beams` must be a whole number from 1 to 1024. Received: num_beams={size!r}")
        penalty = self.length_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not -100 <= penalty <= 100:
            raise ValueError(f"`length_penalty` must be a number in [-100, 100]. Received: length_penalty={penalty!r}")
        if not isinstance(self.early_stopping, bool):
            raise ValueError(
                f"`early_stopping` must be True or False. Received: early_stopping={self.early_stopping!r}"
            )


@dataclasses.dataclass
class _Answer:
    tokens: list[int]
    score: float
    ended_by: str = ""


def beam_search(engine: Engine, request: Request, beams: Beams) -> None:
    """Answers one request: sets its `new_tokens` and `finished`.

    Each beam has a slot of the engine; after every step the slots are put in the order of the beams that live on.
    """
    size, limit = beams.num_beams, min(request.max_new_tokens, engine.limit - len(request.prompt))
    logits, state = engine.begin(request, slots=size)
    running, finished = [_Answer([], 0.0)], []
    for length in range(1, limit + 1):
        scores = _log_softmax(logits[: len(running)]) + np.array([[answer.score] for answer in running], "float32")
        candidates = np.argsort(-scores, axis=None, kind="stable")[: max(2, 1 + len(request.stop_token_ids)) * size]
        going_on, parents = [], []
        for rank, place in enumerate(candidates):
            parent, token = (int(i) for i in np.unravel_index(place, scores.shape))
            answer = _Answer([*running[parent].tokens, token], float(scores[parent, token]))
            if token in request.stop_token_ids:
                answer.tokens, answer.ended_by = answer.tokens[:-1], "stop"
            elif length == limit:
                answer.ended_by = "length"
            if not answer.ended_by:
                if len(going_on) < size:
                    going_on.append(answer)
                    parents.append(parent)
            elif rank < size:
                # What ends below the best `size` candidates was only a reserve for those that go on.
                answer.score /= length**beams.length_penalty
                finished.append(answer)
        finished = sorted(finished, key=lambda answer: -answer.score)[:size]
        full = len(finished) == size
        if not going_on or (full and beams.early_stopping):
            break
        if full and going_on[0].score / length**beams.length_penalty <= finished[-1].score:
            break
        running = going_on
        logits, state = engine.advance(state, [answer.tokens[-1] for answer in running], parents)
    best = finished[0]
    request.new_tokens, request.finished = best.tokens, best.ended_by


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
