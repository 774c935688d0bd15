"""`prune_structure(model, ...)`: whole heads, neurons and blocks go, and the model is smaller and faster for it."""

import dataclasses

import keras
import numpy as np
from keras import ops

from kerasllm.compression.calibration import calibration_rows, first_batches, observe, run_step
from kerasllm.compression.chain import chain_of
from kerasllm.compression.pruning import check_plain, prunable_layers
from kerasllm.compression.reshaping import Parts, rebuilt, stacks_of
from kerasllm.data.pairs import read_pairs
from kerasllm.models.language_model import no_gradient
from kerasllm.tuning.model_adapters import adapter_of
from kerasllm.tuning.vectors import IA3

ROWS, LENGTH = 64, 256  # of the text that importance is judged on
DAMPING = 0.01  # share of the mean of a Gram matrix's diagonal
GATES = "importance"
GATED = ("*attention.output_dense", "feed_forward.down")


@dataclasses.dataclass(frozen=True)
class Importance:
    """How much a loss would change without each part: layer's name → |gradient of a gate on it|, a mean over rows.

    Attributes:
        heads: of each attention, such as "block_0.attention": (heads,).
        neurons: of each feed-forward, such as "block_0.feed_forward": (intermediate_dim,).
    """

    heads: dict[str, np.ndarray]
    neurons: dict[str, np.ndarray]


def prune_structure(model, heads: float = 0.0, neurons: float = 0.0, layers: float = 0.0, calibration=None):
    """A new model with fewer heads, neurons or blocks: what matters least to the loss on a text goes.

    Each block loses the same number, so that the config says it, but each its own least important ones. (Heads with
    relative positions, which all blocks share, are the same in all blocks.) Where several query heads share keys and
    values, they go together. What those that stay can make up for, by least squares on the text, they do. Heads keep
    their size: `head_dim` no longer is `hidden_dim / num_heads`, which Llama's and T5's files can say; others are then
    saved in our own format.

    Args:
        model: one of ours, with float weights and without adapters. It stays as it is.
        heads, neurons, layers: shares to take away, in [0, 1): of each attention's heads, of each feed-forward's
            width, and of each stack's blocks.
        calibration: texts, a file, or arrays of token ids; for a `Seq2SeqLM` what `kerasllm.data.read_pairs` takes; or
            a tuple (x, y[, sample_weight]) as `fit` takes it. The documentation of Python when left out.

    Returns:
        the new model, not compiled. Train it a little: most of what was lost comes back.

    Raises:
        ValueError: a share out of range or too small to take anything away, a model that is quantized or has adapters,
            a text too short.

    Example:
    ```python
    smaller = prune_structure(model, heads=0.3, neurons=0.3, calibration=texts)
    smaller.compile(keras.optimizers.AdamW(1e-4))
    smaller.fit(texts)
    ```

    References: Michel et al. (2019), "Are Sixteen Heads Really Better than One?"; Molchanov et al. (2016), "Pruning
    Convolutional Neural Networks for Resource Efficient Inference"; Men et al. (2024), "ShortGPT", for blocks; Kurtić
    et al. (2023), "ZipLM", for making up.
    """
    for name, share in (("heads", heads), ("neurons", neurons), ("layers", layers)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"`{name}` must be a share in [0, 1). Received: {name}={share!r}")
    check_plain(model)
    kept_blocks = {name: _kept(layers, count) for name, count in stacks_of(model).items()}
    kept_heads, kept_neurons = _kept(heads, _units(model.config)), _kept(neurons, model.config.intermediate_dim)
    fewer_blocks = any(kept_blocks[name] < count for name, count in stacks_of(model).items())
    fewer_parts = kept_heads < _units(model.config) or kept_neurons < model.config.intermediate_dim
    if not (fewer_blocks or fewer_parts):
        raise ValueError(
            "Nothing would be taken away: the shares are less than one of what the model has. "
            f"Received: heads={heads}, neurons={neurons}, layers={layers}"
        )
    if fewer_blocks:
        influence = block_influence(model, calibration)
        model = rebuilt(model, {name: _largest(influence[name], kept) for name, kept in kept_blocks.items()})
    if fewer_parts:
        found = importance(model, calibration)
        parts, config = {**_head_parts(model, found, kept_heads), **_neuron_parts(found, kept_neurons)}, model.config
        group = config.num_heads // _units(config)
        kv_heads = config.num_kv_heads if config.num_kv_heads == 1 else kept_heads
        sizes = {"num_heads": kept_heads * group, "num_kv_heads": kv_heads, "intermediate_dim": kept_neurons}
        smaller = rebuilt(model, parts=parts, **sizes)
        _make_up(model, smaller, parts, calibration)
        model = smaller
    return model


