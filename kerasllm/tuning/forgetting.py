"""Against forgetting: a penalty on leaving the weights that a model starts from, and a report of what was lost."""

import contextlib
from collections.abc import Iterator, Mapping

import keras
import numpy as np
from keras import ops

from kerasllm.tuning.model_adapters import forget_compiled


def anchor(model: keras.Model, strength: float, importance: Mapping[str, np.ndarray] | None = None) -> None:
    """Adds strength / 2 · Σ importance · (weight − weight now)² to the loss, over all weights that are trained.

    Without `importance` that is L2-SP; with what `fisher_information` found on the old task's data, elastic weight
    consolidation (EWC). `loss` and `val_loss` of `fit` contain it, as they do any of Keras's regularizers; perplexity
    and accuracy do not. The weights as they are now are kept beside the model, which takes their memory once more,
    and as much again for the importance. It works on any built Keras model, until `release`.

    Args:
        model: with the weights of the old task. Freeze before, compile after it.
        strength: not negative. Around 0.01 for L2-SP. EWC wants much more, since the squared gradients of what is well
            trained are small: try 1,000 to 100,000, and look at a `ForgettingReport`.
        importance: weight's path → array of its shape.

    Raises:
        ValueError: the strength is out of range, a weight has no importance, or the model has an anchor.

    Example:
    ```python
    anchor(model, 10_000.0, fisher_information(model, old_texts))
    model.compile(keras.optimizers.AdamW(1e-4))
    model.fit(new_texts)
    ```

    Reference: Li et al. (2018), "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", for
    L2-SP; Kirkpatrick et al. (2017), "Overcoming catastrophic forgetting in neural networks", for EWC.
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not strength >= 0:
        raise ValueError(f"`strength` must not be negative. Received: strength={strength!r}")
    if _anchor_of(model) is not None:
        raise ValueError("The model has an anchor. Call release(model) first.")
    variables = model.trainable_variables
    if not variables:
        raise ValueError("Nothing in the model is trainable, so there is nothing to hold.")
    for variable in variables:
        if importance is not None and np.shape(importance.get(variable.path)) != tuple(variable.shape):
            raise ValueError(
                f"`importance` must have an array of shape {tuple(variable.shape)} for {variable.path!r}. Estimate it "
                "on this model, with the same weights trained: fisher_information(model, ...)."
            )
    _attach(model, Anchor(variables, strength, importance))


def release(model: keras.Model) -> None:
    """Takes the penalty of `anchor` away. Compile the model after it.

    Raises:
        ValueError: the model has none.
    """
    layer = _anchor_of(model)
    if layer is None:
        raise ValueError("The model has no anchor.")
    layer.detach()
    model._tracker.unlock()
    model._tracker.untrack(layer)
    model._anchor = None
    forget_compiled(model)


def describe_anchor(model: keras.Model) -> dict | None:
    """What `restore_anchor` makes an anchor of, whose values are then read from a file."""
    layer = _anchor_of(model)
    if layer is None:
        return None
    weighed = any(pull.importance is not None for _, pull in layer.pulls)
    return {"weights": [variable.path for variable, _ in layer.pulls], "importance": weighed}


def restore_anchor(model: keras.Model, described: dict) -> None:
    """Gives a model an anchor whose values are not known yet."""
    by_path = {variable.path: variable for variable in model.weights}
    variables = [by_path[path] for path in described["weights"]]
    importance = {v.path: np.zeros(v.shape, "float32") for v in variables} if described["importance"] else None
    _attach(model, Anchor(variables, 0.0, importance))


def _attach(model, layer: "Anchor") -> None:
    model._tracker.unlock()
    model._anchor = layer
    forget_compiled(model)


def fisher_information(model: keras.Model, x, y=None, sample_weight=None, rows: int = 200) -> dict[str, np.ndarray]:
    """How much each trained weight matters for a task: the mean over rows of its squared gradient.

    The gradient is that of the loss of one row, as `fit` computes it: for a language model, of the mean over the
    row's tokens. This is the diagonal of the empirical Fisher information. Dropout is as in training; weights stay.

    Args:
        model: trained on the task; compiled, or one of ours.
        x, y, sample_weight: data of the task, as `fit` takes it: texts, arrays, or a dataset of batches of one row.
        rows: how many to use at the most, the first ones.

    Returns:
        weight's path → float32 array of its shape.

    Raises:
        ValueError: `rows` is out of range, or batches have several rows.

    Example:
    ```python
    importance = fisher_information(model, old_texts, rows=500)
    ```

    Reference: Kirkpatrick et al. (2017), section 2.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"`rows` must be at least 1. Received: rows={rows!r}")
    if hasattr(model, "as_data"):
        x, y, sample_weight = model.as_data(x, y, sample_weight, 1, shuffle=False), None, None
        if getattr(x, "batch_size", 1) != 1:
            raise ValueError(f"Give rows, or batches of one row. Received: batches of {x.batch_size}")
        if getattr(x, "steps_per_epoch", rows) > rows:
            x.steps_per_epoch = rows
    elif hasattr(x, "__len__") and not isinstance(x, keras.utils.PyDataset):
        x, y, sample_weight = (None if a is None else a[:rows] for a in (x, y, sample_weight))
    squares = SquaredGradients()
    with _optimizer(model, squares):
        model.fit(x, y, sample_weight=sample_weight, batch_size=1, epochs=1, shuffle=False, verbose=0)
    count = int(ops.convert_to_numpy(squares.iterations))
    return {path: ops.convert_to_numpy(total.value) / count for path, total in squares.totals().items()}


