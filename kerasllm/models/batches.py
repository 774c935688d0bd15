"""Batches of (x[, y[, sample_weight]]) from whatever users hand to fit, evaluate and predict."""

import inspect
import itertools

import keras
import numpy as np

from kerasllm.data.arrays import ArrayDataset
from kerasllm.data.counted import CountedDataset
from kerasllm.data.dataset import TokenDataset
from kerasllm.models import tf_data
from kerasllm.models.devices import check_batch_rows
from kerasllm.models.inputs import check_weights, is_text
from kerasllm.targets import IGNORED


def task_data(model, x, y=None, sample_weight=None, batch_size=32, shuffle=False, **options):
    """Batches of (x[, y[, sample_weight]]) from anything `fit` takes.

    Rows of text or arrays are the task's to read, with `model.row_data`; batches that the user made are read one by
    one in the same way, and those of a `tf.data.Dataset` are checked inside its own pipeline.

    Args:
        class_weight: label → what its rows (or tokens) count.
        steps: batches in an epoch, where the user says so.
        training: whether what is drawn at random is to be another in each epoch.
    """
    class_weight, steps = options.get("class_weight"), options.get("steps")
    training = options.get("training", False)
    batches = isinstance(x, keras.utils.PyDataset) or inspect.isgenerator(x)
    if batches or tf_data.is_tf_dataset(x) or _is_data_loader(x):
        for name, value in (("y", y), ("sample_weight", sample_weight)):
            if value is not None:
                raise ValueError(
                    f"The batches of a {type(x).__name__} hold their own targets and weights: (x, y, sample_weight). "
                    f"Received: {name} beside it"
                )
    if isinstance(x, CountedDataset):
        if isinstance(x, ArrayDataset):
            _check_arrays(model, *x.parts[:2])
        _check_counted(model, x)
        return with_class_weight(model, x, class_weight)
    if tf_data.is_tf_dataset(x):
        tf_data.check_endless(x, steps)
        if not tf_data.needs_reading(model, x):
            return tf_data.checked(model, x, class_weight)

        def read_rows(columns, draw):
            data = model.row_data(*columns, batch_size, False)
            data.seed = draw  # Each part of the text has draws of its own.
            return with_class_weight(model, data, class_weight)

        def read(batch):
            return read_batch(model, *batch, class_weight)

        return tf_data.read_dataset(x, read_rows, read, training)

    def read(batch, draw=0):
        return read_batch(model, *_unpacked(batch), class_weight, training, draw)

    if batches or _is_data_loader(x):
        return _read_batches(x, read)
    if not _is_rows(x):
        raise ValueError(
            "Data must be texts, arrays, lists of token ids, a dict of arrays, or batches: a PyDataset, a "
            f"tf.data.Dataset, a torch DataLoader, a generator. Received: {type(x).__name__}"
        )
    data = model.row_data(x, y, sample_weight, batch_size, shuffle)
    _check_counted(model, data)
    return with_class_weight(model, data, class_weight)


def prediction_data(model, x, batch_size=32):
    """What `predict` takes, checked: the arrays of texts, lists and arrays; batches of batches."""

    def inputs_of(batch):
        inputs = model.as_inputs(_unpacked(batch)[0])
        check_batch_rows(len(keras.tree.flatten(inputs)[0]))
        return inputs

    if isinstance(x, CountedDataset):
        return x
    if tf_data.is_tf_dataset(x):
        if tf_data.holds_text(x):
            return model.as_inputs(tf_data.text_columns(x)[0])
        return tf_data.checked(model, x)
    if isinstance(x, keras.utils.PyDataset) or inspect.isgenerator(x) or _is_data_loader(x):
        return _read_batches(x, lambda batch, draw=0: (inputs_of(batch),))
    if not _is_rows(x):
        raise ValueError(f"Nothing that `predict` reads. Received: {type(x).__name__}")
    inputs = model.as_inputs(x)
    rows = len(keras.tree.flatten(inputs)[0])
    for size in {min(batch_size, rows), rows % batch_size}:
        check_batch_rows(size)
    return inputs


