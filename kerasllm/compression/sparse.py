"""Which weights of a kernel may go: by size, by what they do (Wanda), or with the others making up for it (SparseGPT).

A kernel is (in, out), as in `kerasllm.compression.rounding`. A sparsity is the share of zeros, in [0, 1), or a pattern
such as "2:4": of each 4 inputs in a row of an output, 2 stay.
"""

import re

import numpy as np

from kerasllm.compression.rounding import BLOCK, inverse_factor

MAX_PATTERN = 64


def check_sparsity(sparsity: float | str) -> None:
    """Raises a ValueError unless it is a share in [0, 1) or a pattern."""
    if isinstance(sparsity, str):
        n, m = pattern_of(sparsity) or (0, 0)
        if not 0 < n < m <= MAX_PATTERN:
            raise ValueError(
                f"A pattern is 'n:m' with 0 < n < m <= {MAX_PATTERN}, such as '2:4'. Received: sparsity={sparsity!r}"
            )
    elif isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be in [0, 1), or a pattern such as '2:4'. Received: sparsity={sparsity!r}")


def pattern_of(sparsity: float | str) -> tuple[int, int] | None:
    """(n, m) of "n:m"; `None` of a share."""
    found = re.fullmatch(r"(\d+):(\d+)", sparsity) if isinstance(sparsity, str) else None
    return found and (int(found[1]), int(found[2]))


def largest(scores: np.ndarray, sparsity: float | str, each_output: bool = False) -> np.ndarray:
    """Where the scores are largest, boolean of their shape.

    Args:
        scores: (in, out).
        sparsity: what is left out; a pattern counts along the inputs of each output.
        each_output: whether each output loses the same share, or all of them together.
    """
    pattern = pattern_of(sparsity)
    if pattern:
        n, m = pattern
        groups = scores.reshape(-1, m, scores.shape[1])
        return _all_but_smallest(groups, m - n, axis=1).reshape(scores.shape)
    if each_output:
        return _all_but_smallest(scores, round(sparsity * len(scores)), axis=0)
    return _all_but_smallest(scores.reshape(-1), round(sparsity * scores.size), axis=0).reshape(scores.shape)


def wanda(kernel: np.ndarray, gram: np.ndarray, sparsity: float | str, each_output: bool = True) -> np.ndarray:
    """The kernel without the weights that move its outputs least: |weight| times the length of its input.

    Args:
        kernel: (in, out).
        gram: (in, in), xᵀx / rows.
        sparsity: share of zeros, or a pattern.
        each_output: whether each output loses the same share, or all of them together.

    Reference: Sun et al. (2023), "A Simple and Effective Pruning Approach for Large Language Models".
    """
    scores = np.abs(kernel) * np.sqrt(np.diag(gram))[:, None]
    return np.where(largest(scores, sparsity, each_output), kernel, 0.0)


def sparse_gpt(kernel: np.ndarray, gram: np.ndarray, sparsity: float | str, damping: float = 0.01) -> np.ndarray:
    """The kernel with zeros, where the inputs after each one make up for what it lost as well as they can.

    Args:
        kernel: (in, out).
        gram: (in, in), xᵀx / rows.
        sparsity: of each block of inputs, all outputs together; a pattern counts along the inputs of each output.
        damping: share of its mean that is added to the diagonal.

    Reference: Frantar and Alistarh (2023), "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot".
    """
    kernel, inverse = np.array(kernel, "float64"), inverse_factor(gram, damping)
    kernel[np.diag(gram) == 0] = 0.0  # What such inputs weigh, nobody sees.
    costs = np.diag(inverse)[:, None] ** 2
    pattern = pattern_of(sparsity)
    size = pattern[1] if pattern else BLOCK  # inputs that are chosen among at once
    block = size * max(1, BLOCK // size)
    stays = np.ones(kernel.shape, "bool")
    for begin in range(0, len(kernel), block):
        end = min(begin + block, len(kernel))
        errors = np.zeros((end - begin, kernel.shape[1]))
        for i in range(begin, end):
            if (i - begin) % size == 0:
                here = slice(i, min(i + size, end))
                stays[here] = largest(kernel[here] ** 2 / costs[here], sparsity)
            errors[i - begin] = np.where(stays[i], 0.0, kernel[i]) / inverse[i, i]
            kernel[i] = np.where(stays[i], kernel[i], 0.0)
            kernel[i + 1 : end] -= np.outer(inverse[i, i + 1 : end], errors[i - begin])
        kernel[end:] -= inverse[begin:end, end:].T @ errors
    return kernel


def _all_but_smallest(scores: np.ndarray, count: int, axis: int) -> np.ndarray:
    order = np.argsort(scores, axis=axis, kind="stable")
    stays = np.ones(scores.shape, "bool")
    np.put_along_axis(stays, np.take(order, np.arange(count), axis=axis), False, axis=axis)
    return stays
