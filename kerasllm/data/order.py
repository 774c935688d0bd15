"""The order of training rows as a counted permutation.

Nothing is shuffled and nothing is stored: row `index` of an epoch is a function of (index, seed, epoch). A
Feistel network permutes the next power of four above n, and walking its cycles back into [0, n) permutes
exactly n (format-preserving encryption: Black and Rogaway, 2002, "Ciphers with arbitrary finite domains").
"""

import numpy as np

_ROUNDS = 8
# counted_hash's counters, so that no two uses meet: the network's rounds from 0, a stream's offset, and rows.
OFFSET_COUNTER, _FIRST_ROW_COUNTER = 1 << 32, 1 << 33


def permute(index: np.ndarray | int, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where each index of an epoch is found: a bijection of [0, n), different for each (seed, epoch).

    Args:
        index: integers in [0, n), of any shape.
        n: how many there are.
        seed: an integer.
        epoch: an integer.

    Returns:
        int64 array of index's shape, in [0, n).

    Raises:
        ValueError: an index is outside [0, n).

    Example:

    ```python
    order = permute(np.arange(10), 10, seed=0, epoch=3)
    ```
    """
    index = np.asarray(index)
    if index.size and (index.min() < 0 or index.max() >= n):
        raise ValueError(f"`index` must be in [0, {n}). Received: {index.min()} to {index.max()}")
    half_bits = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    keys = counted_hash(seed, epoch, np.arange(_ROUNDS))
    flat = _feistel(index.reshape(-1).astype(np.uint64), half_bits, keys)
    # A cycle that leaves [0, n) comes back: follow it. At most three in four are outside at each turn.
    while (outside := np.flatnonzero(flat >= n)).size:
        flat[outside] = _feistel(flat[outside], half_bits, keys)
    return flat.astype(np.int64).reshape(index.shape)


def batch_rows(
    epoch: int, step: int, batch_size: int, n: int, seed: int, rank: int = 0, num_ranks: int = 1
) -> np.ndarray:
    """The rows of one batch of an epoch, or one rank's share of them.

    All ranks together get the same rows however many they are, so a run may go on with more or fewer ranks.

    Args:
        epoch, step: which batch: `step` is in [0, n // batch_size).
        batch_size: rows of the whole batch, over all ranks.
        n: rows of the data.
        seed: an integer.
        rank, num_ranks: which share of how many.

    Returns:
        int64 array (batch_size // num_ranks,).

    Raises:
        ValueError: `batch_size` is not a multiple of `num_ranks`, or the batch lies outside the epoch.

    Example:

    ```python
    rows = batch_rows(epoch=0, step=2, batch_size=16, n=1000, seed=0)
    ```
    """
    return permute(batch_positions(step, batch_size, rank, num_ranks), n, seed, epoch)


def batch_positions(step: int, batch_size: int, rank: int, num_ranks: int) -> np.ndarray:
    """Places in the epoch's order that a rank's share of a batch takes: int64 (batch_size // num_ranks,)."""
    if batch_size % num_ranks or not 0 <= rank < num_ranks:
        raise ValueError(
            "`batch_size` must be a multiple of `num_ranks`, and `rank` in [0, num_ranks). "
            f"Received: batch_size={batch_size}, rank={rank}, num_ranks={num_ranks}"
        )
    share = batch_size // num_ranks
    return step * batch_size + rank * share + np.arange(share)


def counted_hash(seed: int, epoch: int, counter: np.ndarray | int) -> np.ndarray:
    """A uint64 for each (seed, epoch, counter), as if drawn at random (splitmix64: Steele et al., 2014)."""
    state = _mix(np.asarray([seed], np.int64).view(np.uint64))
    state = _mix(state ^ np.asarray([epoch], np.int64).view(np.uint64))
    return _mix(state ^ np.atleast_1d(np.asarray(counter)).astype(np.uint64))


def row_keys(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """A random key for each row, which all that is drawn for it is a function of.

    Args:
        seed: an integer.
        epoch: an integer: the pass over the data.
        rows: integers in [0, 2**48), (b,).

    Returns:
        uint64 (b,).

    Example:

    ```python
    keys = row_keys(seed=0, epoch=3, rows=np.arange(16))
    ```
    """
    return counted_hash(seed, epoch, np.asarray(rows) + _FIRST_ROW_COUNTER)


def uniforms(keys: np.ndarray, n: int, stream: int = 0) -> np.ndarray:
    """n random numbers in [0, 1) for each key, the same at every call.

    Args:
        keys: uint64 (b,), of `row_keys`.
        n: how many for each key. More numbers begin with the fewer ones.
        stream: which numbers: those of different streams have nothing to do with one another.

    Returns:
        float64 (b, n), multiples of 2**-53.

    Raises:
        ValueError: there are no keys.

    Example:

    ```python
    chosen = uniforms(row_keys(0, 0, np.arange(16)), 128) < 0.15
    ```
    """
    if keys is None:
        raise ValueError(
            "The rows carry no `keys`, from which this objective draws. Give them "
            "Rows(..., keys=kerasllm.data.order.row_keys(seed, epoch, row_numbers)). Received: keys=None"
        )
    states = _mix(np.asarray(keys, np.uint64) ^ np.uint64(stream))[:, None] ^ np.arange(n, dtype=np.uint64)
    return (_mix(states) >> np.uint64(11)) * 2.0**-53


def _feistel(values: np.ndarray, half_bits: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


def _mix(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
