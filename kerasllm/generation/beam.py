"""Beam search: the likeliest whole answers, not the likeliest next tokens."""

import dataclasses
import numbers

import numpy as np
from keras import ops

from kerasllm.generation.programs import programs_of
from kerasllm.generation.requests import Request
from kerasllm.generation.slots import SMALLEST_BUCKET, Slots, bucket


@dataclasses.dataclass(frozen=True)
class Beams:
    """How many answers are pursued at once, and which is the best.

    Args:
        num_beams: answers pursued; 1 is greedy search.
        length_penalty: an answer's score is its log-likelihood over its length to this power: 0 favours short
            answers, larger values long ones.
        early_stopping: end when there are `num_beams` whole answers, though a better one might follow.
        num_groups: the beams are this many groups, each of which searches for itself.
        diversity_penalty: taken from a token's score for each earlier group's beam that has just chosen it.

    Raises:
        ValueError: a setting is out of range.

    Reference: Sutskever et al. (2014); Wu et al. (2016) for length normalization, in the form of transformers;
    Vijayakumar et al. (2016), "Diverse Beam Search", for groups.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    num_groups: int = 1
    diversity_penalty: float = 0.0

    def __post_init__(self):
        check_whole("num_beams", self.num_beams, 1024)
        check_whole("num_groups", self.num_groups, self.num_beams)
        if self.num_beams % self.num_groups:
            raise ValueError(
                "`num_beams` must be a multiple of `num_groups`. "
                f"Received: num_beams={self.num_beams}, num_groups={self.num_groups}"
            )
        check_number("length_penalty", self.length_penalty, -100, 100)
        check_number("diversity_penalty", self.diversity_penalty, 0, 1e6)
        if self.diversity_penalty and self.num_groups == 1:
            raise ValueError(
                "`diversity_penalty` is between groups, and there is one: set `num_groups`. "
                f"Received: diversity_penalty={self.diversity_penalty}"
            )
        if not isinstance(self.early_stopping, bool):
            raise ValueError(
                f"`early_stopping` must be True or False. Received: early_stopping={self.early_stopping!r}"
            )


@dataclasses.dataclass
class Answer:
    """One whole answer, or the beginning of one.

    Attributes:
        tokens: its token ids.
        score: log-likelihood; of a finished answer, over its length to the power of the penalty.
        ended_by: "stop", "length", or "" for a beginning.
    """

    tokens: list[int]
    score: float
    ended_by: str = ""


def beam_search(model, request: Request, beams: Beams) -> list[Answer]:
    """The best answers to a request, best first; its `new_tokens` and `finished` are set to the very best.

    Each beam has a slot; after every step the slots are put in the order of the beams that live on.
    """
    limit = min(request.max_new_tokens, model.config.max_sequence_length - len(request.prompt))
    slots = begun(model, request, beams.num_beams)
    logits, _ = fed(slots, [request.prompt[-1]] * beams.num_beams)
    size = beams.num_beams // beams.num_groups
    groups = [_Group(size, beams, request.stop_token_ids, limit) for _ in range(beams.num_groups)]
    for length in range(1, limit + 1):
        likelihoods, chosen = log_softmax(logits), np.zeros(logits.shape[-1], "float32")
        parents, last = np.zeros(beams.num_beams, "int32"), np.zeros(beams.num_beams, "int32")
        for number, group in enumerate(groups):
            if group.done:
                continue
            first = number * size
            rows = group.advance(likelihoods[first : first + size], beams.diversity_penalty * chosen, length)
            for place, (parent, answer) in enumerate(zip(rows, group.running)):
                parents[first + place], last[first + place] = first + parent, answer.tokens[-1]
                chosen[answer.tokens[-1]] += 1
        if all(group.done for group in groups):
            break
        slots.copy(dict(enumerate(parents)))
        logits, _ = fed(slots, last)
    answers = sorted((answer for group in groups for answer in group.finished), key=lambda a: -a.score)
    request.new_tokens, request.finished = answers[0].tokens, answers[0].ended_by
    return answers


class _Group:
    """Beams that compete with one another."""

    def __init__(self, size, beams, stop_token_ids, limit):
        self.size, self.beams, self.stops, self.limit = size, beams, stop_token_ids, limit
        self.running, self.finished, self.done = [Answer([], 0.0)], [], False

    def advance(self, likelihoods, penalty, length) -> list[int]:
        """Goes on by a token; returns the beam that each of the new ones came from."""
        scores = likelihoods[: len(self.running)] + np.array([[a.score] for a in self.running], "float32")
        ranked = np.argsort(-(scores - penalty), axis=None, kind="stable")
        going_on, parents = [], []
        for rank, place in enumerate(ranked[: max(2, 1 + len(self.stops)) * self.size]):
            parent, token = (int(i) for i in np.unravel_index(place, scores.shape))
            score = float(scores[parent, token]) - float(penalty[token])
            answer = Answer([*self.running[parent].tokens, token], score)
            if token in self.stops:
                answer.tokens, answer.ended_by = answer.tokens[:-1], "stop"
            elif length == self.limit:
                answer.ended_by = "length"
            if not answer.ended_by:
                if len(going_on) < self.size:
                    going_on.append(answer)
                    parents.append(parent)
            elif rank < self.size:
                # What ends below the best `size` candidates was only a reserve for those that go on.
                answer.score /= length**self.beams.length_penalty
                self.finished.append(answer)
        self.finished = sorted(self.finished, key=lambda answer: -answer.score)[: self.size]
        full = len(self.finished) == self.size
        self.done = not going_on or (full and self.beams.early_stopping)
        if full and not self.done:
            self.done = going_on[0].score / length**self.beams.length_penalty <= self.finished[-1].score
        self.running = going_on
        return parents


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
    """Feeds a token to each slot; logits (slots, vocabulary) and hidden states (slots, 1, hidden_dim)."""
    token_ids = np.zeros((slots.size, 1), "int32")
    token_ids[: len(tokens), 0] = tokens
    logits, hidden, slots.cache = slots.programs.logits(slots.cache, token_ids, slots.positions, slots.source)
    slots.positions = slots.positions + 1
    return ops.convert_to_numpy(logits)[:, 0], ops.convert_to_numpy(hidden)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def check_whole(name: str, value, most: int) -> None:
    """Refuses what is no whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"`{name}` must be a whole number from 1 to {most}. Received: {name}={value!r}")


def check_number(name: str, value, least: float, most: float) -> None:
    """Refuses what is no number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= value <= most:
        raise ValueError(f"`{name}` must be a number in [{least:g}, {most:g}]. Received: {name}={value!r}")
