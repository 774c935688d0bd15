"""Beam search: the likeliest whole answers, not the likeliest next tokens."""

import dataclasses
import numbers
from collections.abc import Sequence

import numpy as np

from kerasllm.generation.requests import NO_TOKEN_LEFT, Request
from kerasllm.generation.scoring import log_softmax, noted
from kerasllm.generation.search import FORBIDDEN, begun, fed, holds_string, scored


@dataclasses.dataclass(frozen=True)
class Beams:
    """How many answers are pursued at once, and which is the best.

    Args:
        num_beams: answers pursued; 1 is greedy search.
        length_penalty: an answer's score is its log-likelihood over its length to this power: 0 favours short
            answers, larger values long ones.
        early_stopping: `True` ends when there are `num_beams` whole answers, though a better one might follow; `False`
            when a better one is unlikely; "never" when there can be none.
        num_groups: the beams are this many groups, each of which searches for itself.
        diversity_penalty: taken from a token's score for each earlier group's beam that has just chosen it.
        renormalize: makes probabilities of the scores again after constraints and penalties.

    Raises:
        ValueError: a setting is out of range.

    Reference: Sutskever et al. (2014); Wu et al. (2016) for length normalization, in the form of transformers;
    Vijayakumar et al. (2016), "Diverse Beam Search", for groups.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_groups: int = 1
    diversity_penalty: float = 0.0
    renormalize: bool = False

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
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                f"`early_stopping` must be True, False or 'never'. Received: early_stopping={self.early_stopping!r}"
            )


@dataclasses.dataclass
class Answer:
    """One whole answer, or the beginning of one.

    Attributes:
        tokens: its token ids.
        score: log-likelihood; of a finished answer, over its length to the power of the penalty.
        ended_by: "stop", "length", or "" for a beginning.
        noted: each token's log-probability and alternatives, if they are asked for.
    """

    tokens: list[int]
    score: float
    ended_by: str = ""
    noted: list[tuple[float, dict[int, float]]] = dataclasses.field(default_factory=list)


def beam_search(model, request: Request, beams: Beams, stop: Sequence[str] = ()) -> list[Answer]:
    """The best answers to a request, best first; its `new_tokens` and `finished` are set to the very best.

    Each beam has a slot; after every step the slots are put in the order of the beams that live on.

    Raises:
        ValueError: the request's constraints leave no answer.
    """
    room = model.config.max_sequence_length - len(request.prompt)
    limit = request.max_new_tokens if request.slide else min(request.max_new_tokens, room)
    slots = begun(model, request, beams.num_beams)
    logits, _ = fed(slots, [request.prompt[-1]] * beams.num_beams)
    size = beams.num_beams // beams.num_groups
    has_stop = holds_string(model.tokenizer, request.prompt, stop)
    groups = [_Group(size, beams, request, limit, has_stop) for _ in range(beams.num_groups)]
    for length in range(1, limit + 1):
        chosen = np.zeros(logits.shape[-1], "float32")
        parents, last = np.zeros(beams.num_beams, "int32"), np.zeros(beams.num_beams, "int32")
        texts = {}
        for number, group in enumerate(groups):
            if group.done:
                continue
            first = number * size
            rows = group.advance(logits[first : first + size], beams.diversity_penalty * chosen, length)
            for row, (parent, answer) in enumerate(zip(rows, group.running), start=first):
                parents[row], last[row] = first + parent, answer.tokens[-1]
                texts[row] = request.prompt + answer.tokens
                chosen[answer.tokens[-1]] += 1
        if all(group.done for group in groups):
            break
        slots.copy(dict(enumerate(parents)))
        if slots.positions[0] >= slots.programs.limit:  # As in the engine, the last half is read again.
            slots.positions[:] = 0
            slots.read({row: text[-(slots.programs.limit // 2 or 1) : -1] for row, text in texts.items()})
        logits, _ = fed(slots, last)
    answers = sorted((answer for group in groups for answer in group.finished), key=lambda a: -a.score)
    if not answers:
        raise ValueError(NO_TOKEN_LEFT)
    request.new_tokens, request.finished = answers[0].tokens, answers[0].ended_by
    return answers


class _Group:
    """Beams that compete with one another."""

    def __init__(self, size, beams, request, limit, has_stop):
        self.size, self.beams, self.request, self.limit = size, beams, request, limit
        self.has_stop, self.stops = has_stop, request.stop_token_ids
        self.running, self.finished, self.done = [Answer([], 0.0)], [], False

    def advance(self, logits, penalty, length) -> list[int]:
        """Goes on by a token; returns the beam that each of the new ones came from."""
        likelihoods = log_softmax(logits[: len(self.running)])
        scores = np.stack([self._scored(row, answer.tokens) for row, answer in zip(likelihoods, self.running)])
        if self.beams.renormalize:
            scores = log_softmax(scores)
        scores = scores + np.array([[a.score] for a in self.running], "float32") - penalty
        ranked = np.argsort(-scores, axis=None, kind="stable")
        going_on, parents = [], []
        for rank, index in enumerate(ranked[: max(2, 1 + len(self.stops)) * self.size]):
            parent, token = (int(i) for i in np.unravel_index(index, scores.shape))
            if scores[parent, token] < FORBIDDEN:
                break
            answer = self._longer(self.running[parent], token, float(scores[parent, token]), likelihoods[parent])
            if answer is None:
                continue
            if not answer.ended_by and length == self.limit:
                answer.ended_by = "length"
            if not answer.ended_by:
                if len(going_on) < self.size:
                    going_on.append(answer)
                    parents.append(parent)
            elif rank < self.size:
                # An answer that ends outside the best `size` candidates is dropped.
                answer.score /= length**self.beams.length_penalty
                self.finished.append(answer)
        self.finished = sorted(self.finished, key=lambda answer: -answer.score)[: self.size]
        full = len(self.finished) == self.size
        self.done = not going_on or (full and self.beams.early_stopping is True)
        if full and not self.done:
            never = self.beams.early_stopping == "never" and self.beams.length_penalty > 0
            longest = self.limit if never else length
            self.done = going_on[0].score / longest**self.beams.length_penalty <= self.finished[-1].score
        self.running = going_on
        return parents

    def _scored(self, likelihoods, tokens) -> np.ndarray:
        scores = scored(self.request, likelihoods, tokens)
        if any(constraint.forces(self.request.prompt, tokens) for constraint in self.request.constraints):
            scores = np.where(scores > FORBIDDEN, 0, scores)
        return scores

    def _longer(self, before: Answer, token: int, score: float, likelihoods) -> Answer | None:
        """An answer with one more token; `None` where its form then cannot be kept to."""
        if token in self.stops:
            return Answer(before.tokens, score, "stop", before.noted)
        answer = Answer([*before.tokens, token], score, "", before.noted)
        if self.request.top_log_probs is not None:
            answer.noted = [*before.noted, noted(likelihoods, token, self.request.top_log_probs)]
        if self.has_stop(answer.tokens):
            answer.ended_by = "stop"
        elif any(constraint.finished(answer.tokens) for constraint in self.request.constraints):
            if not all(constraint.complete(answer.tokens) for constraint in self.request.constraints):
                return None
            answer.ended_by = "stop"
        return answer


def check_whole(name: str, value, most: int) -> None:
    """Refuses what is no whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"`{name}` must be a whole number from 1 to {most}. Received: {name}={value!r}")


def check_number(name: str, value, least: float, most: float) -> None:
    """Refuses what is no number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= value <= most:
        raise ValueError(f"`{name}` must be a number in [{least:g}, {most:g}]. Received: {name}={value!r}")
