import numpy as np

from kerasllm.data.order import row_keys
from kerasllm.data.rows import Rows


def rows_of(tokens, seed=0, pass_index=0, **fields) -> Rows:
    tokens = np.asarray(tokens, np.int32)
    return Rows(tokens, keys=row_keys(seed, pass_index, np.arange(len(tokens))), **fields)


def random_rows(num_rows, n, low=10, high=100, seed=0, **fields) -> Rows:
    """Rows of ordinary tokens, in [low, high)."""
    tokens = np.random.default_rng(seed).integers(low, high, (num_rows, n + 1))
    return rows_of(tokens, seed, **fields)


def ending_at(lengths, n) -> np.ndarray:
    """Weights of a stream's rows that have so many next tokens."""
    return (np.arange(n) < np.asarray(lengths)[:, None]).astype(np.float32)
