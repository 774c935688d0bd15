"""Gradient accumulation that weighs tokens, not micro-batches.

Keras averages the gradients of micro-batches, which counts a token of a short batch more than one of a long
batch. Here each micro-batch's mean gradient is weighed by its tokens, so that k micro-batches give exactly
the gradient of one batch of all their tokens.
"""

import keras
from keras import ops


class _TokenWeighted:
    """Mixed into an optimizer; `batch_tokens` is set, by the model, before each `apply`."""

    batch_tokens = 1.0

    def build(self, variables):
        super().build(variables)
        self._accumulated_tokens = self.add_variable((), dtype="float32", name="accumulated_tokens")

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(list(trainable_variables))
        tokens = ops.cast(self.batch_tokens, "float32")
        so_far = self._accumulated_tokens + tokens
        self._mean_tokens = so_far / self.gradient_accumulation_steps
        super().apply([None if g is None else g * ops.cast(tokens, g.dtype) for g in grads], trainable_variables)
        updated = self._iterations % self.gradient_accumulation_steps == 0
        # `_iterations` counts micro-batches, the public `iterations` updates.
        self._accumulated_tokens.assign(ops.where(updated, 0.0, so_far))

    def _clip_gradients(self, grads):
        # Keras calls this on the averaged gradients, just before the update: the place to divide by the tokens.
        return super()._clip_gradients([g / ops.cast(self._mean_tokens, g.dtype) for g in grads])


def token_weighted(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The same optimizer with token-weighted accumulation; itself, if it does not accumulate."""
    if not optimizer.gradient_accumulation_steps or isinstance(optimizer, _TokenWeighted):
        return optimizer
    if optimizer.built:
        raise ValueError(f"The optimizer {optimizer.name!r} has been used already; make a new one to accumulate.")
    cls = type(optimizer)
    # The object itself changes class, so that what was set on it (decay exclusions, say) stays.
    optimizer.__class__ = type(cls.__name__, (_TokenWeighted, cls), {"__module__": cls.__module__})
    return optimizer
