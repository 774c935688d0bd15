"""What the layers of a model are fed on real text: the data that gptq and awq round by."""

from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from kerasllm.compression.chain import Step
from kerasllm.data.sources import read_texts
from kerasllm.models.language_model import no_gradient

BUILTIN = "builtin:pydoc"
ROWS_AT_ONCE = 8


class Inputs(NamedTuple):
    """What a layer was fed: xᵀx / rows, (in, in), and of |x| the mean and the largest, (in,)."""

    gram: np.ndarray
    sizes: np.ndarray
    largest: np.ndarray


def calibration_rows(model, source, num_rows: int = 128, length: int = 512) -> np.ndarray:
    """Rows of token ids, evenly spread over a text: int32 (rows, length), the same each time.

    Args:
        model: with a tokenizer, unless `source` is token ids.
        source: texts, or what `kerasllm.data.read_texts` takes (a file, "builtin:pydoc" …); or arrays of token ids; the
            documentation of Python when left out.
        num_rows: rows at the most.
        length: of a row; as long as the model reads, if that is less. With an encoder, half of it is the source.

    Raises:
        ValueError: the text is shorter than one row, an id is out of range, or there are only texts and no tokenizer.
    """
    source = BUILTIN if source is None else source
    length = min(length, model.config.max_sequence_length)
    wanted = num_rows * length
    ids = np.concatenate([np.zeros(0, "int32"), *_pieces(model, source, 4 * wanted)])
    model.check_token_ids(ids)
    if len(ids) < length:
        raise ValueError(
            f"The calibration text is too short: it has {len(ids)} tokens, and one row has {length}. Give more text, "
            f"or calibrate on {BUILTIN!r}."
        )
    starts = np.unique(np.linspace(0, len(ids) - length, num_rows).astype("int64"))
    return np.stack([ids[start : start + length] for start in starts]).astype("int32")


def run_step(step: Step, batches: list) -> list:
    """What a step makes of each batch."""
    with no_gradient():
        return [step(batch) for batch in batches]


def first_batches(step: Step, rows: np.ndarray) -> list:
    """What the first step of a chain makes of rows of token ids, a few at a time."""
    split = range(0, len(rows), ROWS_AT_ONCE)
    return run_step(step, [ops.convert_to_tensor(rows[start : start + ROWS_AT_ONCE]) for start in split])


def observe(step: Step, layers: dict[str, keras.layers.Layer], batches: list) -> dict[str, Inputs]:
    """What each of the layers inside of a step is fed, when it runs on these batches."""
    grams, sizes, largest, counts = {}, {}, {}, {}

    def watched(name, call):
        def run(x, *arguments, **keywords):
            values = np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")), "float32")
            values = values.reshape(-1, values.shape[-1])
            grams[name] = grams.get(name, 0.0) + (values.T @ values).astype("float64")
            absolute = np.abs(values)
            sizes[name] = sizes.get(name, 0.0) + absolute.sum(axis=0, dtype="float64")
            largest[name] = np.maximum(largest.get(name, 0.0), absolute.max(axis=0))
            counts[name] = counts.get(name, 0) + len(values)
            return call(x, *arguments, **keywords)

        return run

    for name, layer in layers.items():
        layer.call = watched(name, layer.call)
    try:
        run_step(step, batches)
    finally:
        for layer in layers.values():
            del layer.call  # The object's own; its class's is there again.
    return {name: Inputs(grams[name] / counts[name], sizes[name] / counts[name], largest[name]) for name in layers}


def _ids(piece) -> np.ndarray:
    """The token ids of a row, or of a batch of rows."""
    if isinstance(piece, dict) or (isinstance(piece, tuple) and np.ndim(piece[0])):
        raise ValueError(
            "`calibration` must be texts, a file, or rows of token ids. Received: batches of several arrays. Give "
            "their token ids alone."
        )
    return np.asarray(ops.convert_to_numpy(piece)).reshape(-1)


def _pieces(model, source, enough: int) -> Iterable[np.ndarray]:
    if not isinstance(source, str | bytes) and not hasattr(source, "__fspath__"):
        source = list(source)
        if not source:
            raise ValueError("`calibration` is empty. Give texts, a file, or rows of token ids. Received: []")
        if not isinstance(source[0], str):
            yield from map(_ids, source)
            return
    if model.tokenizer is None:
        raise ValueError(
            "`calibration` must be rows of token ids, for the model has no tokenizer to read a text with. Received: "
            f"{'the documentation of Python, its default' if source == BUILTIN else 'text'}"
        )
    tokenizer, found = model.tokenizer, 0
    for text in read_texts(source):
        ids = np.asarray(tokenizer.encode_texts([text])[0], "int32")
        yield ids
        found += len(ids)
        if found >= enough:
            return