class ForgettingReport:
    """What a model could do before, and can do after it learnt something else; a `with` around the `fit`.

    Args:
        model: compiled.
        x, y, sample_weight: data of the old task, as `evaluate` takes it.
        verbose: whether to print the report at the end.
        options: of `evaluate`, such as `batch_size`.

    Attributes:
        before, after: what `evaluate` returned, by name; without the penalty of `anchor`.
        forgotten: how much the loss grew.

    Raises:
        ValueError: the model is not compiled.

    Example:
    ```python
    with ForgettingReport(model, old_texts) as report:
        model.fit(new_texts)
    report.forgotten
    ```
    """

    def __init__(self, model: keras.Model, x, y=None, sample_weight=None, verbose: bool = True, **options):
        if not model.compiled:
            raise ValueError("The model is not compiled, so it has no loss to report. Call compile() first.")
        self.model, self.data, self.verbose = model, (x, y), verbose
        self.options = {"sample_weight": sample_weight, **options}
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}

    def __enter__(self) -> "ForgettingReport":
        self.before = self._evaluate()
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            self.after = self._evaluate()
            if self.verbose:
                print(self)

    @property
    def forgotten(self) -> float:
        return self.after["loss"] - self.before["loss"]

    def _evaluate(self) -> dict[str, float]:
        with _without_penalty(self.model):
            return self.model.evaluate(*self.data, return_dict=True, verbose=0, **self.options)

    def __str__(self):
        lines = ["The old task, before → after:"]
        for name, before in self.before.items():
            after = self.after.get(name, float("nan"))
            lines.append(f"  {name}  {before:.4f} → {after:.4f}  ({after - before:+.4f})")
        return "\n".join(lines)


class Anchor(keras.layers.Layer):
    """Where weights were, as weights of its own that are not trained; and each one's pull, a Keras regularizer."""

    def __init__(self, variables, strength: float, importance):
        super().__init__(name="anchor", dtype="float32")
        self.strength = self._constant(np.float32(strength), "strength")
        self.pulls = []
        for i, variable in enumerate(variables):
            start = self._constant(ops.convert_to_numpy(ops.cast(variable.value, "float32")), f"start_{i}")
            factor = None if importance is None else self._constant(importance[variable.path], f"importance_{i}")
            pull = Pull(self.strength, start, factor, variable.regularizer)
            self.pulls.append((variable, pull))
            variable.regularizer = pull
        self.built = True

    def detach(self) -> None:
        """Gives the weights back the regularizers that they had."""
        for variable, pull in self.pulls:
            variable.regularizer = pull.other

    def _constant(self, value, name):
        return self.add_weight(
            shape=np.shape(value), initializer=lambda *a, **k: ops.convert_to_tensor(value), trainable=False, name=name
        )


class Pull(keras.regularizers.Regularizer):
    """strength / 2 · Σ importance · (weight − start)², and what was there before."""

    def __init__(self, strength, start, importance, other):
        self.strength, self.start, self.importance, self.other = strength, start, importance, other

    def __call__(self, x):
        squares = ops.square(ops.cast(x, "float32") - self.start)
        if self.importance is not None:
            squares = squares * self.importance
        penalty = self.strength / 2 * ops.sum(squares)
        return penalty if self.other is None else penalty + self.other(x)


class SquaredGradients(keras.optimizers.Optimizer):
    """Changes nothing, and sums the squares of the gradients that it is given."""

    def __init__(self):
        super().__init__(learning_rate=1.0, name="squared_gradients")

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self._totals = self.add_optimizer_variables(variables, "total")

    def update_step(self, gradient, variable, learning_rate):
        self.assign_add(self._totals[self._get_variable_index(variable)], ops.square(gradient))

    def totals(self) -> dict[str, keras.Variable]:
        """Weight's path → the sum of its squared gradients."""
        return {v.path: total for v, total in zip(self._trainable_variables, self._totals)}


def _anchor_of(model) -> Anchor | None:
    return getattr(model, "_anchor", None)


@contextlib.contextmanager
def _without_penalty(model) -> Iterator[None]:
    layer = _anchor_of(model)
    if layer is None:
        yield
        return
    before = float(ops.convert_to_numpy(layer.strength.value))
    layer.strength.assign(0.0)
    try:
        yield
    finally:
        layer.strength.assign(before)


@contextlib.contextmanager
def _optimizer(model, optimizer) -> Iterator[None]:
    """The model with another optimizer, inside a `with`; compiled as it was, or with the default loss."""
    before = model.optimizer if model.compiled else None
    if model.compiled:
        model.optimizer = optimizer
        forget_compiled(model)
    else:
        model.compile(optimizer=optimizer)
    try:
        with _without_penalty(model):
            yield
    finally:
        if before is not None:
            model.optimizer = before
        else:
            model.compiled = False
        forget_compiled(model)
