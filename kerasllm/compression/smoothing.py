"""`smooth(model)`: large inputs of the projections are evened out, so that inputs of eight bits lose less."""

import numpy as np
from keras import ops

from kerasllm.compression.calibration import calibration_rows, first_batches, observe, run_step
from kerasllm.compression.chain import chain_of
from kerasllm.compression.post_training import forget_compiled, quantized_layers

SMALLEST = 1e-5


def smooth(model, calibration=None, strength: float = 0.5) -> None:
    """Divides what norms give to the projections after them, input by input, and multiplies the weights by as much.

    The model computes what it did. Where single inputs are far larger than others, a common scale of eight bits for a
    whole row, as with `quantize("int8", activations=True)`, has then more left for the rest.

    Args:
        model: with norms before attention and feed-forward (GPT, Llama, T5), float weights and without adapters.
        calibration: as in `quantize`.
        strength: how much of the difference goes over to the weights: 0 is none, 1 all.

    Raises:
        ValueError: norms stand after the residual sum (BERT), the model is quantized or has adapters, a strength out of
            range, a text too short. The model is then as it was.

    Example:
    ```python
    smooth(model)
    model.quantize("int8", activations=True)
    ```

    Reference: Xiao et al. (2022), "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models".
    """
    from kerasllm.compression.fake_quantization import aware_layers

    if not 0 <= strength <= 1:
        raise ValueError(f"`strength` must be in [0, 1]. Received: strength={strength!r}")
    if model.config.norm_position != "pre":
        raise ValueError(
            "Only norms that stand before a branch can be smoothed: the residual sum of this model reads them too "
            f"(norm_position={model.config.norm_position!r}). Quantize without activations instead."
        )
    if model.adapters or quantized_layers(model) or aware_layers(model):
        raise ValueError("Smooth the model first: it is quantized, trained for that, or has adapters already.")
    first, *steps = chain_of(model)
    batches = first_batches(first, calibration_rows(model, calibration))
    for step in steps:
        groups = _after_norms(step.layer)
        observed = observe(step, {str(i): projections[0] for i, (_, projections) in enumerate(groups)}, batches)
        batches = run_step(step, batches)
        for i, (norm, projections) in enumerate(groups):
            _even_out(norm, projections, observed[str(i)].largest, strength)
    forget_compiled(model)


def _after_norms(block) -> list[tuple]:
    """Each norm of a block and the projections that read it."""
    attention, thinking = block.attention, block.feed_forward
    groups = [
        (block.attention_norm, [attention.query, attention.key, attention.value]),
        (block.feed_forward_norm, [thinking.up, *([thinking.gate] if thinking.gated else [])]),
    ]
    if block.cross_attention:
        groups.append((block.source_norm, [block.source_attention.query]))
    return groups


def _even_out(norm, projections, largest: np.ndarray, strength: float) -> None:
    kernels = [ops.convert_to_numpy(ops.cast(layer.kernel, "float32")) for layer in projections]
    weights = np.max([np.abs(kernel).max(axis=1) for kernel in kernels], axis=0)
    scales = np.maximum(largest, SMALLEST) ** strength / np.maximum(weights, SMALLEST) ** (1 - strength)
    scales = scales / np.sqrt(scales.max() * scales.min())  # Neither side as a whole becomes very large or small.
    for variable in norm.weights:  # scale and shift
        variable.assign(ops.convert_to_numpy(ops.cast(variable, "float32")) / scales)
    for layer, kernel in zip(projections, kernels):
        layer.kernel.assign(kernel * scales[:, None])
