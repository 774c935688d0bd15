"""One LoRA made of several: their weighted sum, TIES or DARE."""

import keras
import numpy as np

from kerasllm.tuning.lora import LoRA, LoRADelta
from kerasllm.tuning.model_adapters import adapter_of, add_adapter

METHODS = ("linear", "ties", "dare")


def combine_adapters(
    model: keras.Model,
    names: list[str],
    name: str,
    weights: list[float] | None = None,
    method: str = "linear",
    density: float = 0.2,
    seed: int = 0,
) -> None:
    """Adds a LoRA, under a new name, that does what several do together.

    What each adds to the kernels is combined, and written as two factors again. Their weighted sum needs the ranks'
    sum, and is exact; what TIES and DARE make of it is cut back to that rank by its largest singular values.

    Args:
        model: with these adapters, all of them `LoRA` without DoRA.
        names: of two adapters or more.
        name: of the new one.
        weights: one for each; 1 each when left out. What `scale` set multiplies them.
        method: "linear" (their sum), "ties" (of each the largest changes only; where signs differ, the heavier sign
            wins, and those that have it are averaged) or "dare" (of each a random share of changes, made larger by
            as much, then the sum).
        density: the share of changes that "ties" and "dare" keep.
        seed: of what "dare" keeps.

    Raises:
        ValueError: an unknown method or adapter, or one that is no plain LoRA; a density out of (0, 1].

    Example:
    ```python
    combine_adapters(model, ["poems", "letters"], "both", weights=[0.7, 0.3], method="ties")
    ```

    References: Yadav et al. (2023), "TIES-Merging"; Yu et al. (2023), "Language Models are Super Mario", for DARE.
    """
    weights = [1.0] * len(names) if weights is None else list(weights)
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}. Received: method={method!r}")
    if not 0 < density <= 1:
        raise ValueError(f"`density` must be in (0, 1]. Received: density={density!r}")
    if len(names) < 2 or len(weights) != len(names):
        raise ValueError(f"Give two adapters or more, with one weight each. Received: {names!r}, weights={weights!r}")
    layers: dict[str, list[tuple[float, LoRADelta]]] = {}
    for each, weight in zip(names, weights):
        weight = weight * adapter_of(model, each).factor
        for part in adapter_of(model, each).parts:
            if not isinstance(part.delta, LoRADelta) or part.delta.settings.dora:
                raise ValueError(
                    f"Only plain LoRAs can be combined, without DoRA, biases or layers trained whole. Received: "
                    f"{each!r}, which has more at {part.name!r}. Use set_adapter with weights for their sum."
                )
            layers.setdefault(part.name, []).append((weight, part.delta))
    random = np.random.default_rng(seed)
    factors = {layer: _factors(deltas, method, density, random) for layer, deltas in layers.items()}
    ranks = {layer: a.shape[1] for layer, (a, _) in factors.items()}
    # With alpha equal to the rank the scaling is 1.
    add_adapter(model, name, LoRA(rank=ranks, alpha={layer: float(rank) for layer, rank in ranks.items()}))
    for part in adapter_of(model, name).parts:
        if isinstance(part.delta, LoRADelta):
            a, b = factors[part.name]
            part.delta.lora_a.assign(a.astype("float32"))
            part.delta.lora_b.assign(b.astype("float32"))


def _factors(deltas, method: str, density: float, random) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(weight * delta.scaling, *delta.factors()) for weight, delta in deltas]
    limit = min(pairs[0][1].shape[0], pairs[0][2].shape[1])
    rank = min(limit, sum(a.shape[1] for _, a, _ in pairs))
    if method == "linear" and rank < limit:
        return np.concatenate([a for _, a, _ in pairs], axis=1), np.concatenate([s * b for s, _, b in pairs], axis=0)
    changes = np.stack([delta.scaling * (a.astype("float64") @ b) for (_, delta), (_, a, b) in zip(deltas, pairs)])
    weights = np.array([weight for weight, _ in deltas])[:, None, None]
    u, s, v = np.linalg.svd(_combined(changes, weights, method, density, random), full_matrices=False)
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, root[:, None] * v[:rank]


def _combined(changes: np.ndarray, weights: np.ndarray, method: str, density: float, random) -> np.ndarray:
    """Changes of one kernel, (adapters, in, out), as one, (in, out)."""
    if method == "linear":
        return (weights * changes).sum(axis=0)
    if method == "dare":
        return (weights * changes * (random.random(changes.shape) < density) / density).sum(axis=0)
    flat = np.abs(changes).reshape(len(changes), -1)
    kept = max(1, int(density * flat.shape[1]))
    least = np.partition(flat, -kept, axis=1)[:, -kept][:, None, None]
    changes = np.where(np.abs(changes) >= least, changes, 0.0)
    agreeing = (np.sign(changes) == np.sign(changes.sum(axis=0))) & (changes != 0)
    return (weights * changes * agreeing).sum(axis=0) / np.maximum(agreeing.sum(axis=0), 1)
