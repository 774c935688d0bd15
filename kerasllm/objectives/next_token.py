"""Causal language modelling: predict each next token."""

from kerasllm.data.rows import Rows


def causal(rows: Rows) -> tuple:
    """Predict each next token: `(x, y)` or `(x, y, sample_weight)`, x a dict with `"token_ids"` (b, n).

    Example:

    ```python
    x, y = causal(Rows(np.array([[5, 6, 7]], "int32")))
    ```
    """
    x = {"token_ids": rows.tokens[:, :-1]}
    if rows.document_ids is not None:
        x.update(document_ids=rows.document_ids, positions=rows.positions)
    y = rows.tokens[:, 1:]
    return (x, y) if rows.weights is None else (x, y, rows.weights)
