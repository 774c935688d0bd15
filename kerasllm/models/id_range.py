"""Numbers that stand for something: token ids, labels, segments."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class IdRange:
    """The whole numbers from 0 up to a size, and the error that names one outside of them.

    No backend but PyTorch would notice such a number: the others read another row of the table.

    Args:
        what: what a number stands for, such as "Token id".
        limit: the name of the size, such as "vocabulary_size".
        size: how many numbers there are.

    Example:
    ```python
    IdRange("Label", "num_labels", 3).check([0, 2, 1])
    ```
    """

    what: str
    limit: str
    size: int

    def check(self, ids) -> None:
        """Raises a ValueError that names the first number out of range, or a type that is no whole number."""
        ids = np.asarray(ids)
        if ids.size == 0:
            raise ValueError(f"There are no {self.what.lower()}s. Received: an empty array")
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{self.what}s must be integers. Received: dtype={ids.dtype}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.size:
            raise ValueError(
                f"{self.what} out of range: {low if low < 0 else high}. The model's {self.limit} is {self.size}, so "
                f"{self.what.lower()}s must be in [0, {self.size})."
            )

    @property
    def message(self) -> str:
        """The error where the number is not known."""
        return f"{self.what} out of range: the model's {self.limit} is {self.size}"
