"""Next-sentence prediction: tell whether the second text continues the first."""

from dataclasses import dataclass

import numpy as np

from kerasllm.data.order import uniforms
from kerasllm.data.rows import Rows
from kerasllm.objectives.masked import MaskedLM


@dataclass(frozen=True, eq=False)
class NextSentence:
    """BERT's next-sentence prediction: `[CLS] A [SEP] B [SEP]`, where B continues A or comes from another row.

    A row is cut in its middle half. Its second part, or as many last tokens of another row of the batch, is B, so
    lengths tell nothing. Of packed documents each row's first one is used. Only rows of the batch are known apart:
    two pieces of one long document may meet, but a B that is equal to A's own continuation is never called another.

    Source: Devlin et al. (2018), "BERT: Pre-training of Deep Bidirectional Transformers", section 3.1.

    Args:
        class_id, separator_id: `[CLS]` and `[SEP]`.
        pad_token_id: fills up rows.
        rate: part of the rows to get a B of another row, in [0, 1].
        masked: a `MaskedLM` to apply to the pairs; BERT trains on both at once. It never chooses the three tokens
            added here.

    Called with `Rows` of n positions, returns:
        x: `"token_ids"` int32, `"segment_ids"` int32 (0 for `[CLS] A [SEP]`, 1 for `B [SEP]`) and `"padding_mask"`
            bool, each (b, n + 3).
        y: `"next_sentence"` int32 (b,), as in BERT: 0 if B continues A, 1 if not. With `masked` also `"masked_lm"`
            int32 (b, n + 3), the original tokens.
        sample_weight: float32, for each of y: 0 for rows of fewer than 2 tokens, and where nothing was masked.

    Raises:
        ValueError: a setting out of range, rows without `keys`, or a single row where others are to be drawn from.

    Example:

    ```python
    objective = NextSentence(class_id=2, separator_id=3)
    x, y, weights = objective(Rows(tokens, keys=row_keys(0, 0, np.arange(len(tokens)))))
    ```
    """

    class_id: int
    separator_id: int
    pad_token_id: int = 0
    rate: float = 0.5
    masked: MaskedLM | None = None

    def __post_init__(self):
        if not 0 <= self.rate <= 1:
            raise ValueError(
                f"`rate` must be in [0, 1]: the part of the pairs that do not go on. Received: rate={self.rate}"
            )

    def row_length(self, length: int) -> int:
        """Positions a row must have for a model that reads `length` tokens: three are added."""
        if length < 5:
            raise ValueError(
                f"A pair takes at least 5 tokens: two, and the three that are added. Received: length={length}"
            )
        return length - 3

    def __call__(self, rows: Rows) -> tuple:
        tokens = rows.tokens[:, :-1]
        num_rows, n = tokens.shape
        if self.rate and num_rows < 2:
            raise ValueError(
                "The second texts come from other rows of the batch: it must have at least 2 on each rank. Received: 1"
            )
        lengths = _text_lengths(rows)
        drawn = uniforms(rows.keys, 3, stream=3)  # streams 0 to 2 are MaskedLM's
        quarter = lengths // 4
        cuts = np.clip(
            quarter + (drawn[:, 0] * (lengths - 2 * quarter)).astype(np.int64), 1, np.maximum(lengths - 1, 1)
        )

        token_ids = np.full((num_rows, n + 3), self.pad_token_id, np.int32)
        segment_ids = np.zeros((num_rows, n + 3), np.int32)
        padding_mask, is_added = np.zeros((2, num_rows, n + 3), bool)
        is_other = np.zeros(num_rows, np.int32)
        for row in np.flatnonzero(lengths >= 2):
            cut, length = cuts[row], lengths[row]
            first, second = tokens[row, :cut], tokens[row, cut:length]
            others = np.flatnonzero((lengths >= len(second)) & (np.arange(num_rows) != row))
            if drawn[row, 1] < self.rate and len(others):
                other = others[int(drawn[row, 2] * len(others))]
                continuation, second = second, tokens[other, lengths[other] - len(second) : lengths[other]]
                is_other[row] = not np.array_equal(second, continuation)
            added = [0, cut + 1, length + 2]
            token_ids[row, : length + 3] = np.concatenate(
                [[self.class_id], first, [self.separator_id], second, [self.separator_id]]
            )
            segment_ids[row, cut + 2 : length + 3] = 1
            padding_mask[row, : length + 3] = True
            is_added[row, added] = True

        y, weights = {"next_sentence": is_other}, {"next_sentence": (lengths >= 2).astype(np.float32)}
        if self.masked is not None:
            y["masked_lm"] = token_ids
            token_ids, chosen = self.masked.corrupt(token_ids, rows.keys, padding_mask & ~is_added)
            weights["masked_lm"] = chosen.astype(np.float32)
        return {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}, y, weights


def _text_lengths(rows: Rows) -> np.ndarray:
    """Tokens of each row's text, or of its first document: int64 (b,)."""
    if rows.document_ids is not None:
        return (rows.document_ids == 1).sum(axis=1)
    if rows.present is None:
        return np.full(len(rows.tokens), rows.tokens.shape[1] - 1)
    return rows.present.sum(axis=1)
