"""One vector for a text, of the hidden states of its tokens."""

from keras import ops

POOLINGS = ("first", "mean", "last")


def pool(hidden, padding_mask, pooling: str):
    """(batch, length, dim) → (batch, dim): the first state, the mean of the real tokens' states, or the last one.

    Args:
        hidden: (batch, length, dim).
        padding_mask: (batch, length), True (or 1) on real tokens; all real when `None`.
        pooling: "first", "mean" or "last".

    Example:
    ```python
    vectors = pool(hidden, padding_mask, "mean")
    ```

    Reference: Reimers and Gurevych (2019), "Sentence-BERT", compares them.
    """
    if pooling == "first":
        return hidden[:, 0]
    if padding_mask is None:
        return hidden[:, -1] if pooling == "last" else ops.mean(hidden, axis=1)
    if pooling == "last":
        places = ops.arange(ops.shape(hidden)[1], dtype="int32") * ops.cast(padding_mask, "int32")
        last = ops.reshape(ops.max(places, axis=1), (-1, 1, 1))
        return ops.take_along_axis(hidden, last, axis=1)[:, 0]
    weights = ops.cast(padding_mask, "float32")
    weights = weights / ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1.0)
    return ops.sum(hidden * ops.cast(weights, hidden.dtype)[:, :, None], axis=1)


def check_pooling(pooling: str | None, default: str, has_pooler: bool) -> str:
    """The pooling to use: the one given, else the config's pooler, else the default.

    Raises:
        ValueError: an unknown one, or "pooler" where the config has none.
    """
    if pooling is None:
        return "pooler" if has_pooler else default
    choices = (*POOLINGS, "pooler") if has_pooler else POOLINGS
    if pooling not in choices:
        raise ValueError(
            f"`pooling` must be one of {', '.join(choices)}"
            f"{'' if has_pooler else ' (pooler needs a config with pooler=True)'}. Received: pooling={pooling!r}"
        )
    return pooling
