"""Rows of tokens: what a dataset hands to an objective."""

from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Token rows as an objective gets them: b rows of n positions.

    Attributes:
        tokens: int32 (b, n + 1): each row's tokens, and the one that follows.
        weights: float32 (b, n): 1 where there is a token whose next token belongs to the same document, else
            0. `None` if it is 1 everywhere.
        document_ids: int32 (b, n): 1, 2, … for the documents in the row, 0 for padding; `None` for a stream.
        positions: int32 (b, n): place in its document, from the row's start at the most; `None` for a stream.
        keys: uint64 (b,): a random number of each row, from which an objective draws all that it needs
            (`kerasllm.data.order.uniforms`). `None` will do for objectives that draw nothing.
    """

    tokens: np.ndarray
    weights: np.ndarray | None = None
    document_ids: np.ndarray | None = None
    positions: np.ndarray | None = None
    keys: np.ndarray | None = None

    @property
    def present(self) -> np.ndarray | None:
        """bool (b, n): where there is a token and not padding, which is at a row's end; `None`: everywhere.

        The very last token of a stream, which no token follows, counts as padding.
        """
        if self.document_ids is not None:
            return self.document_ids > 0
        return None if self.weights is None else self.weights > 0
