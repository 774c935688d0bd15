"""The doors of training: `fit`, `evaluate`, `predict` and their `_on_batch` forms, for data of any kind."""

import contextlib
import warnings

import keras
import numpy as np

from kerasllm.models.batches import prediction_data, read_batch, task_data
from kerasllm.models.devices import check_batch_rows, check_devices
from kerasllm.models.inputs import split_rows
from kerasllm.models.tf_data import reason_of


class Doors:
    """Mixed into a Keras model. All data is checked here before Keras gets it, with the same words at each door."""

    # Keras's own arguments, in its own order.

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ):
        """Keras's `fit`, which also takes strings; see `CausalLM`."""
        with self.door("fit"):
            check_counts(batch_size=batch_size, validation_batch_size=validation_batch_size)
            check_counts(steps_per_epoch=steps_per_epoch, validation_steps=validation_steps)
            check_counts(least=0, epochs=epochs, initial_epoch=initial_epoch)
            arrays, batch_size = (x, y, sample_weight), batch_size or 32
            if validation_split and validation_data is None:
                arrays, validation_data = split_rows(arrays, validation_split)
            options = {"class_weight": class_weight, "steps": steps_per_epoch, "training": True}
            data = self.as_data(*arrays, batch_size, shuffle=shuffle, **options)
            if validation_data is not None:
                parts = validation_data if isinstance(validation_data, tuple) else (validation_data,)
                size = validation_batch_size or batch_size
                validation_data = self.as_data(*parts, batch_size=size, steps=validation_steps)
            self.train_data, size = data, getattr(data, "local_batch_size", None)
            if validation_data is not None and getattr(validation_data, "local_batch_size", None) != size:
                size = None
            self._set_static_batch(size)
            self._build_optimizer()
            if self.optimizer is not None and self.jit_compile and keras.backend.backend() == "torch":
                self._prepare_torch_compile()
            callbacks = callbacks or []
            self.fit_callbacks = callbacks if isinstance(callbacks, list | tuple) else callbacks.callbacks
            check_callbacks(self.optimizer, self.fit_callbacks)
            warn_of_waiting(self.optimizer, data, steps_per_epoch, epochs - initial_epoch)
            return super().fit(
                data,
                epochs=epochs,
                verbose=verbose,
                callbacks=callbacks,
                validation_data=validation_data,
                shuffle=False,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_freq=validation_freq,
            )

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Keras's `evaluate`, which also takes strings."""
        options = {"verbose": verbose, "steps": steps, "callbacks": callbacks, "return_dict": return_dict, **kwargs}
        if kwargs.get("_use_cached_eval_dataset"):  # `fit` evaluates what it has read.
            return super().evaluate(x, y, sample_weight=sample_weight, **options)
        with self.door("evaluate"):
            check_counts(batch_size=batch_size, steps=steps)
            x = self.as_data(x, y, sample_weight, batch_size or 32, steps=steps)
            self._set_static_batch(getattr(x, "local_batch_size", None))
            return super().evaluate(x, **options)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """What the task answers, (batch, …); strings are padded on the right to the longest."""
        with self.door("predict"):
            check_counts(batch_size=batch_size, steps=steps)
            x = prediction_data(self, x, batch_size or 32)
            batch_size = None if isinstance(x, keras.utils.PyDataset) else batch_size
            return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """Keras's `train_on_batch`, of all that `fit` takes as rows: strings, lists, arrays."""
        with self.door("train_on_batch"):
            self._batches_drawn += 1  # What is hidden or drawn is another each time.
            batch = read_batch(self, x, y, sample_weight, class_weight, training=True, draw=self._batches_drawn)
            self._build_optimizer()
            self._set_static_batch(None)
            return super().train_on_batch(*batch, return_dict=return_dict)

    def test_on_batch(self, x, y=None, sample_weight=None, return_dict=False):
        """Keras's `test_on_batch`, of all that `evaluate` takes as rows: strings, lists, arrays."""
        with self.door("test_on_batch"):
            batch = read_batch(self, x, y, sample_weight)
            self._set_static_batch(None)
            return super().test_on_batch(*batch, return_dict=return_dict)

    def predict_on_batch(self, x):
        """Keras's `predict_on_batch`, of all that `predict` takes as rows: strings, lists, arrays."""
        with self.door("predict_on_batch"):
            inputs = self.as_inputs(x)
            check_batch_rows(len(keras.tree.flatten(inputs)[0]))
            return super().predict_on_batch(inputs)

    @contextlib.contextmanager
    def door(self, name: str):
        """Around all that Keras runs: what fails leaves the model whole, and says why in one sentence."""
        if not self.compiled and not name.startswith("predict"):
            raise ValueError(f"The model is not compiled. Call model.compile(optimizer) before model.{name}().")
        check_devices(self, name)
        try:
            yield
        except Exception as error:
            reason = reason_of(error)
            if reason is None:
                raise
            raise ValueError(reason) from None
        finally:
            self._stage.now = None  # A step may have failed half-way.
            if keras.backend.backend() == "jax":
                self.jax_state_sync()

    def _get_jax_state(self, purge_model_variables=False, **names):
        """Keras's, which takes the values out of the variables but only keeps them after the first step: an error in
        that step would leave the model without weights."""
        state = super()._get_jax_state(purge_model_variables=purge_model_variables, **names)
        if purge_model_variables:
            self._jax_state = dict(zip([name for name, wanted in names.items() if wanted], state))
        return state

    # Data of any kind ----------------------------------------------------------------------------------------

    def as_data(self, x, y=None, sample_weight=None, batch_size=32, shuffle=False, **options):
        """Whatever `fit` and `evaluate` take, as batches of (x, targets[, weights]); see `task_data`."""
        return task_data(self, x, y, sample_weight, batch_size, shuffle, **options)


def check_counts(least: int = 1, **counts) -> None:
    """Raises a ValueError unless each is a whole number from `least` on, or `None`."""
    for name, count in counts.items():
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise ValueError(f"`{name}` must be a whole number from {least} on. Received: {name}={count!r}")


def warn_of_waiting(optimizer, data, steps_per_epoch: int | None, epochs: int) -> None:
    """Says so if the last batches of a training are too few for an update, and so change nothing yet."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    window = getattr(optimizer, "gradient_accumulation_steps", None)
    if not window:
        return
    try:
        steps = steps_per_epoch or len(data)
    except TypeError:
        return  # A generator, or a pipeline of unknown length.
    if waiting := steps * epochs % window:
        warnings.warn(
            f"Weights are updated every {window} batches (gradient_accumulation_steps), and this training has "
            f"{steps * epochs}: the last {waiting} change nothing unless training goes on with the same optimizer.",
            stacklevel=4,
        )


def check_callbacks(optimizer, callbacks) -> None:
    """Refuses callbacks that set the learning rate of an optimizer which has a schedule for it."""
    schedule = getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None)
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.ReduceLROnPlateau | keras.callbacks.LearningRateScheduler):
            raise ValueError(
                f"{type(callback).__name__} sets the learning rate, and the optimizer has a schedule for it "
                f"({type(schedule).__name__}). Leave the callback out, or compile with an optimizer of a fixed rate, "
                "such as keras.optimizers.AdamW(1e-3)."
            )
