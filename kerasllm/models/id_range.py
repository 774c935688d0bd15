"""Numbers that stand for something: token ids, labels, segments."""

import dataclasses

import numpy as np

from kerasllm.targets import IGNORED


@dataclasses.dataclass(frozen=True)
class IdRange:
    """The whole numbers from 0 up to a size, and the error that names one outside of them.

    No backend but PyTorch would notice such a number: the others read another row of the table.

    Args:
        what: what a number stands for, such as "Token id".
        limit: the name of the size, such as "vocabulary_size".
        size: how many numbers there are.
        ignores: whether -100 may stand for a target that counts nothing.

    Example:
    ```python
    IdRange("Label", "num_labels", 3).check([0, 2, 1])
    ```
    """

    what: str
    limit: str
    size: int
    ignores: bool = False

    def check(self, ids) -> None:
        """Raises a ValueError that names the first number out of range, or a type that is no whole number."""
        ids = np.asarray(ids)
        if ids.size == 0:
            raise ValueError(f"There are no {self.what.lower()}s. Received: an empty array")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{self.what}s must be integers. Received: dtype={ids.dtype}")
        low, high = int(ids.min()), int(ids.max())
        if self.ignores and low == IGNORED:
            ids = np.where(ids == IGNORED, 0, ids)
            low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.size:
            raise ValueError(self.message.format(low if low < 0 else high))

    @property
    def message(self) -> str:
        """The error, with {} for the number that is out of range."""
        ignored = f", or {IGNORED} for one that does not count" if self.ignores else ""
        return (
            f"{self.what} out of range: {{}}. The model's {self.limit} is {self.size}, so "
            f"{self.what.lower()}s must be in [0, {self.size}){ignored}."
        )
