"""Batches of tokens for `model.fit`, as a pure function of (seed, epoch, step)."""

from collections.abc import Callable

import numpy as np

from kerasllm.data.counted import CountedDataset
from kerasllm.data.order import OFFSET_COUNTER, counted_hash, row_keys
from kerasllm.data.rows import Rows
from kerasllm.data.shards import TokenShards
from kerasllm.objectives.next_token import causal


class TokenDataset(CountedDataset):
    """Batches of token rows in a counted order, which goes on exactly where it was left.

    Args:
        shards: the tokens.
        sequence_length: positions in a row.
        batch_size: rows in a batch, over all ranks.
        packing: `"stream"`: the text is one long sequence; a row is a window on it and the windows follow one
            another. When shuffled, each pass after the first moves all windows by a different number of
            tokens. `"documents"`: as many whole documents in a row as fit, each on its own (`document_ids`,
            `positions`); documents longer than a row are cut in pieces.
        objective: makes `(x, y)` or `(x, y, sample_weight)` of `Rows`; see `kerasllm.objectives`. What it draws at
            random is another in each pass, but always the same in a validation set, which neither shuffles nor drops.
        shuffle: permute the rows of each pass.
        drop_remainder: leave out the rows that do not fill a batch. `False` fills the last batch up with rows
            of weight 0, and every batch has a sample weight. Defaults to `shuffle`: training drops,
            validation keeps.
        pad_token_id: token that fills up rows; its weight is 0.
        options: `seed`, `epoch`, `start_step`, `steps_per_epoch`, `rank` and `num_ranks` of `CountedDataset`.

    Batches have static shapes, with b = batch_size / num_ranks and n = sequence_length, and the default objective:
        x: dict of int32 (b, n): `"token_ids"`, and for documents `"document_ids"` and `"positions"`.
        y: int32 (b, n), the next tokens.
        sample_weight: float32 (b, n); left out if it is 1 everywhere.

    Raises:
        ValueError: an argument out of range, fewer tokens than a row needs, or fewer rows than a batch.

    Example:

    ```python
    shards = TokenShards.from_arrays([range(1000)])
    dataset = TokenDataset(shards, sequence_length=32, batch_size=4, seed=1)
    x, y = dataset[0]
    ```
    """

    def __init__(
        self,
        shards: TokenShards,
        sequence_length: int,
        batch_size: int,
        *,
        packing: str = "stream",
        objective: Callable[[Rows], tuple] = causal,
        shuffle: bool = True,
        drop_remainder: bool | None = None,
        pad_token_id: int = 0,
        **options,
    ):
        for name, value in [("sequence_length", sequence_length), ("batch_size", batch_size)]:
            if value <= 0:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        if packing not in ("stream", "documents"):
            raise ValueError(f"`packing` must be 'stream' or 'documents'. Received: packing={packing!r}")
        drop_remainder = shuffle if drop_remainder is None else drop_remainder
        needed = 2 if packing == "documents" or not drop_remainder else sequence_length + 1
        if len(shards) < needed:
            raise ValueError(
                f"The text has {len(shards)} tokens, and a sequence of {sequence_length} needs at least "
                f"{needed}. Use a shorter `sequence_length` or a longer text."
            )
        self.shards, self.sequence_length = shards, sequence_length
        self.packing, self.objective = packing, objective
        self.pad_token_id = pad_token_id
        self._bounds = _pack(shards, sequence_length) if packing == "documents" else None
        num_rows = self._count_rows(shuffle, drop_remainder)
        super().__init__(num_rows, batch_size, shuffle=shuffle, drop_remainder=drop_remainder, **options)

    @property
    def tokens_per_batch(self) -> int:
        """Positions in a batch, over all ranks."""
        return self.batch_size * self.sequence_length

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of the text for each token, where known."""
        return self.shards.bytes_per_token

    def read(self, rows: np.ndarray, real: np.ndarray, pass_index: int) -> tuple:
        starts, stops = self._windows(rows, pass_index)
        is_validation = not self.shuffle and not self.drop_remainder
        keys = row_keys(self.seed, 0 if is_validation else pass_index, rows)
        return self.objective(self._read(starts, np.where(real, stops, starts))._replace(keys=keys))

    def _count_rows(self, shuffle: bool, drop_remainder: bool) -> int:
        tokens, n = len(self.shards), self.sequence_length
        if self._bounds is not None:
            return len(self._bounds) - 1
        if not drop_remainder:
            return -(-(tokens - 1) // n)
        # A shuffled stream leaves room to move its windows, so that every pass has the same number of rows.
        return max(1, (tokens - n) // n) if shuffle else (tokens - 1) // n

    def _windows(self, rows: np.ndarray, pass_index: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of the rows' positions start and stop."""
        if self._bounds is not None:
            return self._bounds[rows], self._bounds[rows + 1]
        last, n = len(self.shards) - 1, self.sequence_length
        offset = 0
        if self.shuffle and self.drop_remainder and pass_index:
            room = min(n - 1, last - self.num_rows * n)
            offset = int(counted_hash(self.seed, pass_index, OFFSET_COUNTER)[0]) % (room + 1)
        starts = offset + rows * n
        return starts, np.minimum(starts + n, last)

    def _read(self, starts: np.ndarray, stops: np.ndarray) -> Rows:
        n = self.sequence_length
        tokens = np.full((len(starts), n + 1), self.pad_token_id, np.int32)
        for row, start, stop in zip(tokens, starts.tolist(), stops.tolist(), strict=True):
            if start < stop:
                row[: stop - start + 1] = self._read_with_next(start, stop)
        if self.packing == "stream" and self.drop_remainder:
            return Rows(tokens)
        places = starts[:, None] + np.arange(n)
        inside = places < stops[:, None]
        if self.packing == "stream":
            return Rows(tokens, inside.astype(np.float32))
        offsets = self.shards.document_offsets
        documents = np.searchsorted(offsets, places, side="right")
        goes_on = documents == np.searchsorted(offsets, places + 1, side="right")
        positions = places - np.maximum(offsets[documents - 1], starts[:, None])
        tokens[:, :n][~inside] = self.pad_token_id
        return Rows(
            tokens,
            weights=(inside & goes_on & (places + 1 < len(self.shards))).astype(np.float32),
            document_ids=np.where(inside, documents - documents[:, :1] + 1, 0).astype(np.int32),
            positions=np.where(inside, positions, 0).astype(np.int32),
        )

    def _read_with_next(self, start: int, stop: int) -> np.ndarray:
        """Tokens in [start, stop] as far as there are any, filled up with padding."""
        tokens = self.shards.read(start, min(stop + 1, len(self.shards)))
        return np.pad(tokens, (0, stop + 1 - start - len(tokens)), constant_values=self.pad_token_id)


def _pack(shards: TokenShards, sequence_length: int) -> np.ndarray:
    """Where rows of whole documents start, and the end: int64 (rows + 1,).

    Documents stay in their order, and a row takes the next ones as long as they fit, so a row is a range of
    tokens.
    """
    lengths = np.diff(shards.document_offsets, append=len(shards))
    # Documents longer than a row are cut in pieces of a row each, from the document's start.
    pieces = -(-lengths // sequence_length)
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(shards.document_offsets, pieces) + (np.arange(len(first)) - first) * sequence_length
    ends = np.append(starts[1:], len(shards))
    bounds, piece = [], 0
    while piece < len(starts):
        bounds.append(starts[piece])
        piece = np.searchsorted(ends, starts[piece] + sequence_length, side="right")
    return np.array([*bounds, len(shards)], np.int64)
