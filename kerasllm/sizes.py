"""What a model needs, counted from its config alone: memory and FLOPs."""

from kerasllm.config import TransformerConfig

# Bytes a parameter takes in training with AdamW: its weight, gradient and two moments in float32. Keras's
# mixed precision keeps all these, and casts the weights to 16 bits for the computation.
FLOAT32_TRAINING_BYTES = 4 + 4 + 4 + 4
MIXED_TRAINING_BYTES = FLOAT32_TRAINING_BYTES + 2


def activation_bytes(config: TransformerConfig, batch_size: int = 1, bytes_per_value: int = 4) -> int:
    """An estimate of the activations that a training step keeps for its backward pass, at full context.

    With fused attention and the chunked loss, neither (length × length) weights nor all logits are kept.

    Reference: Korthikanti et al. (2022), "Reducing Activation Recomputation": 34 bytes a layer, token and
    unit of width in 16 bits, of which 2 are dropout masks, without the attention weights. What they count for
    a feed-forward four times the width is scaled to the config's.
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
    forward = config.flops_per_token()
    sequences = f"{batch_size} x {length:,} tokens"
    return {
        "parameters": f"{parameters:,}",
        "  without embeddings": f"{config.num_parameters(embeddings=False):,}",
        "shape": f"{config.num_layers} layers, {config.num_heads} heads ({config.num_kv_heads} for keys and "
        f"values), width {config.hidden_dim:,}, feed-forward {config.intermediate_dim:,}",
        "context, vocabulary": f"{length:,} tokens, {config.vocabulary_size:,}",
        "weights": f"{_bytes(4 * parameters)} float32, {_bytes(2 * parameters)} bfloat16",
        "key/value cache": f"{_bytes(config.kv_cache_bytes(batch_size, 4))} float32, "
        f"{_bytes(config.kv_cache_bytes(batch_size, 2))} bfloat16, for {sequences}",
        "inference, full cache": f"{_bytes(4 * parameters + config.kv_cache_bytes(batch_size, 4))} float32, "
        f"{_bytes(2 * parameters + config.kv_cache_bytes(batch_size, 2))} bfloat16",
        "training, AdamW": f"{_bytes(FLOAT32_TRAINING_BYTES * parameters)} float32, "
        f"{_bytes(MIXED_TRAINING_BYTES * parameters)} mixed_bfloat16",
        "  and activations, about": f"{_bytes(activation_bytes(config, batch_size, 4))} float32, "
        f"{_bytes(activation_bytes(config, batch_size, 2))} mixed_bfloat16, for {sequences}",
        "FLOPs a token": f"{_scaled(forward, 'FLOP')} forward, {_scaled(3 * forward, 'FLOP')} trained, at full context",
    }


def _bytes(count: int) -> str:
    return _scaled(count, "B")


def _scaled(value: float, unit: str) -> str:
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while value >= 1000:
        value, prefix = value / 1000, next(prefixes, "P")
    return f"{value:.3g} {prefix}{unit}"
