"""Contrastive learning of embeddings: an anchor must be nearest to its positive among all of the batch."""

from collections.abc import Sequence

from kerasllm.objectives.padding import padded


def pair_rows(
    anchors: Sequence[Sequence[int]],
    positives: Sequence[Sequence[int]],
    length: int,
    pad_token_id: int = 0,
    negatives: Sequence[Sequence[int]] | None = None,
    truncation: bool = False,
) -> dict[str, dict]:
    """Pairs of texts as arrays. The negatives of an anchor are the other positives of its batch.

    With the same texts twice this is SimCSE (Gao et al., 2021): dropout makes the two embeddings differ.

    Args:
        anchors, positives: token ids of each text, in pairs.
        length: of the arrays.
        pad_token_id: fills up.
        negatives: a hard negative of each anchor: near, but not a positive.
        truncation: cut what is too long, instead of raising.

    Returns:
        `{"anchor": …, "positive": …}`, with negatives also `"negative"`; each a dict of `"token_ids"` int32 and
        `"padding_mask"` bool, (b, length).

    Raises:
        ValueError: lists of different lengths, an empty text, or one that is too long.

    Example:

    ```python
    x = pair_rows([[5, 6]], [[5, 6, 7]], length=4)
    ```
    """
    sides = {"anchor": anchors, "positive": positives}
    if negatives is not None:
        sides["negative"] = negatives
    if len({len(rows) for rows in sides.values()}) > 1:
        counts = ", ".join(f"{len(rows)} {side}s" for side, rows in sides.items())
        raise ValueError(f"Each anchor needs one text of each kind. Received: {counts}")
    arrays = {side: padded(rows, length, pad_token_id, side, "length", truncation) for side, rows in sides.items()}
    return {side: {"token_ids": ids, "padding_mask": mask} for side, (ids, mask) in arrays.items()}


def info_nce(anchors, positives, temperature: float = 0.05, hard_negatives=None):
    """InfoNCE: cross-entropy of finding each anchor's positive by cosine similarity among all candidates.

    Sources: van den Oord et al. (2018), "Representation Learning with Contrastive Predictive Coding"; Gao et al.
    (2021), "SimCSE", for the temperature and the hard negatives.

    Args:
        anchors, positives: (b, dim), float; they need not be normalised.
        temperature: what similarities are divided by.
        hard_negatives: (m, dim), float: further candidates, of all anchors.

    Returns:
        float32 (b,): the loss of each anchor, in nats; its candidates are all positives and all hard negatives.

    Raises:
        ValueError: a temperature that is not positive.

    Example:

    ```python
    loss = keras.ops.mean(info_nce(embed(texts), embed(texts)))
    ```
    """
    from keras import ops  # the other objectives need no backend

    if temperature <= 0:
        raise ValueError(f"`temperature` must be positive. Received: temperature={temperature}")
    candidates = positives if hard_negatives is None else ops.concatenate([positives, hard_negatives], axis=0)
    anchors, candidates = (ops.normalize(ops.cast(side, "float32"), axis=-1) for side in (anchors, candidates))
    similarities = ops.matmul(anchors, ops.transpose(candidates)) / temperature
    own = ops.diagonal(similarities)
    return ops.logsumexp(similarities, axis=-1) - own
