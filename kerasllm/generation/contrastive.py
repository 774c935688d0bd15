"""Likely, but unlike something else: unlike what was said before, or what a weaker model would say."""

import numpy as np
from keras import ops

from kerasllm.generation.beam import check_number, check_whole
from kerasllm.generation.pieces import Pieces
from kerasllm.generation.programs import programs_of
from kerasllm.generation.requests import NO_TOKEN_LEFT, Request, check_numbers
from kerasllm.generation.scoring import log_softmax, noted
from kerasllm.generation.search import FORBIDDEN, begun, fed, scored
from kerasllm.generation.slots import SMALLEST_BUCKET, Slots, bucket
from kerasllm.generation.weights import Weights

MOST_TEXTS = 32  # that one `ContrastiveDecoding` follows at a time


def contrastive_search(model, request: Request, top_k: int, penalty_alpha: float, pieces: Pieces | None = None) -> None:
    """Greedy search that avoids what it has said: of the `top_k` likeliest tokens, the one that is likely and whose
    hidden state is unlike all before it.

    Args:
        model: a `CausalLM` or a `Seq2SeqLM`.
        request: its `new_tokens` and `finished` are set.
        top_k: candidates, each of which is tried.
        penalty_alpha: weight of the likeness to what was said, in [0, 1]; the rest is that of the probability.
        pieces: of the request, which end it at a stop string.

    Raises:
        ValueError: a setting is out of range, or the request's constraints leave no token.

    Reference: Su et al. (2022), "A Contrastive Framework for Neural Text Generation".
    """
    check_whole("top_k", top_k, model.config.vocabulary_size)
    check_number("penalty_alpha", penalty_alpha, 0, 1)
    slots = begun(model, request, top_k, read=False)
    limit = slots.programs.limit
    logits, said = _read_whole(slots, request.prompt)
    while not request.finished:
        scores = scored(request, logits, request.new_tokens)
        probabilities = np.exp(log_softmax(scores))
        candidates = np.argsort(-scores, kind="stable")[:top_k]
        candidates = candidates[scores[candidates] > FORBIDDEN]
        if not len(candidates):
            raise ValueError(NO_TOKEN_LEFT)
        if slots.positions[0] >= limit:  # As in the engine, the last half is read again: this much and a candidate.
            slots.positions[:] = 0
            _, said = _read_whole(slots, request.context[-max(1, limit // 2 - 1) :])
        next_logits, hidden = fed(slots, candidates)
        hidden = hidden[: len(candidates), 0]
        likeness = np.stack([_unit(h) @ _unit(said).T for h in hidden]).max(axis=1)
        best = int(np.argmax((1 - penalty_alpha) * probabilities[candidates] - penalty_alpha * likeness))
        slots.copy(dict.fromkeys(range(top_k), best))
        token, log_probs = int(candidates[best]), log_softmax(logits)
        logits, said = next_logits[best], np.concatenate([said, hidden[best : best + 1]])
        if request.top_log_probs is not None and token not in request.stop_token_ids:
            log_prob, alternatives = noted(log_probs, token, request.top_log_probs)
            request.log_probs.append(log_prob)
            request.alternatives.append(alternatives)
        request.accept(token)
        if pieces is not None:
            pieces.advance()
        request.settle()
    if request.error is not None:
        raise request.error


def _read_whole(slots: Slots, tokens):
    """Reads tokens into all slots; the logits after them (vocabulary,) and their hidden states (tokens, hidden_dim)."""
    token_ids = np.zeros((slots.size, bucket(len(tokens), slots.length, SMALLEST_BUCKET)), "int32")
    token_ids[:, : len(tokens)] = tokens
    slots.copy(dict.fromkeys(range(slots.size), 0))
    logits, hidden, slots.cache = slots.programs.logits(slots.cache, token_ids, slots.positions, slots.source)
    slots.positions = slots.positions + np.int32(len(tokens))
    hidden = ops.convert_to_numpy(hidden)[0, : len(tokens)]
    logits = ops.convert_to_numpy(logits)[0, len(tokens) - 1]
    check_numbers(logits)
    return logits, hidden


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


class ContrastiveDecoding:
    """What a model would say and a weaker one would not: a `sampler` for `generate`.

    Of the tokens that the model finds plausible, each gets the logit `(1 + beta) · log p − beta · log q`, where p is
    the model's probability and q the weaker one's. The next token is drawn from these.

    Args:
        amateur: the weaker `CausalLM`, with the same vocabulary.
        alpha: a token is plausible if it is at least this times as likely as the likeliest, in [0, 1].
        beta: weight of the weaker model.

    Raises:
        ValueError: a setting out of range, or a model with an encoder.

    Example:
    ```python
    model.generate("Once", sampler=ContrastiveDecoding(small_model), top_k=1)
    ```

    Reference: Li et al. (2022), "Contrastive Decoding"; O'Brien and Lewis (2023) for this form of it.
    """

    def __init__(self, amateur, alpha: float = 0.1, beta: float = 0.5):
        check_number("alpha", alpha, 0, 1)
        check_number("beta", beta, 0, 100)
        if amateur.config.num_encoder_layers:
            raise ValueError("The weaker model must be a CausalLM. Received: a model with an encoder")
        self.amateur, self.alpha, self.beta = amateur, alpha, beta
        self._texts: list[tuple[list[int], Slots]] = []  # the latest last
        self._weights = Weights(amateur)

    def __call__(self, logits: np.ndarray, tokens: list[int]) -> np.ndarray:
        expert = log_softmax(logits)
        amateur = log_softmax(self._logits(tokens)) if tokens else np.zeros_like(expert)
        if amateur.shape != expert.shape:
            raise ValueError(
                f"Both models must have the same vocabulary. Received: sizes {expert.shape[-1]} and {amateur.shape[-1]}"
            )
        plausible = expert >= expert.max() + np.log(max(self.alpha, 1e-30))
        return np.where(plausible, (1 + self.beta) * expert - self.beta * amateur, -np.inf)

    def _logits(self, tokens) -> np.ndarray:
        """The weaker model's logits after a text; of a text that goes on from a known one, only the rest is read."""
        programs = programs_of(self.amateur)
        if self._weights.changed() or (self._texts and self._texts[-1][1].programs is not programs):
            self._texts = []
        tokens = tokens[-programs.limit :]
        known, slots = next((text for text in reversed(self._texts) if tokens[: len(text[0])] == text[0]), ([], None))
        if slots is None:
            slots = Slots(programs, 1, programs.limit)
        self._texts = [text for text in self._texts if text[1] is not slots][1 - MOST_TEXTS :]
        self._texts.append((list(tokens), slots))
        slots.positions[0] = min(len(known), len(tokens) - 1)
        slots.read({0: tokens[slots.positions[0] : -1]})
        return fed(slots, tokens[-1:])[0][0]
