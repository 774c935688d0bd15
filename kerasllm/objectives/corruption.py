"""What the objectives that corrupt single tokens share: which positions are chosen, and the model's inputs."""

import numpy as np

from kerasllm.data.order import uniforms
from kerasllm.data.rows import Rows


def choose(
    tokens: np.ndarray, keys: np.ndarray, rate: float, eligible: np.ndarray, word_starts: np.ndarray | None = None
) -> np.ndarray:
    """Chooses a part of each row's eligible positions, at least one where there is any.

    A row's number of choices is `rate` times its eligible positions, rounded up or down at random so that the rate
    is met on average; whole words round it up to the end of the last word.

    Args:
        tokens: int (b, n).
        keys: uint64 (b,), of the rows; stream 0 is used.
        rate: in (0, 1].
        eligible: bool (b, n).
        word_starts: bool (vocabulary,): True for tokens that begin a word. A word is chosen whole or not at all;
            it ends where the eligible positions end.

    Returns:
        bool (b, n).
    """
    n = tokens.shape[1]
    drawn = uniforms(keys, n + 1)
    order, rounding = drawn[:, :n], drawn[:, n]
    counts = eligible.sum(axis=1)
    wanted = np.minimum(counts, np.floor(rate * counts + rounding)).astype(np.int64)
    if word_starts is not None:
        starts = word_starts[tokens] | ~eligible
        starts[:, 0] = True
        order = np.take_along_axis(order, np.cumsum(starts, axis=1) - 1, axis=1)
    order = np.where(eligible, order, np.inf)
    # Where none is wanted the first is taken all the same.
    last = np.take_along_axis(np.sort(order, axis=1), np.maximum(wanted - 1, 0)[:, None], axis=1)
    return eligible & (order <= last)


def inputs(rows: Rows, token_ids: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of a model that reads in both directions: padding, if there may be any, is told it."""
    if rows.document_ids is not None:
        return {"token_ids": token_ids, "document_ids": rows.document_ids, "positions": rows.positions}
    if rows.present is None:
        return {"token_ids": token_ids}
    return {"token_ids": token_ids, "padding_mask": rows.present}


def is_special(vocabulary_size: int, special_token_ids: tuple[int, ...]) -> np.ndarray:
    """bool (vocabulary,): True for the special tokens.

    Raises:
        ValueError: an id outside the vocabulary.
    """
    outside = [token_id for token_id in special_token_ids if not 0 <= token_id < vocabulary_size]
    if outside:
        raise ValueError(f"Special token ids must be in [0, {vocabulary_size}), the vocabulary. Received: {outside[0]}")
    special = np.zeros(vocabulary_size, bool)
    special[list(special_token_ids)] = True
    return special


def check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"`rate` must be in (0, 1]: the part of the tokens that is corrupted. Received: rate={rate}")
