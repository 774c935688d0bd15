"""`tf.data` pipelines of a user's: batches are checked in the graph, texts are read part by part."""

import itertools
import re

import keras
import numpy as np

from kerasllm.models.inputs import is_token_ids
from kerasllm.targets import IGNORED

# Texts that are in memory at once. Those of a part are packed together; a pipeline may go on without an end.
PART_TEXTS = 4096


def is_tf_dataset(x) -> bool:
    return any(c.__module__.startswith("tensorflow.") and c.__name__ == "DatasetV2" for c in type(x).__mro__)


def holds_text(dataset) -> bool:
    return getattr(keras.tree.flatten(dataset.element_spec)[0], "dtype", None) == "string"


def needs_reading(model, dataset) -> bool:
    """Whether batches have to be made of it, because it holds texts, or targets are missing that the task needs."""
    spec = dataset.element_spec
    has_targets = isinstance(spec, tuple) and len(spec) > 1
    return holds_text(dataset) or not (has_targets or model.target_range is None)


def check_endless(dataset, steps) -> None:
    """Raises a ValueError for a pipeline without an end if nobody says how long an epoch is."""
    if steps is None and int(dataset.cardinality()) == -1:
        raise ValueError(
            "The dataset has no end (`.repeat()`), so nobody knows when an epoch is over. Give `steps_per_epoch` to "
            "`fit`, `validation_steps` for validation data, `steps` to `evaluate`."
        )


def text_columns(dataset) -> tuple:
    """(texts, y, sample_weight) of a pipeline of strings, which is read into memory; what it lacks is `None`."""
    check_endless(dataset, None)
    return _columns(list(_text_rows(dataset)))


def read_dataset(dataset, read_rows, read_batch, training: bool):
    """A pipeline of arrays from one of texts, or of batches without targets.

    It begins at once and follows the order of the given one, which may be another in each epoch.

    Args:
        read_rows: (columns of texts, number of the part) → a `CountedDataset`.
        read_batch: (x, y, sample_weight) → batch.
        training: whether each part has a number of its own in all epochs, or the same in each.
    """
    import tensorflow as tf

    parts_read = itertools.count(1)

    def parts():
        rows = _text_rows(dataset)
        numbers = parts_read if training else itertools.count(1)
        while part := list(itertools.islice(rows, PART_TEXTS)):
            data = read_rows(_columns(part), next(numbers))
            yield from (data[step] for step in range(len(data)))

    def batches():
        if holds_text(dataset):
            yield from parts()
        else:
            for batch in dataset.as_numpy_iterator():
                yield read_batch(keras.utils.unpack_x_y_sample_weight(batch))

    element = keras.tree.flatten(dataset.element_spec)[0].shape
    is_static = 0 <= int(dataset.cardinality()) <= PART_TEXTS if not element.rank else None not in element[1:]

    def spec(array):
        shape = np.shape(array)
        lengths = shape[1:] if is_static else [None] * (len(shape) - 1)
        return tf.TensorSpec([None, *lengths], np.asarray(array).dtype)

    first = next(batches(), None)
    if first is None:
        raise ValueError("The dataset is empty: there is nothing to read.")
    return tf.data.Dataset.from_generator(batches, output_signature=keras.tree.map_structure(spec, first))


