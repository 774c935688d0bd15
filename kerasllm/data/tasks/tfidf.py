"""Retrieval by words in common: the figure that an embedding model has to beat."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np


def tfidf_retrieval(queries: Sequence[str], keys: Sequence[str]) -> float:
    """Retrieval@1 of TF-IDF with cosine similarity: the part of the queries whose own key is the nearest.

    The vectors weigh a word by `(1 + log(count)) * log((1 + n) / (1 + keys with it))` (Manning, Raghavan and Schütze,
    2008, "Introduction to Information Retrieval", 6.2 to 6.4, smoothed). Words are runs of letters or digits, in lower
    case. Where the own key shares the first place with others, it counts for its share: chance, not order, decides.

    Args:
        queries: n texts.
        keys: n texts; `keys[i]` belongs to `queries[i]`.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: not as many queries as keys, or none.

    Example:

    ```python
    assert tfidf_retrieval(["join two paths", "copy a file"], ["os path join", "copy file"]) == 1.0
    ```
    """
    if not len(queries) == len(keys) > 0:
        raise ValueError(f"There must be as many queries as keys. Received: {len(queries)} and {len(keys)}")
    postings: dict[str, list[tuple[int, float]]] = {}
    for row, key in enumerate(keys):
        for word, count in _counts(key).items():
            postings.setdefault(word, []).append((row, 1 + np.log(count)))
    index, norms = {}, np.zeros(len(keys))
    for word, entries in postings.items():
        rows, weights = np.array([row for row, _ in entries]), np.array([weight for _, weight in entries])
        idf = np.log((1 + len(keys)) / (1 + len(rows)))
        index[word] = rows, weights * idf, idf
        norms[rows] += (weights * idf) ** 2
    norms = np.sqrt(np.maximum(norms, 1e-12))
    credit = 0.0
    for own, query in enumerate(queries):
        scores = np.zeros(len(keys))  # the query's own length changes no order
        for word, count in _counts(query).items():
            if word in index:
                rows, weights, idf = index[word]
                scores[rows] += (1 + np.log(count)) * idf * weights
        scores /= norms
        nearest = np.isclose(scores, scores.max(), rtol=1e-9, atol=0)
        credit += nearest[own] / nearest.sum()
    return float(credit / len(queries))


def _counts(text: str) -> Counter:
    return Counter(re.findall(r"[^\W\d_]+|\d+", text.lower()))
