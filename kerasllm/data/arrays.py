"""Batches of arrays in a counted order."""

import keras
import numpy as np

from kerasllm.data.counted import CountedDataset


class ArrayDataset(CountedDataset):
    """Rows of arrays in memory, in an order that is another one each epoch and resumes exactly.

    Args:
        x, y, sample_weight: arrays, or (nested) dicts of arrays, with the same number of rows; `sample_weight`
            may be `None`, and so may `y`.
        batch_size: rows in a batch.
        fill_last: fill the last batch up with rows of weight 0, so that all shapes are the same; otherwise the
            last batch is smaller.
        shuffle, seed and others: see `CountedDataset`.

    Raises:
        ValueError: the arrays differ in rows.

    Example:

    ```python
    dataset = ArrayDataset({"token_ids": ids}, next_ids, batch_size=8, shuffle=True)
    x, y = dataset[0]
    ```
    """

    def __init__(self, x, y=None, sample_weight=None, batch_size=32, *, fill_last=True, shuffle=False, **options):
        parts = (x,) if y is None else (x, y) if sample_weight is None else (x, y, sample_weight)
        rows = {len(a) for a in keras.tree.flatten(parts)}
        if len(rows) != 1:
            raise ValueError(f"Inputs, targets and weights must have the same number of rows. Received: {sorted(rows)}")
        num_rows = rows.pop()
        super().__init__(num_rows, batch_size, shuffle=shuffle, drop_remainder=False, **options)
        if fill_last and num_rows % batch_size and len(parts) == 2:
            parts = (x, y, keras.tree.map_structure(lambda a: np.ones(np.shape(a), "float32"), y))
        self.parts = parts
        self._fill_last = fill_last

    @property
    def local_batch_size(self) -> int | None:
        static = self._fill_last or not self.num_rows % self.batch_size
        return super().local_batch_size if static else None

    def read(self, rows, real, pass_index):
        if not self._fill_last:
            rows = rows[real]
        batch = keras.tree.map_structure(lambda a: a[rows], self.parts)
        if self._fill_last and len(batch) == 3 and not real.all():
            batch = (*batch[:2], keras.tree.map_structure(lambda weights: _only(real, weights), batch[2]))
        return batch


def _only(real, weights):
    """The weights, 0 for rows that are not real."""
    return weights * real.reshape(-1, *[1] * (weights.ndim - 1)).astype(weights.dtype)
