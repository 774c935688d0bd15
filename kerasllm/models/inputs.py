"""What users hand to fit, evaluate, predict and score, as the arrays and batches that the model reads."""

import inspect

import keras
import numpy as np

from kerasllm.data.arrays import ArrayDataset
from kerasllm.data.counted import CountedDataset
from kerasllm.data.dataset import TokenDataset
from kerasllm.data.shards import TokenShards
from kerasllm.objectives.next_token import causal

IGNORED = -100  # the label that transformers leaves out of the loss


def task_data(model, x, y=None, sample_weight=None, batch_size=32, shuffle=False):
    """Batches of (x[, y[, sample_weight]]) from anything `fit` takes.

    Batches that the user made are checked and passed on; rows of text or arrays are the task's to read, with
    `model.row_data`.
    """
    if isinstance(x, TokenDataset):
        _check_shards(model, x.shards)
        return x
    if isinstance(x, ArrayDataset):
        _checked_batch(model, x.parts)
    if isinstance(x, CountedDataset):
        return x
    if isinstance(x, keras.utils.PyDataset):
        return _CheckedDataset(model, x)
    if _is_tf_dataset(x):
        if not _holds_text(x):
            return _checked_tf_dataset(model, x)
        (x, y, sample_weight), shuffle = _text_columns(x), False
    if inspect.isgenerator(x):
        return _checked_batches(model, x)
    if not _is_rows(x):
        return x  # A DataLoader: Keras knows what to do with it.
    return model.row_data(x, y, sample_weight, batch_size, shuffle)


def prediction_data(model, x):
    """What `predict` takes, checked: the arrays of texts, lists and arrays; batches of batches."""
    if isinstance(x, keras.utils.PyDataset):
        return x if isinstance(x, CountedDataset) else _CheckedDataset(model, x)
    if _is_tf_dataset(x):
        return model.as_inputs(_text_columns(x)[0]) if _holds_text(x) else _checked_tf_dataset(model, x)
    if inspect.isgenerator(x):
        return _checked_batches(model, x)
    return model.as_inputs(x) if _is_rows(x) else x


def causal_rows(model, x, y, sample_weight, batch_size, shuffle):
    """Batches of (x, next tokens[, weights]) from the rows that `CausalLM.fit` takes; see there."""
    if is_text(x):
        end = tokenizer_of(model).end_token_id
        texts = [x] if isinstance(x, str) else list(x)
        documents = [ids + ([] if end is None else [end]) for ids in model.tokenizer.encode_texts(texts)]
        return packed_data(model, documents, causal, batch_size, shuffle)
    inputs = model_inputs(model, x, spare=1)
    if y is None:
        inputs, y, sample_weight = _shifted(inputs, sample_weight)
    else:
        check_next_tokens(inputs["token_ids"], y)
    return array_data(model, inputs, y, sample_weight, batch_size, shuffle)


def array_data(model, inputs, y, sample_weight, batch_size, shuffle):
    """Batches of arrays, their targets checked."""
    if y is None:
        raise ValueError(f"A {type(model).__name__} trains on targets too. Received: y=None")
    y = np.asarray(y)
    model.target_range.check(y)
    if sample_weight is not None:
        sample_weight = _item_weights(sample_weight, y.shape)
    return ArrayDataset(inputs, y, sample_weight, batch_size, shuffle=shuffle, fill_last=model.uses_default_loss)


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


def _is_rows(x) -> bool:
    return isinstance(x, str | dict | np.ndarray | list | tuple) or hasattr(x, "shape")


def _item_weights(sample_weight, shape):
    """A weight for each row, as Keras allows, is one for each of its tokens."""
    sample_weight = np.asarray(sample_weight)
    if sample_weight.ndim == 1 < len(shape):
        return np.broadcast_to(sample_weight[:, None], shape)
    return sample_weight


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
        sample_weight = _item_weights(sample_weight, inputs["token_ids"].shape)[:, 1:]
    for key in ("padding_mask", "document_ids"):
        if key in inputs:
            values = inputs[key]
            counts = values[:, 1:].astype(bool)
            if key == "document_ids":
                counts = counts & (values[:, 1:] == values[:, :-1])
            sample_weight = counts.astype("float32") * (1.0 if sample_weight is None else sample_weight)
    return {key: value[:, :-1] for key, value in inputs.items()}, y, sample_weight


