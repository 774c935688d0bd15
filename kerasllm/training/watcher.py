"""The base of callbacks that watch: where training is, in updates of the optimizer.

With gradient accumulation an update is several batches. Nothing here touches `self.model` in batch hooks: on
JAX that copies the whole state back.
"""

import keras


class Watcher(keras.callbacks.Callback):
    """Knows where training is. Safe to be called beside the training loop, as Keras does on JAX."""

    async_safe = True

    def set_model(self, model):
        super().set_model(model)
        self.watched = model

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    @property
    def batches_per_epoch(self) -> int | None:
        return (self.params or {}).get("steps")

    @property
    def total_steps(self) -> int | None:
        """Updates in all epochs, where the data says how many batches an epoch has."""
        batches = self.batches_per_epoch
        return batches and batches * self.params["epochs"] // self.accumulation

    def step_after(self, batch: int) -> int:
        """Updates made after batch `batch` of this epoch, counted over all epochs and resumes."""
        resumed = getattr(getattr(self.watched, "train_data", None), "start_step", 0)
        return (self.epoch * (self.batches_per_epoch or 0) + resumed + batch + 1) // self.accumulation

    @property
    def steps_done(self) -> int:
        """Updates the optimizer has made. For the ends of epochs only: it waits for the device."""
        return int(keras.ops.convert_to_numpy(inner_optimizer(self.model).iterations))

    @property
    def accumulation(self) -> int:
        return inner_optimizer(self.watched).gradient_accumulation_steps or 1


def inner_optimizer(model):
    """The optimizer that updates, which loss scaling wraps."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)
