"""Instruction tuning: predict each next token, but learn only from the assistant's."""

from dataclasses import dataclass

import numpy as np

from kerasllm.data.rows import Rows
from kerasllm.objectives.next_token import causal


@dataclass(frozen=True)
class Instruction:
    """Predicts each next token where that token is part of an answer; all others carry no loss.

    Which tokens are, the rows say themselves: an answer's token has its id raised by the vocabulary's size, so that
    rows of a stream, packed or cut, need nothing beside their tokens. `mark` raises them, and the objective takes it
    back.

    Source: Ouyang et al. (2022), "Training language models to follow instructions with human feedback".

    Args:
        vocabulary_size: of the tokenizer.

    Called with `Rows`, returns what `causal` does, always with weights.

    Raises:
        ValueError: a token to mark is outside the vocabulary.

    Example:

    ```python
    objective = Instruction(vocabulary_size=10)
    tokens = objective.mark([5, 6, 7], [False, False, True])  # [5, 6, 17]
    x, y, weights = objective(Rows(tokens[None]))  # weights [[0, 1]]
    ```
    """

    vocabulary_size: int

    def mark(self, token_ids, is_answer) -> np.ndarray:
        """Token ids (length,), raised where `is_answer` (length,) is True: int32 (length,)."""
        token_ids = np.asarray(token_ids, np.int32)
        if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < self.vocabulary_size:
            raise ValueError(
                f"Token ids must be in [0, {self.vocabulary_size}), the vocabulary. "
                f"Received: {token_ids.min()} to {token_ids.max()}"
            )
        return token_ids + self.vocabulary_size * np.asarray(is_answer, np.int32)

    def __call__(self, rows: Rows) -> tuple:
        is_answer = (rows.tokens >= self.vocabulary_size)[:, 1:].astype(np.float32)
        weights = is_answer if rows.weights is None else is_answer * rows.weights
        return causal(rows._replace(tokens=rows.tokens % self.vocabulary_size, weights=weights))
