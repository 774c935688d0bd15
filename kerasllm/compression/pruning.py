"""`prune(model, ...)`: zeros among the weights, by size or by what they do; and zeros that training keeps."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kerasllm.compression.calibration import BUILTIN, calibration_rows, first_batches, observe, run_step
from kerasllm.compression.chain import chain_of
from kerasllm.compression.post_training import forget_compiled
from kerasllm.compression.schemes import scheme_of
from kerasllm.compression.sparse import check_sparsity, largest, pattern_of, sparse_gpt, wanda
from kerasllm.training.watcher import Watcher, inner_optimizer
from kerasllm.tuning.targets import named_layers, select

SCOPES = ("layer", "model")
WANDA_SCOPES = ("output", "layer")


@dataclasses.dataclass(frozen=True)
class Magnitude:
    """The smallest weights go.

    Args:
        sparsity: share of zeros, in [0, 1), or a pattern: "2:4" keeps 2 of each 4 inputs in a row of an output.
        scope: whether each "layer" loses the same share, or the smallest of the whole "model" go.

    Raises:
        ValueError: a setting out of range.

    Reference: Han et al. (2015), "Learning both Weights and Connections for Efficient Neural Networks".
    """

    sparsity: float | str = 0.5
    scope: str = "layer"

    def __post_init__(self):
        check_sparsity(self.sparsity)
        if self.scope not in SCOPES:
            raise ValueError(f"`scope` must be one of {', '.join(SCOPES)}. Received: scope={self.scope!r}")
        if self.scope == "model" and pattern_of(self.sparsity):
            raise ValueError(
                f"A pattern is the same in each layer. Received: sparsity={self.sparsity!r}, scope='model'"
            )


@dataclasses.dataclass(frozen=True)
class Wanda:
    """The weights go that matter least to their output on a text: |weight| times the length of its input.

    Args:
        sparsity: share of zeros; as in `Magnitude`.
        calibration: texts, a file, or arrays of token ids; the documentation of Python when left out.
        scope: whether each "output" loses the same share, which the authors found best for large models, or each
            "layer", which leaves our small ones better.

    Raises:
        ValueError: a setting out of range.

    Reference: Sun et al. (2023), "A Simple and Effective Pruning Approach for Large Language Models".
    """

    sparsity: float | str = 0.5
    calibration: Any = BUILTIN
    scope: str = "output"

    def __post_init__(self):
        check_sparsity(self.sparsity)
        if self.scope not in WANDA_SCOPES:
            raise ValueError(f"`scope` must be one of {', '.join(WANDA_SCOPES)}. Received: scope={self.scope!r}")

    def solve(self, kernel, gram):
        return wanda(kernel, gram, self.sparsity, each_output=self.scope == "output")


@dataclasses.dataclass(frozen=True)
class SparseGPT:
    """The weights go whose loss those that stay can best make up for, which they then do.

    Args:
        sparsity: of each layer; as in `Magnitude`.
        calibration: as in `Wanda`.
        damping: of the solver; more where it is unstable.

    Raises:
        ValueError: a setting out of range.

    Reference: Frantar and Alistarh (2023), "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot".
    """

    sparsity: float | str = 0.5
    calibration: Any = BUILTIN
    damping: float = 0.01

    def __post_init__(self):
        check_sparsity(self.sparsity)

    def solve(self, kernel, gram):
        return sparse_gpt(kernel, gram, self.sparsity, self.damping)


class Sparsity(NamedTuple):
    """Shares of zeros: of each prunable layer's kernel, by name, and of all of them."""

    layers: dict[str, float]
    total: float


def prune(model, method: Magnitude | Wanda | SparseGPT, layers: str | Sequence[str] = "*") -> None:
    """Sets weights to zero, in place, and keeps them zero when the model is trained on.

    A dense kernel with zeros is no smaller and no faster by itself: see `prune_structure` for that.

    Args:
        model: one of ours, with float weights and without adapters.
        method: `Magnitude`, `Wanda` or `SparseGPT`.
        layers: globs of layers, among the projections of all blocks.

    Raises:
        ValueError: a glob that matches nothing, a pattern that does not divide a layer's inputs, a model that is
            quantized or has adapters, a text too short to calibrate on. The model is then as it was.

    Example:
    ```python
    prune(model, Wanda(0.5, calibration=texts), layers="*.feed_forward.*")
    model.compile(keras.optimizers.AdamW(1e-4))
    model.fit(texts)
    print(sparsity(model).total)
    ```
    """
    if not isinstance(method, Magnitude | Wanda | SparseGPT):
        raise TypeError(f"`method` must be Magnitude(...), Wanda(...) or SparseGPT(...). Received: method={method!r}")
    chosen = _chosen(model, layers)
    _check_divides(chosen, method.sparsity)
    if isinstance(method, Magnitude):
        for layer, stays in zip(chosen.values(), _by_size(chosen, method)):
            layer._kernel.assign(np.where(stays, _numpy(layer._kernel), 0.0))
    else:
        _calibrated(model, chosen, method, calibration_rows(model, method.calibration))
    _keep(model, chosen)


