"""What users hand to fit, evaluate, predict and score, as the arrays and batches that the model reads."""

import inspect
from collections.abc import Iterable

import keras
import numpy as np

from kerasllm.data.arrays import ArrayDataset
from kerasllm.data.counted import CountedDataset
from kerasllm.data.dataset import TokenDataset
from kerasllm.data.shards import TokenShards


def causal_data(model, x, y=None, sample_weight=None, batch_size=32, shuffle=False):
    """Batches of (x, next tokens[, weights]) from anything `CausalLM.fit` takes; see there."""
    if isinstance(x, TokenDataset):
        _check_shards(model, x.shards)
        return x
    if isinstance(x, ArrayDataset):
        ids = x.parts[0]
        model.check_token_ids(ids["token_ids"] if isinstance(ids, dict) else ids)
        model.check_token_ids(x.parts[1])
    if isinstance(x, CountedDataset):
        return x
    if isinstance(x, keras.utils.PyDataset):
        return _CheckedDataset(model, x)
    if _is_tf_dataset(x):
        return _checked_tf_dataset(model, x)
    if is_text(x):
        return _text_data(model, [x] if isinstance(x, str) else list(x), batch_size, shuffle)
    if inspect.isgenerator(x):
        return _checked_batches(model, x)
    if not _is_arrays(x):
        return x  # A DataLoader: Keras knows what to do with it.
    inputs = model_inputs(model, x)
    if sample_weight is not None and np.ndim(sample_weight) == 1:
        # A weight for each row, as Keras allows, is one for each of its tokens.
        sample_weight = np.broadcast_to(np.asarray(sample_weight)[:, None], inputs["token_ids"].shape)
    if y is None:
        inputs, y, sample_weight = _shifted(inputs, sample_weight)
    model.check_token_ids(y)
    return ArrayDataset(
        inputs, np.asarray(y), sample_weight, batch_size, shuffle=shuffle, fill_last=model.uses_default_loss
    )


def prediction_data(model, x):
    """What `predict` takes, checked: arrays of texts, lists and arrays; batches of batches."""
    if isinstance(x, keras.utils.PyDataset):
        return x if isinstance(x, CountedDataset) else _CheckedDataset(model, x)
    if _is_tf_dataset(x):
        return _checked_tf_dataset(model, x)
    if inspect.isgenerator(x):
        return _checked_batches(model, x)
    return model_inputs(model, x) if _is_arrays(x) else x


def _is_arrays(x) -> bool:
    return isinstance(x, str | dict | np.ndarray | list | tuple) or hasattr(x, "shape")


def model_inputs(model, x) -> dict[str, np.ndarray]:
    """The dict of arrays that the model reads: texts and ragged lists are padded on the right and masked."""
    if is_text(x):
        if model.tokenizer is None:
            raise ValueError("The model has no tokenizer, so it reads token ids. Received: text")
        x = [model.tokenizer.encode(text) for text in ([x] if isinstance(x, str) else x)]
    if isinstance(x, list | tuple):
        if len(x) == 0 or any(np.size(row) == 0 for row in x):
            raise ValueError("There is nothing to read: an empty list or an empty text. Give at least one token.")
        rows = [np.asarray(row) for row in x]
        if any(row.ndim != 1 for row in rows):
            raise ValueError(
                "A list of token ids must be a list of rows, each a list of integers. "
                f"Received: rows of shape {rows[0].shape}"
            )
        width = max(len(row) for row in rows)
        ids = np.zeros((len(rows), width), "int32")
        mask = np.zeros((len(rows), width), "bool")
        for i, row in enumerate(rows):
            model.check_token_ids(row)
            ids[i, : len(row)], mask[i, : len(row)] = row, True
        x = {"token_ids": ids, "padding_mask": mask}
    elif not isinstance(x, dict):
        x = {"token_ids": keras.ops.convert_to_numpy(x)}
    inputs = {key: keras.ops.convert_to_numpy(value) for key, value in x.items() if value is not None}
    if "token_ids" not in inputs:
        raise ValueError(f"The inputs lack 'token_ids'. Received keys: {list(inputs)}")
    model.check_inputs(inputs)
    ids = inputs["token_ids"]
    if ids.ndim != 2:
        raise ValueError(f"`token_ids` must be (batch, length). Received: shape={ids.shape}")
    limit = model.config.max_sequence_length
    if ids.shape[1] > limit + 1:  # One more than the context: the last one can be a target.
        raise ValueError(f"The sequence has {ids.shape[1]} tokens, and the model's context is {limit}.")
    return inputs