def checked(model, dataset, class_weight=None):
    """The same batches, checked in the graph, where an error has the words that it has elsewhere."""
    import tensorflow as tf

    spec = dataset.element_spec
    parts = spec if isinstance(spec, tuple) else (spec,)
    if any(isinstance(part, tf.RaggedTensorSpec) for part in keras.tree.flatten(parts)):
        raise ValueError(
            "The batches are ragged, and a model reads rows of one length: make them with "
            f"`dataset.padded_batch(batch_size)`, whose padding weighs 0. Received: {spec}"
        )
    inputs = _as_dict(parts[0])
    model.check_inputs(keras.tree.map_structure(lambda _: keras.KerasTensor((None, None)), inputs))
    ranged = [(part, model.token_range) for path, part in keras.tree.flatten_with_path(inputs) if is_token_ids(path)]
    if len(parts) > 1 and model.target_range is not None:
        model.check_target_keys(parts[1])
        ranged += zip(keras.tree.flatten(parts[1]), keras.tree.flatten(model.target_range))
    for part, allowed in ranged:
        allowed.check(np.zeros(1, part.dtype.as_numpy_dtype))
    table = None
    if class_weight is not None:
        from kerasllm.models.batches import class_table

        if len(parts) < 2 or not hasattr(parts[1], "dtype"):
            raise ValueError("`class_weight` needs targets, one kind of them. Give batches with `sample_weight`.")
        table = tf.constant(class_table(model, class_weight))

    def check(*batch):
        inputs, checks = _as_dict(batch[0]), []
        for path, ids in keras.tree.flatten_with_path(inputs):
            if is_token_ids(path):
                checks += _in_range(ids, model.token_range)
        if len(batch) > 1 and model.target_range is not None:
            for name, y in _as_dict(batch[1], None).items():
                allowed = model.target_range if name is None else model.target_range[name]
                checks += _in_range(y, allowed)
                checks += _of_shape(model, inputs, y, name)
        if len(batch) > 2:
            checks += [_finite(weights) for weights in keras.tree.flatten(batch[2])]
        with tf.control_dependencies(checks):
            batch = tf.nest.map_structure(tf.identity, batch)
        if table is not None:
            counts = tf.gather(table, tf.where(batch[1] == IGNORED, tf.zeros_like(batch[1]), batch[1]))
            batch = (*batch[:2], counts if len(batch) < 3 else counts * tf.cast(batch[2], tf.float32))
        return batch if len(batch) > 1 else batch[0]

    return dataset.map(check)


def reason_of(error: Exception) -> str | None:
    """What one of our checks said, in the text that TensorFlow makes of it."""
    if type(error).__module__.split(".")[0] != "tensorflow":
        return None
    found = re.search(r"assertion failed: \[(.*?\.)\]", str(error), re.DOTALL)
    found = found or re.search(r"ValueError: (.*?)\n\s*(?:Traceback|\n|$)", str(error), re.DOTALL)
    return found and found[1].replace("\\'", "'").strip()


def _in_range(ids, allowed):
    import tensorflow as tf

    ids = tf.cast(ids, tf.int64)
    if allowed.ignores:
        ids = tf.where(ids == IGNORED, tf.zeros_like(ids), ids)
    low, high = tf.reduce_min(ids), tf.reduce_max(ids)
    is_right = tf.logical_and(low >= 0, high < allowed.size)
    return [tf.debugging.Assert(is_right, [tf.strings.format(allowed.message, tf.where(low < 0, low, high))])]


def _of_shape(model, inputs, y, name):
    import tensorflow as tf

    from kerasllm.models.inputs import SHAPES_DIFFER, target_shape

    wanted = target_shape(model, {key: tf.shape(value) for key, value in inputs.items()}, name)
    if len(y.shape) != int(wanted.shape[0]):
        raise ValueError(SHAPES_DIFFER.format(tuple(y.shape), "of another rank"))
    is_right = tf.reduce_all(tf.shape(y) == wanted)
    return [tf.debugging.Assert(is_right, [tf.strings.format(SHAPES_DIFFER, (tf.shape(y), wanted))])]


def _finite(weights):
    import tensorflow as tf

    weights = tf.cast(weights, tf.float32)
    is_right = tf.reduce_all(tf.math.is_finite(weights) & (weights >= 0))
    message = "Weights must be finite and not negative."
    return tf.debugging.Assert(is_right, [message])


def _as_dict(x, name="token_ids") -> dict:
    return x if isinstance(x, dict) else {name: x}


def _text_rows(dataset):
    """The rows of a pipeline of strings, or of batches of them: (text[, y[, sample_weight]]) each."""

    def plain(value):
        return value.decode("utf-8") if isinstance(value, bytes) else value

    is_batch = keras.tree.flatten(dataset.element_spec)[0].shape.rank
    for row in (dataset.unbatch() if is_batch else dataset).as_numpy_iterator():
        yield keras.tree.map_structure(plain, row if isinstance(row, tuple) else (row,))


def _columns(rows) -> tuple:
    return (*(list(column) for column in zip(*rows)), None, None)[:3]
