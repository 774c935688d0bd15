"""LoRA: a frozen kernel and two small factors beside it, whose product is what training changes."""

import dataclasses
import math
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kerasllm.tuning.delta import Delta, is_training, numpy
from kerasllm.tuning.offset import BIAS_NAMES, Offset
from kerasllm.tuning.settings import Part, Settings, ends_with
from kerasllm.tuning.targets import LINEAR, NORMS, named_layers, select, value_for

INITIALIZATIONS = ("default", "orthogonal", "pissa")
BIASES = ("none", "all", "lora_only")


@dataclasses.dataclass(frozen=True)
class LoRA(Settings):
    """Low-rank adaptation: `x @ W + scaling · (x @ A) @ B`, with the kernel W frozen.

    The product A @ B is never formed while training: the backward pass costs what the factors cost, not what W costs.

    Args:
        rank: columns of A and rows of B; or a dict of patterns to ranks, which then are the targets, too.
        alpha: the scaling is alpha / rank. Like `rank`, a number or a dict; targets that no pattern matches have 16.
        targets: see `Settings`; when left out, the query and value projections, as in the paper, or, in models
            that have none, every `Dense` and `EinsumDense`. Embeddings can be targets.
        also_train: see `Settings`.
        dropout: rate on what A reads.
        rslora: the scaling is alpha / √rank, which keeps the updates of large ranks from vanishing.
        dora: the length of each column of the kernel is trained apart from its direction (2-D kernels only).
        initialization: "default" (A random, B zero), "orthogonal" (both random, their product zero) or "pissa" (the
            kernel's own largest singular directions; the base itself is not touched).
        bias: biases that are trained, too: "none", those of the targets ("lora_only"), or "all".
        seed: of the random beginning.

    Raises:
        ValueError: a setting is out of range. `add_adapter` raises it for a rank above a layer's dimensions.

    Example:
    ```python
    model.add_adapter("poems", LoRA(rank=8, alpha=16, targets=["attention.*", "feed_forward.*"]))
    ```

    References: Hu et al. (2021), "LoRA"; Kalajdzievski (2023), "rsLoRA"; Liu et al. (2024), "DoRA"; Meng et al.
    (2024), "PiSSA".
    """

    rank: int | dict[str, int] = 8
    alpha: float | dict[str, float] = 16.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    initialization: str = "default"
    bias: str = "none"
    seed: int = 0

    kinds: ClassVar[tuple[type, ...]] = (*LINEAR, keras.layers.Embedding)

    def check(self):
        for rank in self.rank.values() if isinstance(self.rank, dict) else [self.rank]:
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ValueError(f"`rank` must be a whole number of at least 1. Received: rank={self.rank!r}")
        for alpha in self.alpha.values() if isinstance(self.alpha, dict) else [self.alpha]:
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
                raise ValueError(f"`alpha` must be a number. Received: alpha={self.alpha!r}")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={self.dropout!r}")
        for name, choices in (("initialization", INITIALIZATIONS), ("bias", BIASES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={getattr(self, name)!r}")
        if isinstance(self.rank, dict) and self.targets is None:
            object.__setattr__(self, "targets", tuple(self.rank))

    def default_targets(self, names):
        return ends_with(names, "query", "value")

    def find(self, model):
        found = super().find(model)
        if self.targets is not None:
            for setting in (self.rank, self.alpha):
                if isinstance(setting, dict):
                    select(setting, found)  # Each must match a target.
            return found
        found = {name: layer for name, layer in found.items() if isinstance(layer, LINEAR)}
        if not found:
            raise ValueError("The model has no Dense or EinsumDense layer. Say which embeddings are the `targets`.")
        return found

    def build(self, model, gate, adapter):
        parts = super().build(model, gate, adapter)
        if self.bias == "none":
            return parts
        taken = {id(part.layer) for part in parts if isinstance(part.delta, Offset)}
        targets = {part.name for part in parts}
        layers = named_layers(model, (*LINEAR, *NORMS)) if self.bias == "all" else named_layers(model, LINEAR)
        for name, layer in layers.items():
            attributes = [a for a in BIAS_NAMES if getattr(layer, a, None) is not None]
            if attributes and id(layer) not in taken and (self.bias == "all" or name in targets):
                delta = Offset(gate, layer, f"bias_{adapter}", attributes)
                parts.append(Part(name, layer, delta.create()))
        return parts

    def make(self, layer, name, gate, adapter):
        rank, alpha = value_for(self.rank, name), value_for(self.alpha, name, default=16.0)
        if rank is None:
            raise ValueError(f"No pattern in `rank` matches the target {name!r}. Received: rank={self.rank!r}")
        return LoRADelta(gate, layer, f"lora_{adapter}", name, rank, alpha, self)


class LoRADelta(Delta):
    """The factors `lora_a` (in, rank) and `lora_b` (rank, out) at one layer, and `magnitude` (out,) with DoRA."""

    def __init__(self, gate, host, name, layer_name, rank, alpha, settings: LoRA):
        super().__init__(gate, host, name)
        self._kernel = Kernel(host, layer_name)
        self.rank, self.alpha, self.settings = rank, alpha, settings
        largest = min(self._kernel.in_dim, self._kernel.out_dim)
        if rank > largest:
            raise ValueError(
                f"The rank must be at most the smaller dimension of the kernel. Received: rank={rank} for "
                f"{layer_name!r}, which is {self._kernel.in_dim} by {self._kernel.out_dim}"
            )
        self.scaling = alpha / (math.sqrt(rank) if settings.rslora else rank)
        if settings.dora and not isinstance(host, keras.layers.Dense):
            raise ValueError(f"DoRA goes to Dense layers. Received: the target {layer_name!r}, {type(host).__name__}")
        if (settings.dora or settings.initialization == "pissa") and getattr(host, "quantization_mode", None):
            raise ValueError(
                f"DoRA and PiSSA read the base's kernel, which is quantized. Received: the target {layer_name!r}, "
                f"{host.quantization_mode}. Use plain LoRA, or a base that is not quantized."
            )

    def build(self):
        a, b = self._begin()
        self.lora_a, self.lora_b = (self._weight(n, x) for n, x in (("lora_a", a), ("lora_b", b)))
        if self.settings.initialization == "pissa":
            # The base keeps its kernel: what the factors begin with is taken off again.
            self.start_a = self._weight("start_a", a, trainable=False)
            self.start_b = self._weight("start_b", b, trainable=False)
        if self.settings.dora:
            lengths = np.linalg.norm(self._kernel.matrix() + self.scaling * (a @ b), axis=0)
            self.magnitude = self._weight("magnitude", lengths)
        if self.settings.dropout:
            self.dropout = keras.layers.Dropout(self.settings.dropout, dtype=self.dtype_policy)
        self.built = True

    def _weight(self, name, value, trainable=True):
        constant = keras.initializers.Constant(value.astype("float32"))
        return self.add_weight(shape=value.shape, initializer=constant, trainable=trainable, name=name)

    def _begin(self):
        k, rank = self._kernel, self.rank
        layer_seed = [self.settings.seed, *k.name.encode()]
        random = np.random.default_rng(layer_seed)
        if self.settings.initialization == "pissa":
            u, s, v = np.linalg.svd(k.matrix(), full_matrices=False)
            root = np.sqrt(s[:rank] / self.scaling)
            return u[:, :rank] * root, root[:, None] * v[:rank]
        if self.settings.initialization == "orthogonal":
            q, _ = np.linalg.qr(random.normal(size=(rank, rank)))
            half = rank // 2
            a = random.normal(size=(k.in_dim, half)) @ q[:, :half].T / math.sqrt(k.in_dim)
            return a, q[:, half:] @ random.normal(size=(rank - half, k.out_dim)) / math.sqrt(k.out_dim)
        if k.is_embedding:
            return np.zeros((k.in_dim, rank)), random.normal(size=(rank, k.out_dim))
        bound = 1 / math.sqrt(k.in_dim)  # That of a new linear layer in PyTorch.
        return random.uniform(-bound, bound, (k.in_dim, rank)), np.zeros((rank, k.out_dim))

    def call(self, x, y, training=False):
        a, b = self._factors()
        a, b = ops.cast(a, y.dtype), ops.cast(b, y.dtype)
        dropping = self.settings.dropout and is_training(training, self)
        read = self.dropout.call(x, training=True) if dropping and not self._kernel.is_embedding else x
        low = self._kernel.first(read, a)
        if not self.settings.dora:
            return self._kernel.second(self.gated(low) * self.scaling, b)
        # m / ‖W + s·A·B‖ · (x·W + s·x·A·B) − x·W, where the norm counts as a constant.
        ratio = ops.cast(self.magnitude / ops.stop_gradient(self._norm()), y.dtype)
        bias = self._kernel.layer.bias
        plain = self._kernel.first(read, ops.cast(self._kernel.layer.kernel, y.dtype)) if dropping else y
        plain = plain if dropping or bias is None else plain - ops.cast(bias, y.dtype)
        return self.gated((ratio - 1) * plain + ratio * (self._kernel.second(low * self.scaling, b)))

    def _factors(self):
        if self.settings.initialization != "pissa":
            return self.lora_a, self.lora_b
        a = ops.concatenate([self.lora_a, ops.stop_gradient(self.start_a)], axis=1)
        return a, ops.concatenate([self.lora_b, -ops.stop_gradient(self.start_b)], axis=0)

    def _norm(self):
        """Lengths of the columns of W + s·A·B, (out,), from products with A alone."""
        kernel = ops.cast(self._kernel.layer.kernel, "float32")
        a, b = (ops.cast(x, "float32") for x in self._factors())
        cross = ops.sum(ops.matmul(ops.transpose(a), kernel) * b, axis=0)
        square = ops.sum(ops.matmul(ops.matmul(ops.transpose(a), a), b) * b, axis=0)
        total = ops.sum(ops.square(kernel), axis=0) + 2 * self.scaling * cross + self.scaling**2 * square
        return ops.sqrt(ops.maximum(total, 1e-20))

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """A (in, r) and B (r, out) of a plain LoRA that does the same; r is twice the rank with PiSSA."""
        a, b = self._factors()
        return numpy(a), numpy(b)

    def offsets(self):
        a, b = self.factors()
        update = self.scaling * (a.astype("float64") @ b)
        if self.settings.dora:
            kernel = self._kernel.matrix().astype("float64")
            moved = kernel + update
            update = numpy(self.magnitude) / np.linalg.norm(moved, axis=0) * moved - kernel
        name = "embeddings" if self._kernel.is_embedding else "kernel"
        return {name: update.reshape(self._kernel.shape)}


class Kernel:
    """A layer's kernel as one (in, out) matrix, and how its factors are applied.

    The kernel of an `EinsumDense` has its axes named: those that are summed over with the input come first.
    """

    def __init__(self, layer, name: str):
        self.layer, self.name = layer, name
        self.is_embedding = isinstance(layer, keras.layers.Embedding)
        self.equations = None
        if self.is_embedding:
            self.shape = (layer.input_dim, layer.output_dim)
            self.summed = 1
        elif isinstance(layer, keras.layers.EinsumDense):
            self.shape = tuple(getattr(layer, "original_kernel_shape", None) or layer.kernel.shape)
            self._name_axes(layer.equation)
        else:
            self.shape = (layer.input_spec.axes[-1], layer.units)
            self.summed = 1
        self.in_dim = math.prod(self.shape[: self.summed])
        self.out_dim = math.prod(self.shape[self.summed :])

    def _name_axes(self, equation: str) -> None:
        (read, kernel), made = equation.split("->")[0].split(","), equation.split("->")[1]
        summed = [letter for letter in kernel if letter in read and letter not in made]
        self.summed = len(summed)
        if list(kernel[: self.summed]) != summed or any(letter in read for letter in kernel[self.summed :]):
            raise ValueError(
                f"Adapters go to an EinsumDense whose kernel has the axes it sums over first, and no axis of its "
                f"input after them. Received: the target {self.name!r}, equation={equation!r}"
            )
        low = next(letter for letter in "zyxwvutsrqponmlkjihgfedcba" if letter not in equation)
        kept = "".join(letter for letter in read if letter not in summed) + low
        self.equations = f"{read},{''.join(summed)}{low}->{kept}", f"{kept},{low}{kernel[self.summed :]}->{made}"

    def first(self, x, a):
        """`x @ A`; rows of A for an embedding."""
        if self.is_embedding:
            return ops.take(a, ops.cast(x, "int32"), axis=0)
        if self.equations is not None:
            return ops.einsum(self.equations[0], x, ops.reshape(a, (*self.shape[: self.summed], -1)))
        return linear(x, a)

    def second(self, low, b):
        """`low @ B`."""
        if self.equations is not None:
            return ops.einsum(self.equations[1], low, ops.reshape(b, (-1, *self.shape[self.summed :])))
        return linear(low, b)

    def matrix(self) -> np.ndarray:
        """The kernel on the host, (in, out)."""
        kernel = self.layer.embeddings if self.is_embedding else self.layer.kernel
        return numpy(kernel).reshape(self.in_dim, self.out_dim)


def linear(x, kernel):
    """`x @ kernel` as one flat product; see `Projection` for why."""
    if len(x.shape) <= 2:
        return ops.matmul(x, kernel)
    shape = ops.shape(x)
    return ops.reshape(ops.matmul(ops.reshape(x, (-1, shape[-1])), kernel), (*shape[:-1], kernel.shape[-1]))
