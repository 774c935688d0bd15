"""Span corruption: short spans of the text are cut out for the encoder, and the decoder writes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kerasllm.data.order import uniforms
from kerasllm.data.rows import Rows


@dataclass(frozen=True)
class SpanCorruption:
    """T5's span corruption.

    The encoder reads the text with each noise span replaced by a sentinel, then the end token; the decoder writes
    each sentinel, followed by its span, then the end token. How many tokens and spans are noise is a function of the
    row's length, and only where they lie is random: every batch has the same shapes, and nothing is cut or padded.
    A row begins with text and ends with a span.

    Source: Raffel et al. (2019), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer", section 3.1.4.

    Args:
        sentinel_ids: the sentinels, in the order in which they are used (`<extra_id_0>` first).
        end_token_id: ends both texts.
        pad_token_id: fills up rows where the data ends.
        rate: part of the tokens that is noise, in (0, 1).
        mean_span: tokens of a noise span, on average; at least 1.
        start_token_id: what the decoder begins with; T5 takes its padding token.

    Called with `Rows` of n positions from a stream, returns:
        x: `"encoder_token_ids"` int32 (b, encoder_length(n)) and `"decoder_token_ids"` int32 (b, target_length(n)),
            which is y one to the right. Rows that may have padding also give `"encoder_padding_mask"` and
            `"decoder_padding_mask"`, bool.
        y: int32 (b, target_length(n)).
        sample_weight: float32 like y: 0 for padding.

    Raises:
        ValueError: a setting out of range, rows of packed documents, rows too short, or too few sentinels for
            their length.

    Example:

    ```python
    objective = SpanCorruption(sentinel_ids=range(99, 89, -1), end_token_id=1, pad_token_id=0)
    n = objective.row_length(64)  # positions a row must have for an encoder that reads 64
    ```
    """

    sentinel_ids: Sequence[int]
    end_token_id: int
    pad_token_id: int
    rate: float = 0.15
    mean_span: float = 3.0
    start_token_id: int = 0

    def __post_init__(self):
        object.__setattr__(self, "sentinel_ids", tuple(self.sentinel_ids))
        if not 0 < self.rate < 1:
            raise ValueError(
                f"`rate` must be in (0, 1): the part of the tokens that is noise. Received: rate={self.rate}"
            )
        if self.mean_span < 1:
            raise ValueError(f"`mean_span` must be at least 1 token. Received: mean_span={self.mean_span}")
        if len(set(self.sentinel_ids)) != len(self.sentinel_ids) or self.end_token_id in self.sentinel_ids:
            raise ValueError(
                "`sentinel_ids` must differ from one another and from the end token. Received: "
                f"sentinel_ids={self.sentinel_ids}, end_token_id={self.end_token_id}"
            )

    def row_length(self, encoder_length: int) -> int:
        """The largest n whose corrupted text fits: it fills the encoder (short of one at rates above about 1/2).

        Raises:
            ValueError: `encoder_length` is below 3 (a token, a sentinel and the end), or needs more sentinels than
                there are.
        """
        if encoder_length < 3:
            raise ValueError(
                "The encoder must have room for a token, a sentinel and the end token. "
                f"Received: encoder_length={encoder_length}"
            )
        length = 2
        while self.encoder_length(length + 1) <= encoder_length:
            length += 1
        self._check_sentinels(length)
        return length

    def encoder_length(self, row_length: int) -> int:
        """What the encoder reads of a row: its tokens that are not noise, a sentinel a span, and the end."""
        num_noise, num_spans = self._counts(row_length)
        return row_length - num_noise + num_spans + 1

    def target_length(self, row_length: int) -> int:
        """What the decoder writes for a row: its noise tokens, a sentinel a span, and the end."""
        num_noise, num_spans = self._counts(row_length)
        return num_noise + num_spans + 1

    def __call__(self, rows: Rows) -> tuple:
        if rows.document_ids is not None:
            raise ValueError('SpanCorruption reads a stream. Received: packed documents. Use packing="stream".')
        tokens = rows.tokens[:, :-1]
        if tokens.shape[1] < 2:
            raise ValueError(f"A row must have at least 2 tokens. Received: {tokens.shape[1]}")
        self._check_sentinels(tokens.shape[1])
        present = np.ones(tokens.shape, bool) if rows.present is None else rows.present
        starts = self._segment_starts(rows.keys, tokens.shape[1])
        # Segments alternate: text, span 0, text, span 1, …
        begins = np.zeros(tokens.shape, bool)
        np.put_along_axis(begins, starts, True, axis=1)
        segment = np.cumsum(begins, axis=1) - 1
        sentinels = np.asarray(self.sentinel_ids, np.int32)[segment // 2]
        # A sentinel stands for a span that has begun before the padding.
        has_span = np.take_along_axis(np.take_along_axis(present, starts[:, 1::2], axis=1), segment // 2, axis=1)

        def without(hidden):
            """The row with each hidden segment folded into its sentinel, and the end; and where that is real."""
            keep = ~hidden | begins
            ids = np.where(hidden, sentinels, tokens)[keep].reshape(len(tokens), -1)
            mask = np.where(hidden, has_span, present)[keep].reshape(len(tokens), -1)
            ids = np.pad(ids, ((0, 0), (0, 1)), constant_values=self.end_token_id)
            mask = np.concatenate([mask, present[:, :1]], axis=1)
            order = np.argsort(~mask, axis=1, kind="stable")  # padding to the end
            ids, mask = np.take_along_axis(ids, order, axis=1), np.take_along_axis(mask, order, axis=1)
            return np.where(mask, ids, self.pad_token_id).astype(np.int32), mask

        is_noise = segment % 2 == 1
        encoder_ids, encoder_mask = without(is_noise)
        y, mask = without(~is_noise)
        decoder_ids = np.pad(y[:, :-1], ((0, 0), (1, 0)), constant_values=self.start_token_id)
        x = {"encoder_token_ids": encoder_ids, "decoder_token_ids": decoder_ids}
        if rows.present is not None:
            x.update(encoder_padding_mask=encoder_mask, decoder_padding_mask=mask)
        return x, y, mask.astype(np.float32)

    def _counts(self, row_length: int) -> tuple[int, int]:
        """Noise tokens and spans of a row."""
        num_noise = min(max(round(row_length * self.rate), 1), row_length - 1)
        num_spans = min(max(round(num_noise / self.mean_span), 1), row_length - num_noise)
        return num_noise, num_spans

    def _segment_starts(self, keys: np.ndarray, row_length: int) -> np.ndarray:
        """Where text and spans start, in turn: int64 (b, 2 × spans)."""
        num_noise, num_spans = self._counts(row_length)
        num_text = row_length - num_noise
        text = _partition(num_text, num_spans, uniforms(keys, num_text - 1))
        noise = _partition(num_noise, num_spans, uniforms(keys, num_noise - 1, stream=1))
        lengths = np.stack([text, noise], axis=2).reshape(len(keys), -1)
        return np.cumsum(lengths, axis=1) - lengths

    def _check_sentinels(self, row_length: int) -> None:
        num_spans = self._counts(row_length)[1]
        if num_spans > len(self.sentinel_ids):
            raise ValueError(
                f"A row of {row_length} tokens has {num_spans} noise spans, and each needs a sentinel. Use shorter "
                f"rows, a larger `mean_span` or more sentinels. Received: {len(self.sentinel_ids)} sentinel_ids"
            )


def _partition(total: int, parts: int, drawn: np.ndarray) -> np.ndarray:
    """`total` as a sum of `parts` positive numbers, all such sums equally likely: (b, parts), from (b, total - 1)."""
    cuts = np.sort(np.argsort(drawn, axis=1)[:, : parts - 1] + 1, axis=1)
    return np.diff(cuts, axis=1, prepend=0, append=total)
