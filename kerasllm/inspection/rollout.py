"""How attention flows through all layers."""

import numpy as np

from kerasllm.models.trace import Seq2SeqTrace, Trace


def attention_rollout(trace: Trace | Seq2SeqTrace, kind: str = "decoder") -> np.ndarray:
    """How much each place after each layer has in it of each token, if attention were all there is.

    A layer hands on the mean of its heads' attention and, through the residual stream, what was there before, half
    and half; the product over layers is the rollout.

    Args:
        trace: of a text.
        kind: of a `Seq2SeqTrace` "decoder" or "encoder".

    Returns:
        (layers, length, length): after each layer, of each place (row) the share of each token (column). Rows sum to 1.

    Raises:
        ValueError: `kind` is no stack of self-attention.

    Example:
    ```python
    attention_rollout(model.trace("The cat sat"))[-1, -1]  # what the last token's state is made of
    ```

    Reference: Abnar and Zuidema (2020), "Quantifying Attention Flow in Transformers".
    """
    if kind == "cross":
        raise ValueError(
            "A rollout is through self-attention: `kind` must be 'decoder' or 'encoder'. Received: 'cross'"
        )
    weights = trace.attention_maps(kind).weights.astype("float32").mean(axis=1)
    mixed = 0.5 * weights + 0.5 * np.eye(weights.shape[-1], dtype="float32")
    rollout = [mixed[0]]
    for layer in mixed[1:]:
        rollout.append(layer @ rollout[-1])
    return np.stack(rollout)
