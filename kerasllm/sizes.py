"""What a model needs, counted from its config alone: memory and FLOPs."""

from kerasllm.config import TransformerConfig

# Bytes a parameter takes in training with AdamW: its weight, gradient and two moments in float32. Keras's mixed
# precision keeps all these, and casts the weights to 16 bits for the computation.
FLOAT32_TRAINING_BYTES = 4 + 4 + 4 + 4
MIXED_TRAINING_BYTES = FLOAT32_TRAINING_BYTES + 2


def activation_bytes(config: TransformerConfig, batch_size: int = 1, bytes_per_value: int = 4) -> int:
    """An estimate of the activations that a training step keeps for its backward pass, at full context.

    With fused attention and the chunked loss, neither (length × length) weights nor all logits are kept.

    Reference: Korthikanti et al. (2022), "Reducing Activation Recomputation": 34 bytes a layer, token and
    unit of width in 16 bits, of which 2 are dropout masks, without the attention weights. What they count for a
    feed-forward four times the width is scaled to the config's.
    """
    around = 8 * config.hidden_dim  # attention's input, q, k, v, output; norms' inputs; the residual stream
    inside = (2 + config.gated) * config.intermediate_dim
    tokens = batch_size * config.max_sequence_length
    return config.num_layers * tokens * (around + inside) * bytes_per_value


def figures(config: TransformerConfig, batch_size: int = 1) -> dict[str, str]:
    """Sizes of a model in words, for a table.

    Example:

    ```python
    figures(kerasllm.TransformerConfig.from_name("gpt2_small"))["parameters"]
    ```
    """
    parameters, length = config.num_parameters(), config.max_sequence_length
    sequences = f"{batch_size} × {length:,} tokens"
    return {
        "parameters": f"{parameters:,}",
        "  without embeddings": f"{config.num_parameters(embeddings=False):,}",
        "shape": f"{config.num_layers} layers, {config.num_heads} heads ({config.num_kv_heads} for keys and "
        f"values), width {config.hidden_dim:,}, feed-forward {config.intermediate_dim:,}",
        "context, vocabulary": f"{length:,} tokens, {config.vocabulary_size:,}",
        "weights": f"{_size(4 * parameters)} float32, {_size(2 * parameters)} bfloat16",
        "key/value cache": f"{_size(config.kv_cache_bytes(batch_size, 4))} float32, "
        f"{_size(config.kv_cache_bytes(batch_size, 2))} bfloat16, for {sequences}",
        "inference, full cache": f"{_size(4 * parameters + config.kv_cache_bytes(batch_size, 4))} float32, "
        f"{_size(2 * parameters + config.kv_cache_bytes(batch_size, 2))} bfloat16",
        "training, AdamW": f"{_size(FLOAT32_TRAINING_BYTES * parameters)} float32, "
        f"{_size(MIXED_TRAINING_BYTES * parameters)} mixed_bfloat16",
        "  and activations, about": f"{_size(activation_bytes(config, batch_size, 4))} float32, "
        f"{_size(activation_bytes(config, batch_size, 2))} mixed_bfloat16, for {sequences}",
        "FLOPs a token": f"{_flops(config.flops_per_token())} forward, {_flops(3 * config.flops_per_token())} "
        "trained, at full context",
    }


def _size(num_bytes: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            break
        num_bytes /= 1000
    else:
        unit = "TB"
    return f"{num_bytes:.3g} {unit}"


def _flops(flops: float) -> str:
    for unit in ("", "k", "M", "G"):
        if flops < 1000:
            break
        flops /= 1000
    else:
        unit = "T"
    return f"{flops:.3g} {unit}FLOP"
