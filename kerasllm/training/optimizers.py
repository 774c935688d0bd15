"""AdamW and Muon as language models use them: warm-up, cosine decay, clipping, selective weight decay.

Both are Keras's own optimizers; here they get their usual settings.
"""

from typing import Any

import keras

# Biases, norm gains and norm offsets are excluded by these names.
UNDECAYED_NAMES = ("bias", "gamma", "beta", "scale")


def cosine_schedule(
    learning_rate: float,
    total_steps: int | None = None,
    warmup_steps: int | None = None,
    final_fraction: float = 0.1,
    accumulation: int | None = None,
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up to `learning_rate`, then a half cosine down to `final_fraction` of it.

    Args:
        learning_rate: the highest rate.
        total_steps: updates until the rate has come down, warm-up included; `None` keeps it constant.
        warmup_steps: updates of warm-up. The first has 1/(warmup_steps + 1) of the rate, not 0.
        final_fraction: the last rate as a fraction of the highest.
        accumulation: batches to an update. Keras asks a schedule by batches, so its times are in batches.

    Returns:
        A Keras schedule, or the plain rate if `total_steps` is `None`.

    Raises:
        ValueError: an argument out of range.

    Example:

    ```python
    schedule = cosine_schedule(1e-3, total_steps=2000, warmup_steps=100)
    ```

    Reference: Loshchilov and Hutter (2016), "SGDR", for the cosine; nanoGPT for this form of it.
    """
    warmup_steps, batches = warmup_steps or 0, accumulation or 1
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive. Received: learning_rate={learning_rate}")
    if not 0 <= final_fraction <= 1:
        raise ValueError(f"`final_fraction` must be in [0, 1]. Received: final_fraction={final_fraction}")
    if warmup_steps < 0 or batches < 1:
        raise ValueError(
            "`warmup_steps` must not be negative and `accumulation` at least 1. "
            f"Received: warmup_steps={warmup_steps}, accumulation={accumulation}"
        )
    if total_steps is None:
        if warmup_steps:
            raise ValueError(f"`warmup_steps` needs `total_steps`. Received: warmup_steps={warmup_steps}")
        return float(learning_rate)
    if total_steps <= warmup_steps:
        raise ValueError(
            "`total_steps` must be more than `warmup_steps`, which is part of it. "
            f"Received: total_steps={total_steps}, warmup_steps={warmup_steps}"
        )
    warmup = {}
    if warmup_steps:
        warmup = {"warmup_target": float(learning_rate), "warmup_steps": warmup_steps * batches}
    return keras.optimizers.schedules.CosineDecay(
        float(learning_rate) / (warmup_steps + 1),
        decay_steps=(total_steps - warmup_steps) * batches,
        alpha=final_fraction,
        **warmup,
    )


def adamw(
    learning_rate: float = 1e-3,
    total_steps: int | None = None,
    warmup_steps: int | None = None,
    final_fraction: float = 0.1,
    weight_decay: float = 0.1,
    beta_1: float = 0.9,
    beta_2: float = 0.95,
    clipnorm: float | None = 1.0,
    accumulation: int | None = None,
    model: keras.Model | None = None,
    **kwargs: Any,
) -> keras.optimizers.AdamW:
    """`keras.optimizers.AdamW` with the settings GPTs are trained with.

    Args:
        learning_rate, total_steps, warmup_steps, final_fraction: see `cosine_schedule`.
        weight_decay: per update, times the learning rate. Biases and norms are not decayed.
        beta_1: of the mean of gradients.
        beta_2: of the mean of their squares. 0.99 suits small batches.
        clipnorm: largest norm of all gradients together; `None` does not clip.
        accumulation: batches to an update.
        model: if given, its position table is not decayed either.
        kwargs: further arguments of `keras.optimizers.AdamW`.

    Raises:
        ValueError: an argument out of range.

    Example:

    ```python
    model.compile(optimizer=adamw(6e-4, total_steps=2000, warmup_steps=100))
    ```

    Reference: Loshchilov and Hutter (2017), "Decoupled Weight Decay Regularization".
    """
    optimizer = keras.optimizers.AdamW(
        cosine_schedule(learning_rate, total_steps, warmup_steps, final_fraction, accumulation),
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=kwargs.pop("epsilon", 1e-8),
        **_shared(clipnorm, accumulation),
        **kwargs,
    )
    return _exclude_from_weight_decay(optimizer, model)


def muon(
    learning_rate: float = 1e-3,
    total_steps: int | None = None,
    warmup_steps: int | None = None,
    final_fraction: float = 0.1,
    weight_decay: float = 0.1,
    beta_1: float = 0.9,
    beta_2: float = 0.95,
    clipnorm: float | None = 1.0,
    accumulation: int | None = None,
    model: keras.Model | None = None,
    **kwargs: Any,
) -> keras.optimizers.Muon:
    """`keras.optimizers.Muon`: the projections' matrices by Muon, everything else by its AdamW branch.

    Muon takes 2-D variables whose path has no "embedding", so every projection of a block, and neither the
    token and position tables nor the head, which are `TokenEmbedding`'s.

    Args:
        learning_rate: of both branches. Updates are scaled to AdamW's size (Liu et al., 2025), so that its
            rates fit; `adam_lr_ratio` in `kwargs` sets the branches apart.
        total_steps, warmup_steps, final_fraction: see `cosine_schedule`.
        weight_decay: of both branches; see `adamw`.
        beta_1, beta_2: of the AdamW branch.
        clipnorm, accumulation, model: see `adamw`.
        kwargs: further arguments of `keras.optimizers.Muon`, such as `momentum` and `ns_steps`.

    Raises:
        ValueError: an argument out of range.

    Example:

    ```python
    model.compile(optimizer=muon(2e-3, total_steps=1000, warmup_steps=50))
    ```

    Reference: Jordan et al. (2024), "Muon"; Liu et al. (2025), "Muon is Scalable for LLM Training".
    """
    optimizer = keras.optimizers.Muon(
        cosine_schedule(learning_rate, total_steps, warmup_steps, final_fraction, accumulation),
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        adam_beta_1=beta_1,
        adam_beta_2=beta_2,
        epsilon=kwargs.pop("epsilon", 1e-8),
        **_shared(clipnorm, accumulation),
        **kwargs,
    )
    return _exclude_from_weight_decay(optimizer, model)


OPTIMIZERS = {"adamw": adamw, "muon": muon}


def _shared(clipnorm: float | None, accumulation: int | None) -> dict[str, Any]:
    # Keras refuses an accumulation of 1, which here means none.
    accumulation = accumulation if accumulation and accumulation > 1 else None
    return {"global_clipnorm": clipnorm or None, "gradient_accumulation_steps": accumulation}


def _exclude_from_weight_decay(optimizer, model: keras.Model | None):
    tables = [] if model is None else [v for v in model.trainable_variables if "positions" in v.path]
    optimizer.exclude_from_weight_decay(var_list=tables, var_names=list(UNDECAYED_NAMES))
    if model is not None and not any(map(optimizer._use_weight_decay, model.trainable_variables)):
        optimizer.weight_decay = None  # Biases alone are trained: on PyTorch, Keras fails to decay nothing.
    return optimizer
