"""Learning rates that differ between the weights of a model, with one optimizer."""

from collections.abc import Callable

import keras

from kerasllm.tuning.freezing import depths


def layerwise_decay(optimizer: keras.optimizers.Optimizer, model: keras.Model, decay: float = 0.9):
    """The same optimizer, which from now on updates each block at `decay` times the rate of the one above it.

    What is above the blocks (a head, the final norm) has the full rate, the last block `decay` times it, and what is
    below the first one, the embeddings, the lowest. Weight decay goes by the optimizer's own rate.

    Args:
        optimizer: any of Keras's that has not been used yet.
        model: one of ours.
        decay: in (0, 1].

    Raises:
        ValueError: the factor is out of range.

    Example:
    ```python
    model.compile(optimizer=layerwise_decay(keras.optimizers.AdamW(1e-4), model, decay=0.8))
    ```

    Reference: Howard and Ruder (2018), "Universal Language Model Fine-tuning for Text Classification"; Clark et al.
    (2020), "ELECTRA", for this form of it.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise ValueError(f"`decay` must be in (0, 1]. Received: decay={decay!r}")
    factors = {key: decay**depth for key, depth in depths(model).items()}
    return scale_rates(optimizer, lambda variable: factors.get(id(variable), 1.0))


def scale_rates(optimizer: keras.optimizers.Optimizer, factor_of: Callable[[keras.Variable], float]):
    """The same optimizer, which multiplies its rate for each variable by a factor: one update for each factor.

    Its attribute `rate_factor` is the function, for those that save it.
    """
    update, before = optimizer._backend_update_step, getattr(optimizer, "rate_factor", lambda variable: 1.0)

    def in_groups(grads, variables, learning_rate):
        groups: dict[float, list] = {}
        for pair in zip(grads, variables):
            groups.setdefault(factor_of(pair[1]), []).append(pair)
        for factor, pairs in groups.items():
            update(*map(list, zip(*pairs)), learning_rate * factor)

    optimizer._backend_update_step = in_groups
    optimizer.rate_factor = lambda variable: before(variable) * factor_of(variable)
    return optimizer
