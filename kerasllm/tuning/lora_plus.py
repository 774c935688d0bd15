"""LoRA+: a larger learning rate for the factors B."""

import keras

from kerasllm.tuning.lora import LoRADelta
from kerasllm.tuning.rates import scale_rates


def lora_plus(optimizer: keras.optimizers.Optimizer, model: keras.Model, ratio: float = 16.0):
    """The same optimizer, which from now on updates the factors B of a model's LoRAs at `ratio` times its rate.

    Args:
        optimizer: any of Keras's that has not been used yet.
        model: with its adapters.
        ratio: of B's learning rate to A's.

    Raises:
        ValueError: the ratio is not positive, or the model has no LoRA that is trained.

    Example:
    ```python
    model.add_adapter("poems", LoRA(rank=8))
    model.compile(optimizer=lora_plus(keras.optimizers.AdamW(1e-4), model))
    ```

    Reference: Hayou et al. (2024), "LoRA+".
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not ratio > 0:
        raise ValueError(f"`ratio` must be a positive number. Received: ratio={ratio!r}")
    deltas = [d for d in model._flatten_layers() if isinstance(d, LoRADelta)]
    faster = {id(delta.lora_b) for delta in deltas if delta.lora_b.trainable}
    if not faster:
        raise ValueError("The model has no LoRA that is trained. Add one before: model.add_adapter(name, LoRA(...)).")
    return scale_rates(optimizer, lambda variable: ratio if id(variable) in faster else 1.0)
