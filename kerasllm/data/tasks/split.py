"""Which examples are held out, and how many are asked for."""

import zlib
from collections.abc import Sequence

import numpy as np

from kerasllm.data.order import counted_hash

PARTS = ("train", "validation")
_HELD_OUT_STREAM = -1  # draws count their streams from 0


def in_part(part: str, keys: np.ndarray, one_in: int = 10) -> np.ndarray:
    """Which keys belong to a part: by its hash alone, one in ten is for validation.

    Args:
        part: `"train"` or `"validation"`.
        keys: integers, of shape (n,).
        one_in: of how many keys one is held out.

    Returns:
        bool array (n,).

    Raises:
        ValueError: there is no such part.

    Example:

    ```python
    held_out = in_part("validation", np.arange(100))
    ```
    """
    if part not in PARTS:
        raise ValueError(f"`part` must be one of {', '.join(map(repr, PARTS))}. Received: {part!r}")
    held_out = counted_hash(0, _HELD_OUT_STREAM, keys) % one_in == 0
    return held_out if part == "validation" else ~held_out


def names_in_part(part: str, names: Sequence[str]) -> np.ndarray:
    """Which names of modules belong to a part, one in five to validation; see `in_part`: bool array (n,)."""
    return in_part(part, np.array([zlib.crc32(name.encode()) for name in names], np.int64), one_in=5)


def check_count(name: str, count: int) -> None:
    """Raises ValueError unless `count` is an integer that is not negative."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ValueError(f"`{name}` must be an integer that is not negative. Received: {count!r}")
