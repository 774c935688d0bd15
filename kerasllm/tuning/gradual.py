"""Gradual unfreezing: training begins at the top, and goes further down as it goes on."""

import keras
from keras import ops

from kerasllm.training.watcher import inner_optimizer
from kerasllm.tuning.freezing import blocks, frozen_by_us, trained, unfreeze_layers


class GradualUnfreezing(keras.callbacks.Callback):
    """Trains one more frozen block every so often, the topmost first, and at last what else is frozen.

    Freeze the blocks before the model is compiled. Each time more is trained, Keras compiles the step again, as it
    must; this is counted in `compilations`, and printed. The optimizer keeps what it knows of the weights that it has
    trained so far. `Checkpoint` resumes it like any other training.

    Args:
        every: epochs, or steps, after which the next block is trained.
        unit: "epochs" or "steps" (batches).
        verbose: whether to print what is trained.

    Raises:
        ValueError: a setting out of range; or, from `fit`, a model without frozen blocks.

    Example:
    ```python
    model.freeze("embedding", "first 6")
    model.compile(keras.optimizers.AdamW(1e-4))
    model.fit(train, epochs=8, callbacks=[GradualUnfreezing(every=1)])
    ```

    Reference: Howard and Ruder (2018), "Universal Language Model Fine-tuning for Text Classification".
    """

    def __init__(self, every: int = 1, unit: str = "epochs", verbose: bool = True):
        super().__init__()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"`every` must be at least 1. Received: every={every!r}")
        if unit not in ("epochs", "steps"):
            raise ValueError(f"`unit` must be 'epochs' or 'steps'. Received: unit={unit!r}")
        self.every, self.unit, self.verbose = every, unit, verbose
        self.compilations = self._done = self._passed = 0

    def get_state(self):
        """For `Checkpoint`: how often more was unfrozen, and how many steps have begun."""
        return {"done": self._done, "passed": self._passed}

    def resume(self, state, within_epoch):
        """Trains what was trained when the state was saved; before weights are restored, which are as many as then."""
        self._go_to(state["done"])
        self._passed = state["passed"] - within_epoch  # There, the step before which it was saved has begun.

    def on_train_begin(self, logs=None):
        self._passed = self._done = 0
        self._stages = _stages(self.model)
        if not self._stages:
            raise ValueError('No block is frozen. Freeze some before compiling: model.freeze("embedding", "first 6").')

    def on_epoch_begin(self, epoch, logs=None):
        if self.unit == "epochs":
            self._go_to(epoch // self.every)

    def on_train_batch_begin(self, batch, logs=None):
        if self.unit == "steps":
            self._go_to(self._passed // self.every)
        self._passed += 1

    def _go_to(self, stage):
        while self._done < stage and self._stages:
            self._unfreeze(*self._stages.pop(0))
            self._done += 1

    def _unfreeze(self, name, layers):
        model = self.model  # On JAX, this puts what was trained so far back into the variables.
        unfreeze_layers(model, layers)
        extend(inner_optimizer(model), model.trainable_variables)
        model.make_train_function(force=True)
        self.compilations += 1
        if self.verbose:
            counts = trained(model)
            print(
                f"{name} is trained now, too: {counts.parameters:,} of {counts.total:,} parameters. "
                f"The step is compiled again ({self.compilations} so far, {len(self._stages)} to come)."
            )


def extend(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> None:
    """Builds an optimizer anew for these variables, with what it knows of those that it had."""
    kept = (optimizer._iterations, optimizer._learning_rate)
    known = {v.path: ops.convert_to_numpy(v.value) for v in optimizer.variables}
    for variable in optimizer.variables:
        if not any(variable is k for k in kept):
            optimizer._tracker.untrack(variable)
    optimizer._trainable_variables_indices.clear()
    optimizer.built = False
    optimizer.build(variables)
    for variable in optimizer.variables:
        if variable.path in known:
            variable.assign(known[variable.path])


def _stages(model) -> list[tuple[str, list]]:
    """(name, layers) that are frozen, in the order in which they are to be trained."""
    stacks = [list(reversed(stack)) for stack in blocks(model)]
    stages = []
    for depth in range(max(map(len, stacks), default=0)):
        layers = [stack[depth] for stack in stacks if depth < len(stack) and frozen_by_us(model, stack[depth])]
        if layers:
            stages.append((" and ".join(layer.path.removeprefix("transformer/") for layer in layers), layers))
    if not stages:
        return []
    inside = {id(v) for stack in stacks for block in stack for v in block.variables}
    return stages + ([("What is beside the blocks", [model])] if frozen_by_us(model, model, inside) else [])