def keep_zeros(model, layers: str | Sequence[str] = "*") -> None:
    """Keeps the weights that are zero now at zero in training, as `prune` does: for a pruned model that was loaded.

    Args:
        model, layers: as in `prune`.
    """
    _keep(model, _chosen(model, layers))


def free_zeros(model) -> None:
    """Lets training change all weights again."""
    for layer in prunable_layers(model).values():
        if isinstance(layer._kernel.constraint, Zeros):
            layer._kernel.constraint = None
    forget_compiled(model)


def sparsity(model) -> Sparsity:
    """The shares of zeros among the weights of the projections of all blocks."""
    kernels = {name: _numpy(layer._kernel) for name, layer in prunable_layers(model).items()}
    zeros = {name: int(kernel.size - np.count_nonzero(kernel)) for name, kernel in kernels.items()}
    return Sparsity(
        {name: zeros[name] / kernel.size for name, kernel in kernels.items()},
        sum(zeros.values()) / sum(kernel.size for kernel in kernels.values()),
    )


class GradualPruning(Watcher):
    """A callback: the smallest weights of each layer go little by little, most of them early, when many are left.

    Args:
        model: that is to be trained; its masks, which keep nothing out yet, are made here.
        sparsity: share of zeros at the end, in [0, 1).
        begin, end: updates after which the first and the last weights go.
        every: updates between.
        initial: share of zeros at `begin`.
        layers: globs of layers, as in `prune`.
        scope: as in `Magnitude`.

    Raises:
        ValueError: a setting out of range, or as `prune`.

    Example:
    ```python
    model.fit(texts, epochs=2, callbacks=[GradualPruning(model, 0.8, begin=100, end=1000)])
    ```

    Reference: Zhu and Gupta (2017), "To prune, or not to prune: exploring the efficacy of pruning for model
    compression".
    """

    def __init__(
        self,
        model,
        sparsity: float,
        begin: int = 0,
        end: int = 1000,
        every: int = 100,
        initial: float = 0.0,
        layers: str | Sequence[str] = "*",
        scope: str = "layer",
    ):
        super().__init__()
        Magnitude(sparsity, scope)
        if isinstance(sparsity, str) or not 0 <= initial <= sparsity:
            raise ValueError(
                "`sparsity` must be a share, and `initial` at most that. "
                f"Received: sparsity={sparsity!r}, initial={initial!r}"
            )
        if not 0 <= begin < end or every < 1:
            raise ValueError(
                "`begin` must come before `end`, and `every` be at least 1. "
                f"Received: begin={begin}, end={end}, every={every}"
            )
        self.sparsity, self.initial, self.scope = sparsity, initial, scope
        self.begin, self.end, self.every = begin, end, every
        self._layers = _chosen(model, layers)
        _keep(model, self._layers)

    def sparsity_at(self, step: int) -> float:
        """The share of zeros after so many updates."""
        progress = min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.sparsity + (self.initial - self.sparsity) * (1 - progress) ** 3

    def on_train_begin(self, logs=None):
        trained = {id(variable) for variable in self.model.trainable_variables}
        if any(id(layer._kernel) not in trained for layer in self._layers.values()):
            raise ValueError("GradualPruning was made for another model, or for layers that are not trained.")
        self._start, self._batches = self.steps_done, 0

    def on_train_batch_begin(self, batch, logs=None):
        step = self._start + self._batches // self.accumulation
        is_update = self._batches % self.accumulation == 0
        self._batches += 1
        due = self.begin <= step <= self.end and ((step - self.begin) % self.every == 0 or step == self.end)
        if is_update and due:
            self.model  # noqa: B018  On JAX this brings the weights back from the training loop.
            method = Magnitude(self.sparsity_at(step), self.scope)
            for layer, stays in zip(self._layers.values(), _by_size(self._layers, method)):
                layer._kernel.constraint.assign(layer._kernel, stays)