def made_up(kernel: np.ndarray, gram: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """What some inputs of a kernel are to be multiplied by, so that the outputs stay as near as they can without the
    others, by least squares.

    Args:
        kernel: (in, out).
        gram: (in, in), of the inputs; see `kerasllm.compression.rounding`.
        kept: the inputs that stay, (kept,).

    Returns:
        (kept, out).
    """
    gone = np.setdiff1d(np.arange(len(kernel)), kept)
    theirs = np.array(gram[np.ix_(kept, kept)], "float64")
    theirs[np.diag_indices_from(theirs)] += DAMPING * max(np.diag(gram).mean(), 1e-12)
    return kernel[kept] + np.linalg.solve(theirs, gram[np.ix_(kept, gone)] @ kernel[gone])


def importance(model, calibration=None) -> Importance:
    """How much the loss on a text would change without each head and each neuron, to the first order.

    Args:
        model, calibration: as in `prune_structure`.

    Reference: Michel et al. (2019), equation 2: the mean over rows of |gradient| of a gate on each head's output.
    """
    # The model itself keeps its optimizer, and what was compiled.
    gated = rebuilt(model, dropout=0.0, attention_dropout=0.0)
    gated.add_adapter(GATES, IA3(targets=GATED, on_input=GATED))
    sums = GateGradients(model.config.head_dim)
    gated.compile(optimizer=sums)
    gated.fit(_rows(gated, calibration), epochs=1, verbose=0)
    heads, neurons = {}, {}
    for part in adapter_of(gated, GATES).parts:
        where, _, last = part.name.rpartition(".")
        (heads if last == "output_dense" else neurons)[where] = sums.total(part.delta.factor)
    return Importance(heads, neurons)


def block_influence(model, calibration=None) -> dict[str, np.ndarray]:
    """1 − the cosine between what each block gets and what it gives, a mean over tokens, for each stack.

    Reference: Men et al. (2024), "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect".
    """
    batches, *steps = _walk(model, calibration)
    scores = []
    for step in steps:
        with no_gradient():
            after = run_step(step, batches)
            cosines = [_cosine(x, y) for x, y in zip(batches, after)]
        scores.append(1 - float(np.mean(cosines)))
        batches = after
    ends = np.cumsum(list(stacks_of(model).values()))[:-1]
    return dict(zip(stacks_of(model), np.split(np.asarray(scores), ends)))


class GateGradients(keras.optimizers.Optimizer):
    """Changes nothing, and sums the sizes of the gradients that it is given, those of a head's gates as one."""

    def __init__(self, head_dim: int):
        super().__init__(learning_rate=1.0, name="gate_gradients")
        self.head_dim = head_dim

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self._totals = [self.add_variable((_gates(v, self.head_dim),), name="total") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        total = self._totals[self._get_variable_index(variable)]
        gates = ops.sum(ops.reshape(gradient, (total.shape[0], -1)), axis=-1)
        self.assign_add(total, ops.abs(ops.cast(gates, total.dtype)))

    def total(self, variable) -> np.ndarray:
        """The mean over rows."""
        total = self._totals[self._get_variable_index(variable)]
        return ops.convert_to_numpy(total.value) / max(1, int(ops.convert_to_numpy(self.iterations)))


def _gates(variable, head_dim: int) -> int:
    return variable.shape[0] // (head_dim if "output_dense" in variable.path else 1)


def _units(config) -> int:
    """What heads go by: groups that share keys and values, or query heads where all share one."""
    return config.num_heads if config.num_kv_heads == 1 else config.num_kv_heads


def _kept(share: float, count: int) -> int:
    return max(1, count - round(share * count))


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _make_up(model, smaller, parts: Parts, calibration) -> None:
    """Changes what the heads and neurons that a smaller model has kept add to the residual stream."""
    batches, *steps = _walk(model, calibration)
    mine, its = prunable_layers(model), prunable_layers(smaller)
    kept = {name: parts.get(f"{name.replace('.', '/')}/kernel", (1, None)) for name in mine}
    kept = {name: index for name, (axis, index) in kept.items() if axis == 0}
    for step in steps:
        inside = {id(layer) for layer in step._flatten_layers()}
        for name, inputs in observe(step, {n: mine[n] for n in kept if id(mine[n]) in inside}, batches).items():
            kernel = ops.convert_to_numpy(ops.cast(mine[name].kernel, "float32"))
            its[name].kernel.assign(made_up(kernel, inputs.gram, kept[name]))
        batches = run_step(step, batches)


def _head_parts(model, found: Importance, kept: int) -> Parts:
    config, parts = model.config, {}
    units, dim = _units(config), config.head_dim
    scores = {name: each.reshape(units, -1).sum(axis=-1) for name, each in found.heads.items()}
    if config.positions == "relative":
        scores = {name: _of_stack(scores, name) if _has_bias(name) else each for name, each in scores.items()}
    for name, each in scores.items():
        here = _largest(each, kept)
        queries = _spread(here, config.num_heads // units * dim)
        keys = _spread(here, dim) if config.num_kv_heads == units else np.arange(config.num_kv_heads * dim)
        path = name.replace(".", "/")
        for layer, index in (("query", queries), ("key", keys), ("value", keys)):
            parts |= {f"{path}/{layer}/kernel": (1, index), f"{path}/{layer}/bias": (0, index)}
        parts[f"{path}/output_dense/kernel"] = (0, queries)
        if config.positions == "relative" and _has_bias(name):
            parts[f"{_stack(path)}relative_bias/embeddings"] = (1, _spread(here, config.num_heads // units))
    return parts


def _neuron_parts(found: Importance, kept: int) -> Parts:
    parts = {}
    for name, scores in found.neurons.items():
        path, here = name.replace(".", "/"), _largest(scores, kept)
        for layer in ("up", "gate"):
            parts |= {f"{path}/{layer}/kernel": (1, here), f"{path}/{layer}/bias": (0, here)}
        parts[f"{path}/down/kernel"] = (0, here)
    return parts


def _has_bias(name: str) -> bool:
    """Whether an attention's scores get the bias of relative positions: those to another text do not."""
    return not name.endswith("source_attention")


def _of_stack(scores: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The sum over all blocks of a stack, which share a bias a head."""
    alike = [each for other, each in scores.items() if _stack(other) == _stack(name) and _has_bias(other)]
    return np.sum([each / max(np.linalg.norm(each), 1e-30) for each in alike], axis=0)


def _stack(name: str) -> str:
    return name[: name.index("block_")]


def _spread(indices: np.ndarray, size: int) -> np.ndarray:
    """The places of units of `size` places each."""
    return (indices[:, None] * size + np.arange(size)).reshape(-1)


def _cosine(x, y) -> float:
    x, y = (ops.convert_to_numpy(ops.cast(part, "float32")) for part in (x, y))
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return float(np.mean((x * y).sum(axis=-1) / np.maximum(norms, 1e-30)))


def _rows(model, calibration):
    """Batches of one row of what the model trains on."""
    if isinstance(calibration, tuple):
        data = model.as_data(*calibration, batch_size=1)
    elif model.config.num_encoder_layers:
        data = model.as_data(*map(list, zip(*_pairs(calibration))), batch_size=1)
    else:
        data = model.as_data(_token_rows(model, calibration), batch_size=1)
    if getattr(data, "batch_size", 1) != 1:
        raise ValueError(f"Give rows, or batches of one row. Received: batches of {data.batch_size}")
    return data


def _token_rows(model, calibration) -> np.ndarray:
    return calibration_rows(model, calibration, ROWS, LENGTH)


def _walk(model, calibration) -> list:
    """What the first block gets, and the steps that the blocks are."""
    first, *steps = chain_of(model)
    if isinstance(calibration, tuple):
        x = calibration[0]
        source = [ids for key, ids in x.items() if key.endswith("token_ids")] if isinstance(x, dict) else x
    elif model.config.num_encoder_layers:
        source = [text for pair in _pairs(calibration) for text in pair]
    else:
        source = calibration
    return [first_batches(first, _token_rows(model, source)), *steps]


def _pairs(calibration) -> list[tuple[str, str]]:
    if calibration is None:
        raise ValueError("Pairs of source and target are needed to judge what matters. Received: calibration=None")
    return read_pairs(calibration)[:ROWS]
