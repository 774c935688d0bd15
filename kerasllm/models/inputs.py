"""Rows of text or arrays that users hand to fit, evaluate, predict and score, as the arrays that the model reads."""

import keras
import numpy as np

from kerasllm.data.arrays import ArrayDataset
from kerasllm.data.dataset import TokenDataset
from kerasllm.data.shards import TokenShards
from kerasllm.objectives.next_token import causal
from kerasllm.targets import IGNORED

SHAPES_DIFFER = "Targets must have the shape of what they are for. Received: y of shape {}, inputs of shape {}."


def causal_rows(model, x, y, sample_weight, batch_size, shuffle):
    """Batches of (x, next tokens[, weights]) from the rows that `CausalLM.fit` takes; see there."""
    if is_text(x):
        end = tokenizer_of(model).end_token_id
        texts = [x] if isinstance(x, str) else list(x)
        documents = [ids + ([] if end is None else [end]) for ids in model.tokenizer.encode_texts(texts)]
        return packed_data(model, documents, causal, batch_size, shuffle)
    inputs = model_inputs(model, x, spare=int(y is None))
    if y is None:
        inputs, y, sample_weight = _shifted(inputs, sample_weight)
    else:
        check_next_tokens(inputs["token_ids"], y)
    return array_data(model, inputs, y, sample_weight, batch_size, shuffle)


def array_data(model, inputs, y, sample_weight, batch_size, shuffle):
    """Batches of arrays, their targets and weights checked."""
    if y is None:
        raise ValueError(f"A {type(model).__name__} trains on targets too. Received: y=None")
    y, sample_weight = checked_targets(model, inputs, y, sample_weight)
    return ArrayDataset(inputs, y, sample_weight, batch_size, shuffle=shuffle, fill_last=model.uses_default_loss)


def checked_targets(model, inputs, y, sample_weight=None):
    """Targets and weights as arrays, or dicts of them, of the shapes that belong to the inputs.

    Raises:
        ValueError: a target out of range, another shape, or a weight that is not finite or is negative.
    """
    y = keras.tree.map_structure(_as_array, y)
    model.check_targets(y)
    if isinstance(y, dict):
        given = sample_weight or {}
        parts = {name: _checked_part(model, inputs, y[name], given.get(name), name) for name in y}
        weights = {name: np.ones(y[name].shape, "float32") if w is None else w for name, w in parts.items()}
        return y, weights if given else None
    return y, _checked_part(model, inputs, y, sample_weight)


def _checked_part(model, inputs, y, sample_weight, name=None):
    """The weights of one kind of targets."""
    wanted = tuple(target_shape(model, {key: np.shape(value) for key, value in inputs.items()}, name))
    if y.shape != wanted:
        raise ValueError(SHAPES_DIFFER.format(y.shape, wanted))
    if sample_weight is None:
        if not model.ignores_labels and (y == IGNORED).any():
            raise ValueError(
                f"A loss function of your own sees all targets, those of {IGNORED} too. Give `sample_weight`, 0 for "
                "those that do not count, or use a loss of Keras's."
            )
        return None
    # Several labels a row have one weight, that of the row.
    return item_weights(sample_weight, y.shape[:1] if getattr(model, "multi_label", False) else y.shape)


def target_shape(model, shapes: dict, name: str | None = None):
    """The shape of targets for inputs of these shapes: one for each token, or one for each row.

    Args:
        name: of the targets, where there are several kinds.
    """
    tokens = shapes["decoder_token_ids" if "decoder_token_ids" in shapes else "token_ids"]
    if getattr(model, "multi_label", False):
        return tokens[0], model.num_labels
    return tokens[: model.target_axes if name is None else model.target_axes_of[name]]


def _as_array(values):
    return keras.ops.convert_to_numpy(values) if hasattr(values, "shape") else np.asarray(values)


def packed_data(model, documents: list[list[int]], objective, batch_size: int, shuffle: bool) -> TokenDataset:
    """Batches of an objective on documents: as many in a row as fit, and none sees another."""
    tokenizer = model.tokenizer
    return TokenDataset(
        TokenShards.from_arrays(documents, tokenizer_fingerprint=tokenizer and tokenizer.fingerprint),
        sequence_length=min(model.config.max_sequence_length, max(2, *map(len, documents))),
        batch_size=batch_size,
        packing="documents",
        objective=objective,
        shuffle=shuffle,
        drop_remainder=False,
        pad_token_id=pad_token_id(model),
    )