def is_text(x) -> bool:
    if isinstance(x, str):
        return True
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "US" or (x.dtype == object and all(isinstance(s, str) for s in x.flat))
    return isinstance(x, list | tuple) and len(x) > 0 and all(isinstance(s, str) for s in x)


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


def _shifted(inputs, sample_weight):
    """Targets are the same tokens, one to the left; padding and the start of another document count nothing."""
    if inputs["token_ids"].shape[1] < 2:
        raise ValueError("A sequence of one token has no next token to predict. Give at least two.")
    y = inputs["token_ids"][:, 1:]
    if sample_weight is not None:
        sample_weight = np.asarray(sample_weight)[:, 1:]
    for key in ("padding_mask", "document_ids"):
        if key in inputs:
            values = inputs[key]
            counts = values[:, 1:].astype(bool)
            if key == "document_ids":
                counts = counts & (values[:, 1:] == values[:, :-1])
            sample_weight = counts.astype("float32") * (1.0 if sample_weight is None else sample_weight)
    return {key: value[:, :-1] for key, value in inputs.items()}, y, sample_weight


def _text_data(model, texts: list[str], batch_size: int, shuffle: bool):
    if model.tokenizer is None:
        raise ValueError("The model has no tokenizer, so it trains on token ids. Received: text")
    end = model.tokenizer.end_token_id
    documents = [model.tokenizer.encode(text) + ([] if end is None else [end]) for text in texts]
    shards = TokenShards.from_arrays(documents, tokenizer_fingerprint=model.tokenizer.fingerprint)
    longest = max(len(ids) for ids in documents)
    return TokenDataset(
        shards,
        sequence_length=min(model.config.max_sequence_length, max(2, longest)),
        batch_size=batch_size,
        packing="documents",
        shuffle=shuffle,
        drop_remainder=False,
        pad_token_id=model.tokenizer.pad_token_id or 0,
    )


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
    model.check_inputs(parts[0] if isinstance(parts[0], dict) else {"token_ids": parts[0]})
    if len(parts) > 1 and parts[1] is not None:
        model.check_token_ids(keras.ops.convert_to_numpy(parts[1]))
    return batch


def _is_tf_dataset(x) -> bool:
    return any(c.__module__.startswith("tensorflow.") and c.__name__ == "DatasetV2" for c in type(x).__mro__)


def _checked_tf_dataset(model, dataset):
    """Token ids are checked in the pipeline; a pipeline of strings is read into documents."""
    import tensorflow as tf

    spec = dataset.element_spec
    if getattr(spec, "dtype", None) == tf.string:
        texts: Iterable = dataset.unbatch() if spec.shape.rank else dataset
        texts = [text.decode("utf-8") for text in texts.as_numpy_iterator()]
        return _text_data(model, texts, batch_size=32, shuffle=False)
    size = model.config.vocabulary_size

    def checked(*batch):
        x = batch[0]
        checks = []
        for ids in (x["token_ids"] if isinstance(x, dict) else x, *batch[1:2]):
            message = f"Token id out of range: the model's vocabulary_size is {size}"
            checks.append(tf.debugging.assert_less(tf.reduce_max(ids), tf.cast(size, ids.dtype), message))
            checks.append(tf.debugging.assert_non_negative(tf.reduce_min(ids), message))
        with tf.control_dependencies(checks):
            batch = tf.nest.map_structure(tf.identity, batch)
        return batch if len(batch) > 1 else batch[0]

    return dataset.map(checked)