class Zeros(keras.constraints.Constraint):
    """Keeps the weights of a variable at zero where `mask`, a boolean variable, says so.

    Args:
        stays: which weights are not zero.
        known: whether that is so; else it is to be read from a file, or found when training begins.
    """

    def __init__(self, stays: np.ndarray, known: bool = True):
        self.mask = keras.Variable(stays, trainable=False, dtype="bool", name="mask")
        self.known = known

    def __call__(self, w):
        mask, w = ops.convert_to_tensor(self.mask), ops.convert_to_tensor(w)
        return ops.where(mask, w, ops.zeros_like(w))

    def set_mask(self, stays: np.ndarray) -> None:
        self.mask.assign(stays)
        self.known = True

    def assign(self, variable, stays: np.ndarray) -> None:
        """Another mask, which the variable obeys at once."""
        self.set_mask(stays)
        variable.assign(np.where(stays, _numpy(variable), 0.0))


def share_masks(model) -> None:
    """Makes the masks a part of the optimizer's state, so that on JAX they are no constants of the compiled step."""
    if model.optimizer is None:
        return
    optimizer = inner_optimizer(model)
    shared = {id(variable) for variable in optimizer.variables}
    for variable in model.trainable_variables:
        if isinstance(variable.constraint, Zeros) and id(variable.constraint.mask) not in shared:
            optimizer._track_variable(variable.constraint.mask)


def find_masks(model) -> None:
    """Masks that were not read from a file are of what is zero now: those of a copy whose weights were set."""
    for variable in model.trainable_variables:
        if isinstance(variable.constraint, Zeros) and not variable.constraint.known:
            variable.constraint.set_mask(_numpy(variable) != 0)


def prunable_layers(model) -> dict[str, keras.layers.Layer]:
    """The projections of all blocks, by dotted name, such as "block_0.attention.query"."""
    inside = {id(layer) for step in chain_of(model)[1:] for layer in step._flatten_layers()}
    return {n: layer for n, layer in named_layers(model, (keras.layers.Dense,)).items() if id(layer) in inside}


def check_plain(model) -> None:
    """Raises a ValueError if a model has adapters or is quantized."""
    if model.adapters:
        raise ValueError(
            f"The model has adapters ({', '.join(model.adapters)}). Delete them, or merge them, save the model and "
            "load it again."
        )
    for name, layer in prunable_layers(model).items():
        if scheme_of(layer) is not None:
            raise ValueError(
                f"The model is quantized: {name!r} is {scheme_of(layer).mode}. Prune the model that it was made from, "
                "and quantize what comes of it."
            )


def _chosen(model, layers: str | Sequence[str]) -> dict[str, keras.layers.Layer]:
    check_plain(model)
    prunable = prunable_layers(model)
    names = select([layers] if isinstance(layers, str) else layers, prunable)
    return {name: prunable[name] for name in names}


def _check_divides(layers, sparsity: float | str) -> None:
    pattern = pattern_of(sparsity)
    for name, layer in layers.items():
        if pattern and layer._kernel.shape[0] % pattern[1]:
            raise ValueError(
                f"The pattern must divide the inputs of each layer, and {name!r} has {layer._kernel.shape[0]}. "
                f"Received: sparsity={sparsity!r}"
            )


def _by_size(layers, method: Magnitude) -> list[np.ndarray]:
    """Which weights of each layer stay."""
    sizes = [np.abs(_numpy(layer._kernel)) for layer in layers.values()]
    if method.scope == "layer":
        return [largest(size, method.sparsity) for size in sizes]
    stays = largest(np.concatenate([size.reshape(-1) for size in sizes])[:, None], method.sparsity)[:, 0]
    parts = np.split(stays, np.cumsum([size.size for size in sizes])[:-1])
    return [part.reshape(size.shape) for part, size in zip(parts, sizes)]


def _calibrated(model, layers, method: Wanda | SparseGPT, rows: np.ndarray) -> None:
    """Prunes block by block, each for what the pruned blocks before it give it."""
    first, *steps = chain_of(model)
    batches = first_batches(first, rows)
    for step in steps:
        inside = {id(layer) for layer in step._flatten_layers()}
        here = {name: layer for name, layer in layers.items() if id(layer) in inside}
        for name, inputs in (observe(step, here, batches) if here else {}).items():
            kernel = here[name]._kernel
            kernel.assign(method.solve(_numpy(kernel), inputs.gram).astype("float32"))
        batches = run_step(step, batches)


def _keep(model, layers) -> None:
    for layer in layers.values():
        stays, constraint = _numpy(layer._kernel) != 0, layer._kernel.constraint
        if isinstance(constraint, Zeros):
            constraint.set_mask(stays)
        else:
            layer._kernel.constraint = Zeros(stays)
    forget_compiled(model)


def _numpy(variable) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(ops.cast(variable.value, "float32")))