def model_inputs(model, x, spare: int = 0) -> dict[str, np.ndarray]:
    """The dict of arrays that the model reads: texts and ragged lists are padded on the right and masked.

    Args:
        spare: tokens that a row may have beyond the model's context, because they are only targets.
    """
    if is_text(x):
        x = tokenizer_of(model).encode_texts([x] if isinstance(x, str) else list(x))
    if isinstance(x, list | tuple):
        x = padded_rows(model, x)
    elif not isinstance(x, dict):
        x = {"token_ids": keras.ops.convert_to_numpy(x)}
    inputs = {key: keras.ops.convert_to_numpy(value) for key, value in x.items() if value is not None}
    if "token_ids" not in inputs:
        raise ValueError(f"The inputs lack 'token_ids'. Received keys: {list(inputs)}")
    model.check_inputs(inputs)
    _check_padding(model, inputs)
    ids = inputs["token_ids"]
    if ids.ndim != 2:
        raise ValueError(f"`token_ids` must be (batch, length). Received: shape={ids.shape}")
    limit = model.config.max_sequence_length
    if ids.shape[1] > limit + spare:
        raise ValueError(f"The sequence has {ids.shape[1]} tokens, and the model's context is {limit}.")
    return inputs


def _check_padding(model, inputs) -> None:
    """Refuses padding on the left where positions would be counted with it."""
    mask = inputs.get("padding_mask")
    if mask is None or "positions" in inputs or model.config.positions not in ("learned", "sinusoidal"):
        return
    mask = mask.astype(bool)
    if mask.ndim == 2 and (begins_late := mask.any(axis=1) & ~mask[:, 0]).any():
        remedy = "Pad on the right" + (", or give `positions`" if "positions" in model.input_keys else "")
        raise ValueError(
            f"Row {int(begins_late.argmax())} of `padding_mask` begins with padding, and this model's "
            f"{model.config.positions} positions would be counted from there. {remedy}."
        )


def padded_rows(model, rows) -> dict[str, np.ndarray]:
    """Lists of token ids as `token_ids` and `padding_mask` (batch, longest), filled up on the right."""
    if len(rows) == 0 or any(np.size(row) == 0 for row in rows):
        raise ValueError("There is nothing to read: an empty list or an empty text. Give at least one token.")
    rows = [np.asarray(row) for row in rows]
    if any(row.ndim != 1 for row in rows):
        raise ValueError(
            "A list of token ids must be a list of rows, each a list of integers. "
            f"Received: rows of shape {rows[0].shape}"
        )
    ids = np.full((len(rows), max(map(len, rows))), pad_token_id(model), "int32")
    mask = np.zeros(ids.shape, "bool")
    for i, row in enumerate(rows):
        model.check_token_ids(row)
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return {"token_ids": ids, "padding_mask": mask}


def single(text):
    """What is one text, or one row of token ids, as it is.

    Raises:
        ValueError: it is several.
    """
    is_several = isinstance(text, list) and any(isinstance(part, str) for part in text)
    if not isinstance(text, str) and (is_several or np.ndim(text) > 1):
        what = f"{len(text)} texts" if is_several else f"rows of shape {np.shape(text)}"
        raise ValueError(f"One text, or one row of token ids, is read at a time. Received: {what}. Give one of them.")
    return text


def pad_token_id(model) -> int:
    return (model.tokenizer and model.tokenizer.pad_token_id) or 0


def tokenizer_of(model):
    """The model's tokenizer, or an error where there is none."""
    if model.tokenizer is None:
        raise ValueError("The model has no tokenizer, so it reads token ids. Received: text")
    return model.tokenizer


def is_text(x) -> bool:
    if isinstance(x, str):
        return True
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "US" or (x.dtype == object and all(isinstance(s, str) for s in x.flat))
    return isinstance(x, list | tuple) and len(x) > 0 and all(isinstance(s, str) for s in x)


def item_weights(sample_weight, shape):
    """A weight for each row, as Keras allows, is one for each of its tokens.

    Raises:
        ValueError: weights of another shape, or one that is not finite or is negative.
    """
    weights = _as_array(sample_weight)
    if weights.shape not in (shape, shape[:1], (*shape[:1], 1)):
        raise ValueError(
            f"Weights must be one for each target, {shape}, or one for each row, {shape[:1]}. "
            f"Received: sample_weight of shape {weights.shape}"
        )
    check_weights(weights)
    return np.broadcast_to(weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape)


