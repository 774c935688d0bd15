"""Batches in a counted order: the base of the datasets that resume exactly."""

import zlib
from collections.abc import Iterator
from functools import cached_property, reduce

import keras
import numpy as np

from kerasllm.data.order import batch_positions, permute


class CountedDataset(keras.utils.PyDataset):
    """Batches of rows, as a pure function of (seed, epoch, step).

    The batches are one endless sequence: batch `index` is batch `start_step + index`, counted from the start of
    epoch `epoch`. Each pass over the rows is a permutation given by (seed, pass), so nothing else has to be saved
    to resume. Pass `shuffle=False` to `fit`: the order is here (kerasllm's models do so by themselves).

    `fit` moves `epoch` on at the end of an epoch. To resume, set the `epoch` and `start_step` to go on from; that
    epoch then has `start_step` fewer steps, and the later ones are whole. An epoch that `fit` leaves early begins
    again in the next `fit`.

    Args:
        num_rows: rows to take batches from.
        batch_size: rows in a batch, over all ranks.
        shuffle: permute the rows of each pass.
        seed: of the order.
        epoch, start_step: where to start.
        steps_per_epoch: batches in an epoch. Defaults to one pass over the rows. Use this for shorter (or longer)
            epochs instead of `fit`'s argument of that name, which Keras does not tell a dataset.
        rank, num_ranks: which share of each batch this process gets.
        drop_remainder: leave out the rows that do not fill a batch.

    Raises:
        ValueError: an argument out of range, or fewer rows than a batch.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        start_step: int = 0,
        steps_per_epoch: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        drop_remainder: bool = True,
    ):
        super().__init__()
        batch_positions(0, batch_size, rank, num_ranks)  # checks them
        self.num_rows, self.batch_size = num_rows, batch_size
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.num_ranks = rank, num_ranks
        self.drop_remainder = drop_remainder
        self._steps_per_pass = num_rows // batch_size if drop_remainder else -(-num_rows // batch_size)
        if not self._steps_per_pass:
            raise ValueError(
                f"There are {num_rows} rows, fewer than a batch of {batch_size}. Use a smaller `batch_size`, "
                "shorter sequences or more text."
            )
        self.steps_per_epoch = steps_per_epoch or self._steps_per_pass
        self.resume(epoch, start_step)

    def resume(self, epoch: int, start_step: int) -> None:
        """Goes on after `start_step` steps of epoch `epoch`, which may be all of them, or more."""
        if epoch < 0 or start_step < 0:
            raise ValueError(
                f"`epoch` and `start_step` must not be negative. Received: epoch={epoch}, start_step={start_step}"
            )
        further, self.start_step = divmod(start_step, self.steps_per_epoch)
        self.epoch = epoch + further
        self._in_epoch = self._is_over = False

    @property
    def local_batch_size(self) -> int:
        """Rows in a batch of this rank; all batches have as many."""
        return self.batch_size // self.num_ranks

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[tuple]:
        """The batches that are left of the epoch."""
        return (self[index] for index in range(self.steps_per_epoch - self.start_step))

    def __getitem__(self, index: int) -> tuple:
        """Batch `start_step + index` from the start of the epoch; it may lie in a later epoch."""
        if index < 0:
            raise IndexError(f"The index of a batch must not be negative. Received: {index}")
        batch = self.epoch * self.steps_per_epoch + self.start_step + index
        pass_index, step = divmod(batch, self._steps_per_pass)
        positions = batch_positions(step, self.batch_size, self.rank, self.num_ranks)
        real = positions < self.num_rows
        rows = np.where(real, positions, 0)
        if self.shuffle:
            rows = permute(rows, self.num_rows, self.seed, pass_index)
        return self.read(rows, real, pass_index)

    @cached_property
    def digest(self) -> int | None:
        """A checksum of up to 64 rows spread over the data, by which a resumed run knows it again.

        `None` for data that is made anew as training goes on.
        """
        rows = np.unique(np.linspace(0, self.num_rows - 1, 64).astype(np.int64))
        parts = keras.tree.flatten(self.read(rows, np.ones(len(rows), bool), 0))
        return reduce(lambda value, part: zlib.crc32(np.ascontiguousarray(part), value), parts, 0)

    def read(self, rows: np.ndarray, real: np.ndarray, pass_index: int) -> tuple:
        """The batch of these rows; where `real` is False there is no row, and the batch is filled up."""
        raise NotImplementedError

    @property
    def num_batches(self) -> "_EpochLength":
        """Batches in an epoch, for Keras: an integer that knows of resumed epochs."""
        return _EpochLength(self)

    def on_epoch_begin(self) -> None:
        self._in_epoch, self._is_over = True, False

    def on_epoch_end(self) -> None:
        # Keras calls this to reset, too: before the first epoch, and after a look at a batch to build the model.
        if self._is_over:
            self.resume(self.epoch + 1, 0)
        self._in_epoch = self._is_over = False

    def is_epoch_over(self, steps_seen: int) -> bool:
        """Whether a (perhaps resumed) epoch is over after this many steps since it went on."""
        over = steps_seen >= self.steps_per_epoch - self.start_step
        self._is_over = self._in_epoch and over
        return over


class _EpochLength(int):
    """The batches of a whole epoch; the dataset answers when it is compared with the steps that were made.

    Keras's `fit` asks a dataset for its number of batches once, and keeps the answer for all epochs. Before
    each step and after the last it asks `steps_seen >= num_batches`. Python puts that to the right-hand side
    first, because it is a subclass of the left's, so the dataset can say that a resumed epoch is over earlier
    than the others, and learns that an epoch was seen to its end.
    """

    def __new__(cls, dataset: CountedDataset):
        length = super().__new__(cls, dataset.steps_per_epoch)
        length._dataset = dataset
        return length

    def __le__(self, steps_seen: int) -> bool:
        return self._dataset.is_epoch_over(steps_seen)
