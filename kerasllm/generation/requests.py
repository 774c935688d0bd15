"""What is asked of the engine, and what has been made of it so far."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from kerasllm.generation.sampling import Sampler

NOT_NUMBERS = (
    "The model's logits are not numbers (NaN): its weights are not, or what it computes is beyond its dtype. Load "
    "weights from before training broke, or compute in bfloat16 or float32 where it is float16. Received: NaN"
)

NO_TOKEN_LEFT = "What is forbidden leaves no token that may come next. Received: constraints that exclude each other"


@dataclasses.dataclass(eq=False)
class Request:
    """One prompt and its answer so far.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: tokens to make at the most.
        sampler: how they are chosen.
        stop_token_ids: a token of these ends the request, and is not part of the answer.
        source: token ids that the encoder reads, in models that have one.
        slide: when the context is full, go on from its last half instead of ending.
        constraints: what forbids or favours tokens, given those so far; see `kerasllm.generation.constraints`.
        logits_function: `logits, tokens → logits`, NumPy arrays (vocabulary,) and the text so far, before sampling.
        top_log_probs: how many alternatives to note for each token, beside its own log-probability; `None` for neither.
        new_tokens: the answer so far.
        log_probs: of the answer's tokens, by the model itself, whatever the sampler.
        alternatives: for each token the likeliest ones, `{token: log-probability}`.
        finished: why it ended: "stop", "length", "cancelled", "error", or "" while it runs.
        error: what went wrong, where `finished` is "error".
        drafted, accepted: tokens that were guessed for it, and those of them that were right.
    """

    prompt: list[int]
    max_new_tokens: int
    sampler: Sampler
    stop_token_ids: frozenset[int] = frozenset()
    source: list[int] | None = None
    slide: bool = False
    constraints: Sequence = ()
    logits_function: Callable | None = None
    top_log_probs: int | None = None
    new_tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[dict[int, float]] = dataclasses.field(default_factory=list)
    finished: str = ""
    error: Exception | None = None
    drafted: int = 0
    accepted: int = 0

    @property
    def context(self) -> list[int]:
        return self.prompt + self.new_tokens

    @property
    def remaining(self) -> int:
        return self.max_new_tokens - len(self.new_tokens)

    def accept(self, token: int) -> None:
        """Takes the next token of the answer, or ends."""
        if token in self.stop_token_ids:
            self.finished = "stop"
            return
        self.new_tokens.append(token)
        if not self.remaining:
            self.finished = "length"

    def settle(self) -> None:
        """Ends the request where no token may follow, with an error if its answer may not end there."""
        if not self.constraints or self.finished not in ("", "stop"):
            return
        over = self.finished or any(constraint.finished(self.new_tokens) for constraint in self.constraints)
        if over and all(constraint.complete(self.new_tokens) for constraint in self.constraints):
            self.finished = "stop"
        elif over:
            self.fail(
                ValueError(
                    "The answer cannot be completed in the form that was asked for: after "
                    f"{len(self.new_tokens)} tokens, no token of the vocabulary that may follow keeps to it. "
                    f"Received: an answer that begins with the token ids {self.new_tokens[:8]}"
                )
            )

    def fail(self, error: Exception) -> None:
        """Ends the request with an error."""
        self.finished, self.error = "error", error


def check_numbers(logits) -> None:
    """Raises a ValueError if logits, a NumPy array, are not numbers."""
    if np.isnan(logits).any():
        raise ValueError(NOT_NUMBERS)