def read_batch(model, x, y=None, sample_weight=None, class_weight=None, training=False, draw=0):
    """One batch, as `row_data` reads it: a tuple (x[, y[, sample_weight]]) of arrays, checked.

    Args:
        draw: which numbers are drawn, where a task hides or replaces tokens in training.
    """
    if not _is_rows(x):
        raise ValueError(f"A batch must be texts, arrays or a dict of arrays. Received: {type(x).__name__}")
    data = with_class_weight(model, model.row_data(x, y, sample_weight, 32, False), class_weight)
    data.seed = draw if training else 0
    batch = data.read(np.arange(data.num_rows), np.ones(data.num_rows, bool), 0)
    check_batch_rows(data.num_rows)
    return batch


def with_class_weight(model, data, class_weight):
    """The same rows, whose targets count what their class does.

    Raises:
        ValueError: the targets are made batch by batch, or there are two of them.
    """
    if class_weight is None:
        return data
    if not isinstance(data, ArrayDataset) or len(data.parts) < 2 or isinstance(data.parts[1], dict):
        raise ValueError(
            "`class_weight` needs the targets of rows, one kind of them. Give `sample_weight` instead, what each row "
            f"or token counts. Received: class_weight={class_weight!r} for a {type(model).__name__} and this data"
        )
    x, y, *weights = data.parts
    table = class_table(model, class_weight)
    counts = table[np.where(y == IGNORED, 0, y)]
    data.parts = (x, y, counts * weights[0] if weights else counts)
    return data


def class_table(model, class_weight) -> np.ndarray:
    """What each class counts, 1 where nothing is said of it: float32 (classes,)."""
    allowed = model.target_range
    table = np.ones(allowed.size, "float32")
    for label, weight in class_weight.items():
        allowed.check([label])
        table[label] = weight
    check_weights(table)
    return table


def _check_arrays(model, x, y=None) -> None:
    model.check_inputs(x if isinstance(x, dict) else {"token_ids": x})
    if y is not None:
        model.check_targets(y)


def _check_counted(model, data) -> None:
    if isinstance(data, TokenDataset):
        _check_shards(model, data.shards)
    if data.num_ranks == 1:
        check_batch_rows(data.batch_size)
        if data.local_batch_size is None:  # The last batch is smaller.
            check_batch_rows(data.num_rows % data.batch_size)


def _check_shards(model, shards) -> None:
    if model.tokenizer is not None and shards.tokenizer_fingerprint is not None:
        if shards.tokenizer_fingerprint != model.tokenizer.fingerprint:
            raise ValueError(
                "The data was made with another tokenizer than the model's (their fingerprints differ). "
                "Make both with the same one."
            )
    elif len(shards):
        model.check_token_ids(shards.id_range())


def _unpacked(batch) -> tuple:
    """(x, y, sample_weight) of a batch, which may be a list of texts alone; a loader gives texts as a tuple."""
    if isinstance(batch, list) and is_text(batch):
        return batch, None, None
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    return list(x) if isinstance(x, tuple) and is_text(x) else x, y, sample_weight


def _read_batches(batches, read):
    """The same kind of batches, each of them read."""
    if isinstance(batches, keras.utils.PyDataset):
        return _ReadDataset(batches, read)
    if inspect.isgenerator(batches):
        return (read(batch, draw) for draw, batch in enumerate(batches))
    return _read_loader(batches, read)


class _ReadDataset(keras.utils.PyDataset):
    """A user's PyDataset whose batches are read one by one."""

    def __init__(self, dataset, read):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self._read, self._epoch = dataset, read, 0

    def __getitem__(self, index):
        return self._read(self.dataset[index], (self._epoch << 32) + index)

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._epoch += 1
        self.dataset.on_epoch_end()


def _read_loader(loader, read):
    """A torch DataLoader of the batches of another, each of them read on the CPU."""
    import torch

    draws = itertools.count(1)

    class Read(torch.utils.data.IterableDataset):
        def __iter__(self):
            for batch in loader:
                batch = read(batch, next(draws))
                yield keras.tree.map_structure(torch.as_tensor, batch)

    class ReadWithLength(Read):
        def __len__(self):
            return len(loader)

    has_length = hasattr(loader.dataset, "__len__")
    return torch.utils.data.DataLoader((ReadWithLength if has_length else Read)(), batch_size=None)


def _is_data_loader(x) -> bool:
    return any(c.__module__.startswith("torch.utils.data") and c.__name__ == "DataLoader" for c in type(x).__mro__)


def _is_rows(x) -> bool:
    return isinstance(x, str | dict | np.ndarray | list | tuple) or hasattr(x, "shape") or is_text(x)
