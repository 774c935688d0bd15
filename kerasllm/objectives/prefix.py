"""Prefix language modelling: read the beginning in both directions, predict the rest."""

import numpy as np

from kerasllm.data.order import uniforms
from kerasllm.data.rows import Rows
from kerasllm.objectives.next_token import causal


def prefix_lm(rows: Rows) -> tuple:
    """Predict each next token behind a prefix of random length, which is read in both directions.

    Source: Raffel et al. (2019), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer", section 3.2.

    Returns:
        x: `"token_ids"` int32 (b, n) and `"prefix_lengths"` int32 (b,), in [1, n]: every position below it may see
            every other one below it. For documents also `"document_ids"` and `"positions"`.
        y: int32 (b, n), the next tokens.
        sample_weight: float32 (b, n): 0 up to the prefix's last token but one, whose next token the model sees.
            In every row that has a next token, at least one counts.

    Raises:
        ValueError: the rows carry no `keys`.

    Example:

    ```python
    x, y, weights = prefix_lm(Rows(np.array([[5, 6, 7, 8]], "int32"), keys=row_keys(0, 0, np.arange(1))))
    ```
    """
    x, y, *weights = causal(rows)
    places = np.arange(y.shape[1])
    counted = weights[0] if weights else np.ones(y.shape, np.float32)
    # Just behind the last position that has a next token: a longer prefix would leave nothing to predict.
    longest = (counted * (places + 1)).max(axis=1)
    lengths = 1 + np.floor(uniforms(rows.keys, 1)[:, 0] * np.maximum(longest, 1)).astype(np.int32)
    counted = counted * (places >= lengths[:, None] - 1)
    return {**x, "prefix_lengths": lengths}, y, counted.astype(np.float32)