def _check_shards(model, shards) -> None:
    if model.tokenizer is not None and shards.tokenizer_fingerprint is not None:
        if shards.tokenizer_fingerprint != model.tokenizer.fingerprint:
            raise ValueError(
                "The data was made with another tokenizer than the model's (their fingerprints differ). "
                "Make both with the same one."
            )
    elif len(shards):
        model.check_token_ids(shards.id_range())


class _CheckedDataset(keras.utils.PyDataset):
    """A user's PyDataset whose token ids are checked batch by batch, as no backend but PyTorch would."""

    def __init__(self, model, dataset):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset = dataset
        self._model = model

    def __getitem__(self, index):
        return _checked_batch(self._model, self.dataset[index])

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


def _checked_batches(model, batches):
    for batch in batches:
        yield _checked_batch(model, batch)


def _checked_batch(model, batch):
    parts = batch if isinstance(batch, tuple | list) else (batch,)
    model.check_inputs(_as_dict(parts[0]))
    if len(parts) > 1 and parts[1] is not None:
        model.check_targets(keras.tree.map_structure(keras.ops.convert_to_numpy, parts[1]))
    return batch


def _as_dict(x) -> dict:
    return x if isinstance(x, dict) else {"token_ids": x}


def _is_tf_dataset(x) -> bool:
    return any(c.__module__.startswith("tensorflow.") and c.__name__ == "DatasetV2" for c in type(x).__mro__)


def _holds_text(dataset) -> bool:
    return getattr(keras.tree.flatten(dataset.element_spec)[0], "dtype", None) == "string"


def _text_columns(dataset) -> tuple:
    """(texts, y, sample_weight) of a pipeline of strings, which is read into memory; what it lacks is `None`."""

    def plain(value):
        return value.decode("utf-8") if isinstance(value, bytes) else value

    is_batch = keras.tree.flatten(dataset.element_spec)[0].shape.rank
    rows = (dataset.unbatch() if is_batch else dataset).as_numpy_iterator()
    rows = [keras.tree.map_structure(plain, row) for row in rows]
    columns = zip(*rows) if isinstance(dataset.element_spec, tuple) else [rows]
    return (*(list(column) for column in columns), None, None)[:3]


def _checked_tf_dataset(model, dataset):
    """Ids are checked in the pipeline."""
    import tensorflow as tf

    spec = dataset.element_spec
    spec = _as_dict(spec[0] if isinstance(spec, tuple) else spec)
    model.check_inputs(keras.tree.map_structure(lambda _: keras.KerasTensor(()), spec))

    def checked(*batch):
        inputs = _as_dict(batch[0])
        ranged = [(ids, model.token_range) for path, ids in keras.tree.flatten_with_path(inputs) if is_token_ids(path)]
        if len(batch) > 1 and model.target_range is not None:
            ranged += zip(keras.tree.flatten(batch[1]), keras.tree.flatten(model.target_range))
        checks = []
        for ids, allowed in ranged:
            size = tf.cast(allowed.size, ids.dtype)
            checks.append(tf.debugging.assert_less(tf.reduce_max(ids), size, allowed.message))
            checks.append(tf.debugging.assert_non_negative(tf.reduce_min(ids), allowed.message))
        with tf.control_dependencies(checks):
            batch = tf.nest.map_structure(tf.identity, batch)
        return batch if len(batch) > 1 else batch[0]

    return dataset.map(checked)


def is_token_ids(path) -> bool:
    """Whether the last key of a path into the inputs is one of token ids."""
    return str(path[-1]).endswith("token_ids")
