"""Lists of token ids as arrays of one length."""

from collections.abc import Sequence

import numpy as np


def padded(
    rows: Sequence[Sequence[int]], length: int, pad_token_id: int, name: str, limit: str, truncation: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids, filled up on the right.

    Args:
        rows: token ids of each row; none may be empty.
        length: of every row of the result.
        pad_token_id: what fills up.
        name, limit: what a row and the length are called in errors.
        truncation: cut what is too long, instead of raising.

    Returns:
        token ids int32 (b, length), and bool (b, length), True where they are not padding.

    Raises:
        ValueError: there are no rows, one is empty, or one is too long.
    """
    if len(rows) == 0:
        raise ValueError(f"There must be at least one {name}. Received: an empty list")
    token_ids = np.full((len(rows), length), pad_token_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for place, row in enumerate(rows):
        if len(row) == 0:
            raise ValueError(f"A {name} must have at least one token. Received: an empty {name} at place {place}")
        if len(row) > length and not truncation:
            raise ValueError(
                f"The {name} at place {place} is too long for `{limit}`={length}: raise that, or cut what is too long "
                f"with truncation=True. Received: {len(row)} tokens"
            )
        row = row[:length]
        token_ids[place, : len(row)], mask[place, : len(row)] = row, True
    return token_ids, mask
