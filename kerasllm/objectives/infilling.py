"""Fill in the middle: a causal model learns to write what lies between a prefix and a suffix."""

from dataclasses import dataclass

import numpy as np

from kerasllm.data.order import uniforms
from kerasllm.data.rows import Rows
from kerasllm.objectives.next_token import causal


@dataclass(frozen=True)
class FillInTheMiddle:
    """Moves the middle of some rows to their end, and predicts each next token.

    A row is cut at two random places, and becomes

    - PSM: `<prefix> prefix <suffix> suffix <middle> middle`, or
    - SPM: `<prefix> <suffix> suffix <middle> prefix middle`,

    with the three sentinels (and, where given, the end token behind the middle) in place of its last three (four)
    tokens: all rows keep their length. Rows of a stream are cut wherever they are, also across documents. A row with
    padding stays as it is.

    Source: Bavarian et al. (2022), "Efficient Training of Language Models to Fill in the Middle".

    Args:
        prefix_id, middle_id, suffix_id: the sentinels; they must not occur in the text.
        rate: part of the rows to transform, in [0, 1].
        spm_rate: part of these that are SPM, in [0, 1].
        end_token_id: follows the middle, from which the model learns where to stop. `None` leaves it out.

    Called with `Rows`, returns what `causal` does.

    Raises:
        ValueError: a setting out of range, rows of packed documents, or rows too short for the sentinels.

    Example:

    ```python
    objective = FillInTheMiddle(prefix_id=97, middle_id=98, suffix_id=99)
    x, y = objective(Rows(tokens, keys=row_keys(0, 0, np.arange(len(tokens)))))
    ```
    """

    prefix_id: int
    middle_id: int
    suffix_id: int
    rate: float = 0.5
    spm_rate: float = 0.5
    end_token_id: int | None = None

    def __post_init__(self):
        for name in ("rate", "spm_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1]. Received: {name}={getattr(self, name)}")
        sentinels = (self.prefix_id, self.middle_id, self.suffix_id)
        if len(set(sentinels)) < 3:
            raise ValueError(
                "The three sentinels must differ. Received: "
                f"prefix_id={self.prefix_id}, middle_id={self.middle_id}, suffix_id={self.suffix_id}"
            )

    def __call__(self, rows: Rows) -> tuple:
        if rows.document_ids is not None:
            raise ValueError('FillInTheMiddle reads a stream. Received: packed documents. Use packing="stream".')
        end = [] if self.end_token_id is None else [self.end_token_id]
        kept = rows.tokens.shape[1] - 3 - len(end)
        if kept < 1:
            raise ValueError(
                f"A row must have more than {3 + len(end)} tokens, which the sentinels take. "
                f"Received: {rows.tokens.shape[1]}"
            )
        drawn = uniforms(rows.keys, 4)
        transformed = drawn[:, 0] < self.rate
        if rows.weights is not None:
            transformed &= (rows.weights > 0).all(axis=1)
        cuts = np.sort((drawn[:, 2:] * (kept + 1)).astype(np.int64), axis=1)
        tokens = rows.tokens.copy()
        for row in np.flatnonzero(transformed):
            prefix, middle, suffix = np.split(rows.tokens[row, :kept], cuts[row])
            if drawn[row, 1] < self.spm_rate:
                parts = [[self.prefix_id, self.suffix_id], suffix, [self.middle_id], prefix, middle, end]
            else:
                parts = [[self.prefix_id], prefix, [self.suffix_id], suffix, [self.middle_id], middle, end]
            tokens[row] = np.concatenate(parts)
        return causal(rows._replace(tokens=tokens))

    def unfill(self, tokens: np.ndarray) -> np.ndarray:
        """The text of one row, (n + 1,), in its own order, without sentinels; other rows as they are.

        Example:

        ```python
        FillInTheMiddle(97, 98, 99).unfill(np.array([97, 1, 99, 3, 98, 2]))  # [1, 2, 3]
        ```
        """
        tokens = np.asarray(tokens)
        if tokens[0] != self.prefix_id:
            return tokens
        suffix, middle = (int(np.flatnonzero(tokens == sentinel)[0]) for sentinel in (self.suffix_id, self.middle_id))
        stop = len(tokens) - (self.end_token_id is not None)
        # In SPM the first part is empty and the prefix stands before the middle: one reading serves both.
        return np.concatenate([tokens[1:suffix], tokens[middle + 1 : stop], tokens[suffix + 1 : middle]])
