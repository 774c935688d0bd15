"""A batch as text: what the model sees, and what it has to predict."""

from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np

from kerasllm.data.rows import Rows
from kerasllm.objectives.replaced_tokens import GeneratedTokens, ReplacedTokens
from kerasllm.tokenizers import Tokenizer


def show(objective: Callable[[Rows], tuple], batch: Rows | tuple, tokenizer: Tokenizer, row: int = 0) -> str:
    """One row of a batch as readable text.

    - A token that is read from both sides and carries loss is shown as `[seen→original]`: `the [MASK→cat] sat`.
    - What is predicted from its left is shown between ⟦ and ⟧; the rest is only read.
    - A seq2seq row is shown as an `encoder:` and a `decoder:` line.
    - Other targets are shown by name: `next_sentence: 0`.

    Args:
        objective: what made the batch, or makes it of `Rows`.
        batch: `Rows`, or `(x, y)` or `(x, y, sample_weight)`, an item of a dataset.
        tokenizer: whose ids they are.
        row: which row.

    Returns:
        The text, without padding.

    Example:

    ```python
    print(show(train.objective, train[0], tokenizer))
    ```
    """
    x, y, *rest = objective(batch) if isinstance(batch, Rows) else batch
    weights = rest[0] if rest else None
    if "encoder_token_ids" in x:
        return _seq2seq(x, y, weights, row, tokenizer)
    if isinstance(y, dict):
        return _pair(x, y, weights, row, tokenizer)
    seen, counts = x["token_ids"][row], _counts(y, weights, row)
    if isinstance(objective, ReplacedTokens):
        original = batch.tokens[row, :-1] if isinstance(batch, Rows) else None
        return _corrupted(tokenizer, seen, original, y[row] == 1, _real(x, row))
    if isinstance(objective, GeneratedTokens):
        counts = np.isin(np.arange(len(seen)), x["masked_positions"][row])
        return _corrupted(tokenizer, seen, y[row], counts, _real(x, row))
    if np.array_equal(x["token_ids"][:, 1:], y[:, :-1]):
        # Each position predicts the next one, and y has one more than the model sees.
        ids, is_predicted = np.append(seen, y[row, -1]), np.append(False, counts)
        is_read = np.append(x["document_ids"][row] > 0, False) if "document_ids" in x else is_predicted
        stop = np.flatnonzero(is_predicted | is_read).max(initial=-1) + 1
        return _predicted(tokenizer, ids[:stop], is_predicted[:stop])
    return _corrupted(tokenizer, seen, y[row], counts, _real(x, row))


def _seq2seq(x: dict, y: np.ndarray, weights: np.ndarray | None, row: int, tokenizer: Tokenizer) -> str:
    source = x["encoder_token_ids"][row][_real(x, row, "encoder_")]
    # In front of the targets stands what the decoder begins with.
    ids = np.append(x["decoder_token_ids"][row, :1], y[row][_counts(y, weights, row)])
    return f"encoder: {_text(tokenizer, source)}\ndecoder: {_predicted(tokenizer, ids, np.arange(len(ids)) > 0)}"


def _pair(x: dict, y: dict, weights: dict, row: int, tokenizer: Tokenizer) -> str:
    seen, original, counts = x["token_ids"][row], None, np.zeros(x["token_ids"].shape[1], bool)
    if "masked_lm" in y:
        original, counts = y["masked_lm"][row], weights["masked_lm"][row] > 0
    text = _corrupted(tokenizer, seen, original, counts, _real(x, row))
    return "\n".join([text, *(f"{name}: {values[row]}" for name, values in y.items() if values.ndim == 1)])


def _counts(y: np.ndarray, weights: np.ndarray | None, row: int) -> np.ndarray:
    return np.ones(y.shape[1], bool) if weights is None else weights[row] > 0


def _real(x: dict, row: int, side: str = "") -> np.ndarray:
    """Where there is no padding."""
    if "document_ids" in x:
        return x["document_ids"][row] > 0
    if f"{side}padding_mask" in x:
        return x[f"{side}padding_mask"][row]
    return np.ones(x[f"{side}token_ids"].shape[1], bool)


def _corrupted(
    tokenizer: Tokenizer, seen: np.ndarray, original: np.ndarray | None, marked: np.ndarray, real: np.ndarray
) -> str:
    parts = []
    for is_marked, places in _runs(marked, np.flatnonzero(real)):
        if not is_marked:
            parts.append(_text(tokenizer, seen[places]))
            continue
        for place in places:
            right = "?" if original is None else _text(tokenizer, original[[place]])
            blank = " " if right.startswith(" ") and right.strip() else ""
            parts.append(f"{blank}[{_word(_text(tokenizer, seen[[place]]))}→{_word(right)}]")
    return _joined(tokenizer, parts)


def _predicted(tokenizer: Tokenizer, ids: np.ndarray, is_predicted: np.ndarray) -> str:
    runs = ((flag, _text(tokenizer, ids[places])) for flag, places in _runs(is_predicted, np.arange(len(ids))))
    return _joined(tokenizer, [f"⟦{text}⟧" if flag else text for flag, text in runs])


def _runs(flags: np.ndarray, places: np.ndarray) -> Iterator[tuple[bool, list[int]]]:
    for flag, run in groupby(places.tolist(), key=lambda place: bool(flags[place])):
        yield flag, list(run)


def _text(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    text = tokenizer.decode(ids)
    # Some decoders drop the blank at a text's start, which is in the middle here.
    begins_with_blank = len(ids) > 0 and tokenizer.id_to_token(int(ids[0])).startswith("▁")
    return f" {text}" if begins_with_blank and not text.startswith(" ") else text


def _word(text: str) -> str:
    """A token between brackets: blanks only if it is nothing else, no brackets of its own."""
    return text.strip().strip("[]") or text.strip() or repr(text)[1:-1]


def _joined(tokenizer: Tokenizer, parts: list[str]) -> str:
    return (" " if tokenizer.kind == "wordpiece" else "").join(parts)