def check_weights(weights) -> None:
    """Raises a ValueError unless weights are finite, and not negative."""
    is_right = np.isfinite(weights) & (weights >= 0)
    if not is_right.all():
        raise ValueError(f"Weights must be finite and not negative. Received: {weights[~is_right].flat[0]}")


def check_row_shapes(inputs: dict) -> None:
    """Raises a ValueError if a mask or the segments have another shape than the tokens that they are for."""
    for key, value in inputs.items():
        tokens = inputs.get(f"{key.split('_')[0]}_token_ids" if "coder_" in key else "token_ids")
        if key.endswith(("padding_mask", "segment_ids", "document_ids")) and hasattr(tokens, "shape"):
            shape, wanted = getattr(value, "shape", None), tokens.shape
            if (
                shape is None
                or len(shape) != len(wanted)
                or any(a != b for a, b in zip(shape, wanted) if a is not None and b is not None)
            ):
                raise ValueError(
                    f"`{key}` must have the shape of the tokens. Received: {key} of shape {tuple(shape or ())}, tokens "
                    f"of shape {tuple(wanted)}"
                )


def split_rows(arrays, fraction: float):
    """(the first rows, the last `fraction` of them) of a tuple of strings, arrays or dicts of arrays."""
    if isinstance(arrays[0], list):
        sizes = [len(arrays[0])]  # of texts, or of rows of their own lengths
    else:
        sizes = [len(a) for a in keras.tree.flatten(arrays) if hasattr(a, "shape")]
    if not sizes or not 0 < fraction < 1:
        raise ValueError(
            "`validation_split` must be in (0, 1) and needs rows: a list of texts or arrays. "
            f"Received: validation_split={fraction}"
        )
    stop = int(sizes[0] * (1 - fraction))
    if not stop:
        raise ValueError(
            f"`validation_split` leaves no rows to train on. Received: validation_split={fraction} of {sizes[0]} rows"
        )

    def part(rows):
        def cut(a):
            return None if a is None else a[rows]

        return tuple(cut(a) if isinstance(a, list | None) else keras.tree.map_structure(cut, a) for a in arrays)

    return part(slice(0, stop)), part(slice(stop, None))


def check_next_tokens(token_ids, y, name: str = "token_ids") -> None:
    """Refuses targets that are the inputs themselves, as transformers' labels are: a model would learn to copy.

    Args:
        token_ids, y: (batch, length); -100 in `y` counts nothing.
        name: of the input, for the message.

    Raises:
        ValueError: no target differs from the token at its own position.
    """
    token_ids, y = np.asarray(token_ids), np.asarray(y)
    if y.shape != token_ids.shape or y.ndim != 2:
        return
    counts = y != IGNORED
    constant = np.array_equal(y[:, :-1], token_ids[:, 1:])  # One token again and again is also its next one.
    if counts.any() and np.array_equal(y[counts], token_ids[counts]) and not constant:
        raise ValueError(
            f"`y` is `{name}` itself, as labels of transformers are, and a target here is the next token. Leave `y` "
            f"out, or give {name}[:, :-1] as the input and {name}[:, 1:] as `y`."
        )


def _shifted(inputs, sample_weight):
    """Targets are the same tokens, one to the left; padding and the start of another document count nothing."""
    if inputs["token_ids"].shape[1] < 2:
        raise ValueError("A sequence of one token has no next token to predict. Give at least two.")
    y = inputs["token_ids"][:, 1:]
    if sample_weight is not None:
        sample_weight = item_weights(sample_weight, inputs["token_ids"].shape)[:, 1:]
    for key in ("padding_mask", "document_ids"):
        if key in inputs:
            values = inputs[key]
            counts = values[:, 1:].astype(bool)
            if key == "document_ids":
                counts = counts & (values[:, 1:] == values[:, :-1])
            sample_weight = counts.astype("float32") * (1.0 if sample_weight is None else sample_weight)
    return {key: value[:, :-1] for key, value in inputs.items()}, y, sample_weight


def is_token_ids(path) -> bool:
    """Whether the last key of a path into the inputs is one of token ids."""
    return str(path[-1]).endswith("token_ids")
