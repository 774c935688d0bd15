"""Where a model has its tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from kerasllm.layers.quantized import float_embeddings


class Projected(NamedTuple):
    """Token vectors in a few dimensions.

    Attributes:
        ids: (tokens,).
        tokens: strings.
        points: (tokens, dimensions); the first dimension is that of most variance.
        explained: (dimensions,), the share of the variance in each.
    """

    ids: np.ndarray
    tokens: list[str]
    points: np.ndarray
    explained: np.ndarray


def embedding_projection(model, ids: Sequence[int] | None = None, dimensions: int = 2) -> Projected:
    """The token vectors of a model on their principal components.

    Args:
        model: any model of ours.
        ids: of the tokens, at least two; all there are when left out.
        dimensions: how many components.

    Returns:
        a `Projected`. The largest entry of each component is positive, so that its direction is no accident.

    Raises:
        ValueError: an id or `dimensions` out of range.

    Example:
    ```python
    projected = embedding_projection(model)
    ```

    Reference: Pearson (1901), "On Lines and Planes of Closest Fit to Systems of Points in Space".
    """
    tokenizer = model.tokenizer
    if ids is None:
        ids = range(model.config.vocabulary_size if tokenizer is None else tokenizer.vocabulary_size)
    ids = np.asarray(ids)
    model.check_token_ids(ids)
    most = min(len(ids), model.config.hidden_dim)
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(f"`ids` must be a list of at least two token ids. Received: shape={ids.shape}")
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= most:
        raise ValueError(
            f"`dimensions` must be from 1 to {most}, the fewer of tokens and entries of a vector. "
            f"Received: dimensions={dimensions!r}"
        )
    vectors = ops.convert_to_numpy(float_embeddings(model.transformer.embedding.tokens)).astype("float64")[ids]
    vectors = vectors - vectors.mean(axis=0)
    _, lengths, components = np.linalg.svd(vectors, full_matrices=False)
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.where(largest < 0, -1.0, 1.0)
    points = (vectors @ components[:dimensions].T).astype("float32")
    explained = (lengths**2 / max((lengths**2).sum(), 1e-30))[:dimensions].astype("float32")
    tokens = [str(i) if tokenizer is None else tokenizer.id_to_token(int(i)) for i in ids]
    return Projected(ids, tokens, points, explained)
