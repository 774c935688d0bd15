"""Texts and pairs of texts as BERT reads them: `[CLS] a [SEP]`, `[CLS] a [SEP] b [SEP]`."""

import numpy as np

from kerasllm.models.inputs import is_text, padded_rows, tokenizer_of


def is_text_rows(x) -> bool:
    """Whether it is a text, a pair of texts (a tuple), or a list of such."""
    rows = [x] if isinstance(x, str | tuple) else x
    if isinstance(rows, np.ndarray):
        return is_text(rows)
    return isinstance(rows, list) and len(rows) > 0 and all(_is_text_or_pair(row) for row in rows)


def _is_text_or_pair(row) -> bool:
    return isinstance(row, str) or (isinstance(row, tuple) and len(row) == 2 and is_text(row))


def marked_inputs(model, x, truncation: bool = False) -> dict[str, np.ndarray]:
    """The arrays of texts or pairs of texts, between the tokenizer's special tokens where it has them.

    Args:
        x: a text, a pair (a tuple of two), or a list of such.
        truncation: cut the longer text of a row that is too long, instead of raising.

    Returns:
        `token_ids` and `padding_mask`, and `segment_ids` (1 in the second text of a pair) for a model with
        segments; each (batch, longest).

    Raises:
        ValueError: no tokenizer, or a row that is longer than the model reads.
    """
    rows = [(row,) if isinstance(row, str) else row for row in ([x] if isinstance(x, str | tuple) else list(x))]
    encoded = iter(tokenizer_of(model).encode([text for row in rows for text in row]))
    marked = [
        marked_row(model, [next(encoded) for _ in row], f"text at place {place}", truncation)
        for place, row in enumerate(rows)
    ]
    inputs = padded_rows(model, [ids for ids, _ in marked])
    if model.config.num_segments > 1:
        first = np.array([[length] for _, length in marked])
        second = (np.arange(inputs["token_ids"].shape[1]) >= first) & inputs["padding_mask"]
        inputs["segment_ids"] = second.astype("int32")
    return inputs


def marked_row(model, pieces: list[list[int]], name: str, truncation: bool) -> tuple[list[int], int]:
    """Token ids of the one or two texts of a row with their special tokens, and how many are of the first."""
    start, between, end = marks_of(model)
    limit = row_limit(model)
    marks = [between] * (len(pieces) - 1) + [end]
    length = len(start) + sum(len(ids) + len(mark) for ids, mark in zip(pieces, marks))
    if length > limit and not truncation:
        raise ValueError(
            f"The {name} has {length} tokens, special ones included, and the model reads {limit}. Shorten it, or "
            "cut what is too long with truncation=True, where the task has that argument."
        )
    for _ in range(length - limit):
        longest = max(pieces, key=len)
        del longest[-1:]
    first = start + pieces[0] + marks[0]
    return first + [i for ids, mark in zip(pieces[1:], marks[1:]) for i in ids + mark], len(first)


def row_limit(model) -> int:
    """Tokens that a row of text has at the most, special ones included."""
    limit = getattr(model, "max_length", None)
    return model.config.max_sequence_length if limit is None else min(limit, model.config.max_sequence_length)


def marks_of(model) -> tuple[list[int], list[int], list[int]]:
    """What begins a row of texts, what stands between two texts, and what ends the row.

    Those of the tokenizer's own template where the model says so (`add_special_tokens`), else its start and end token.
    """
    if not getattr(model, "add_special_tokens", False):
        start, end = marks(model.tokenizer)
        return start, end, end
    one, two = (model.tokenizer.template_ids(*texts) for texts in (("a",), ("a", "a")))
    return one[0], two[1], one[-1]


def marks(tokenizer) -> tuple[list[int], list[int]]:
    """What begins a text and what ends it: each a list of one special token, or of none."""
    return tuple([] if i is None else [i] for i in (tokenizer.start_token_id, tokenizer.end_token_id))
