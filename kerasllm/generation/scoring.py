"""How probable a text is, token by token, through the engine's own programs: few shapes, whatever its length."""

import numpy as np
from keras import ops

from kerasllm.generation.programs import Programs
from kerasllm.generation.slots import SMALLEST_BUCKET, bucket

WIDTH = 128  # tokens whose logits are held at once


def prompt_log_probs(
    programs: Programs, token_ids: list[int], top: int, length: int
) -> tuple[list[float], list[dict[int, float]]]:
    """Log-probability of each token after the first, given those before it, and the likeliest ones in its place.

    Args:
        programs: of a model without an encoder.
        token_ids: the text.
        top: how many alternatives to list for each token.
        length: tokens that the cache has room for, at least as many as the text has.

    Returns:
        log-probabilities, and `{token: log-probability}` dicts; one fewer than there are tokens.
    """
    log_probs, alternatives = [], []
    cache, width, last = programs.empty_cache(1, length), min(WIDTH, length), len(token_ids) - 1
    for start in range(0, last, width):
        ids = token_ids[start : min(start + width, last)]
        read = np.zeros((1, bucket(len(ids), width, SMALLEST_BUCKET)), "int32")
        read[0, : len(ids)] = ids
        logits, _, cache = programs.logits(cache, read, np.array([start], "int32"), ())
        rows = log_softmax(ops.convert_to_numpy(logits)[0, : len(ids)])
        following = token_ids[start + 1 : start + 1 + len(ids)]
        log_probs += rows[np.arange(len(ids)), following].tolist()
        best = np.argsort(-rows, axis=-1, kind="stable")[:, :top]
        alternatives += [{int(i): float(row[i]) for i in chosen} for row, chosen in zip(rows, best)]
    return log_probs, alternatives


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits, over the last axis."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def noted(log_probs: np.ndarray, token: int, top: int) -> tuple[float, dict[int, float]]:
    """The log-probability of a token, of (vocabulary,), and the `top` likeliest ones in its place."""
    best = np.argsort(-log_probs, kind="stable")[:top]
    return float(log_probs[token]), {int(i): float(log_probs[i]) for i in best}
