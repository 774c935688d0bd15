"""What Keras's config of an optimizer leaves out: which weights it does not decay, and rates of their own."""

from collections.abc import Iterable

import keras

from kerasllm.tuning.rates import scale_rates


def describe(optimizer: keras.optimizers.Optimizer, variables: Iterable[keras.Variable]) -> dict:
    """What `restore` does to an optimizer that was made from the config of this one, as JSON holds it.

    Args:
        optimizer: of a model.
        variables: the model's.
    """
    undecayed = getattr(optimizer, "_exclude_from_weight_decay", ())
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    factor = getattr(optimizer, "rate_factor", None)
    return {
        "undecayed": [v.path for v in variables if optimizer._var_key(v) in undecayed],
        "undecayed_names": pattern and pattern.pattern,
        "rate_factors": {v.path: f for v in variables if (f := factor(v)) != 1.0} if factor else {},
        "built": optimizer.built,
    }


def restore(optimizer: keras.optimizers.Optimizer, described: dict, variables: Iterable[keras.Variable]) -> None:
    """Gives a new optimizer what was described; but for `built`."""
    undecayed, names = set(described["undecayed"]), described["undecayed_names"]
    optimizer.exclude_from_weight_decay([v for v in variables if v.path in undecayed], [names] if names else None)
    factors = described["rate_factors"]
    if factors:
        scale_rates(optimizer, lambda variable: factors.get(variable.path, 1.0))
