"""Labels by name or number: what the classifiers share."""

from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from kerasllm.config import TransformerConfig
from kerasllm.layers.projection import Projection
from kerasllm.models.id_range import IdRange


class Prediction(NamedTuple):
    """The most probable label (its name, or its number in a model without names), how probable it is, and how
    probable each label is, the most probable first."""

    label: str | int
    probability: float
    probabilities: dict[str | int, float]


def checked_labels(num_labels: int | None, labels) -> tuple[int, list[str] | None]:
    """(how many labels there are, their names): two labels, unless told.

    Raises:
        ValueError: fewer than two labels, a name twice, or a number that is not that of the names.
    """
    names = None if labels is None else list(labels)
    count = num_labels if num_labels is not None else 2 if names is None else len(names)
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ValueError(f"`num_labels` must be a whole number from 2 on. Received: num_labels={count!r}")
    if names is not None and (len(names) != count or len(set(names)) != count):
        raise ValueError(f"`labels` must be {count} different names. Received: labels={names}")
    return count, names


def label_sets(y, num_labels: int, names: list[str] | None) -> np.ndarray:
    """The labels of each text, several or none, as rows of 0 and 1: int32 (rows, num_labels).

    Args:
        y: such rows; or for each text a list of labels, names or numbers.

    Raises:
        ValueError: a label that there is not, or rows of another size.
    """
    if hasattr(y, "shape") and len(y.shape) == 2:
        rows = np.asarray(y)
        if rows.shape[1] != num_labels or not np.isin(rows, (0, 1)).all():
            raise ValueError(
                f"Rows of labels must have {num_labels} numbers, 0 or 1. Received: shape={rows.shape}, "
                f"values from {rows.min()} to {rows.max()}"
            )
        return rows.astype("int32")
    rows = np.zeros((len(y), num_labels), "int32")
    for row, labels in zip(rows, y):
        if isinstance(labels, str) or not isinstance(labels, Iterable):
            raise ValueError(
                "Each text of a model with multi_label=True has a list of labels, or all texts one array (texts, "
                f"{num_labels}) of 0 and 1. Received: {labels!r}"
            )
        labels = list(labels)
        if labels:
            ids = label_ids(labels, names)
            IdRange("Label", "num_labels", num_labels).check(ids)
            row[ids] = 1
    return rows


def label_ids(y, names: list[str] | None) -> np.ndarray:
    """Labels, names or numbers, as numbers.

    Raises:
        ValueError: a name that is no label's.
    """
    y = np.asarray(y)
    if y.dtype.kind not in "UO":
        return y
    numbers = {name: number for number, name in enumerate(names or [])}
    unknown = [name for name in y.flat if name not in numbers]
    if unknown:
        known = f"They are {', '.join(names)}." if names else "The model has none: make it with labels=[...]."
        raise ValueError(f"There is no label {str(unknown[0])!r}. {known}")
    return np.array([numbers[name] for name in y.flat], "int32").reshape(y.shape)


def predictions(logits: np.ndarray, names: list[str] | None, multi_label: bool = False) -> list[Prediction]:
    """The labels of rows of logits, (rows, num_labels).

    Args:
        multi_label: whether each label is there or not for itself, so that probabilities do not sum to 1.
    """
    if multi_label:
        rows = np.exp(-np.logaddexp(0, -logits))
    else:
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        rows = exponentials / exponentials.sum(axis=-1, keepdims=True)
    found = []
    for row in rows:
        order = np.argsort(-row, kind="stable").tolist()
        by_label = {names[i] if names else i: float(row[i]) for i in order}
        found.append(Prediction(*next(iter(by_label.items())), by_label))
    return found


def make_classifier(config: TransformerConfig, num_labels: int, dtype, use_bias: bool = True) -> Projection:
    """The head of a classifier: (…, hidden_dim) → (…, num_labels)."""
    initial = keras.initializers.RandomNormal(stddev=config.initializer_range)
    classifier = Projection(num_labels, use_bias=use_bias, kernel_initializer=initial, dtype=dtype, name="classifier")
    classifier.build((None, config.hidden_dim))
    return classifier


@keras.saving.register_keras_serializable("kerasllm")
class LabelAccuracy(keras.metrics.MeanMetricWrapper):
    """The share of the labels of each text that are told rightly, of logits: above 0 the label is there."""

    def __init__(self, name="accuracy", dtype=None):
        super().__init__(_told, name=name, dtype=dtype)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


def _told(y, logits):
    return ops.mean(ops.cast(ops.equal(logits > 0, ops.cast(y, "bool")), "float32"), axis=-1)


def compile_options(loss, options: dict, multi_label: bool = False) -> dict:
    """Keras's cross-entropy and accuracy, where the user gave no loss."""
    if loss is not None:
        return {"loss": loss, **options}
    if multi_label:
        loss = keras.losses.BinaryCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
        return {"loss": loss, "weighted_metrics": [LabelAccuracy()], **options}
    # Divided by the weights' sum, so that padding, which weighs nothing, does not count.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    return {"loss": loss, "weighted_metrics": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")], **options}
