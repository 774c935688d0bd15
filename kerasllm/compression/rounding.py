"""Weights rounded to few bits so that a layer's outputs, not its weights, stay close: GPTQ and AWQ, in NumPy.

A kernel is (in, out). What the inputs x (rows, in) were like is their Gram matrix xᵀx / rows: the mean squared error of
the outputs is then tr(Dᵀ · Gram · D) for an error D of the kernel.
"""

from typing import NamedTuple

import numpy as np

BLOCK = 128  # inputs whose errors are handed on to the others in one matrix product
RANGES = np.linspace(1.0, 0.5, 11)  # of a group's weights, that AWQ tries to cut it down to


class Rounded(NamedTuple):
    """A kernel as whole numbers: (codes − zero) · scale, of each input's group, divided by `input_scales`.

    Attributes:
        codes: (in, out), from 0 to 2**bits − 1.
        scale, zero: (groups, out).
        groups: (in,).
        input_scales: (in,).
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    groups: np.ndarray
    input_scales: np.ndarray

    def values(self) -> np.ndarray:
        """The kernel, (in, out)."""
        return (self.codes - self.zero[self.groups]) * self.scale[self.groups] / self.input_scales[:, None]


def output_error(kernel, rounded, gram) -> float:
    """The mean squared error of a layer's outputs, summed over them."""
    difference = np.asarray(kernel, "float64") - rounded
    return float(np.sum(difference * (gram @ difference)))


def nearest(kernel: np.ndarray, bits: int, group_size: int = -1, symmetric: bool = False) -> Rounded:
    """Each weight to the nearest of its group's 2**bits numbers.

    Args:
        kernel: (in, out).
        bits: a weight.
        group_size: inputs a group, -1 for all.
        symmetric: numbers as far below zero as above it.
    """
    kernel = np.asarray(kernel, "float64")
    groups = group_ids(len(kernel), group_size)
    found = [_parameters(kernel[groups == g], bits, symmetric) for g in range(groups[-1] + 1)]
    scale, zero = (np.stack(part) for part in zip(*found))
    codes = _codes(kernel, scale[groups], zero[groups], bits)
    return Rounded(codes, scale, zero, groups, np.ones(len(kernel)))


def gptq(
    kernel: np.ndarray,
    gram: np.ndarray,
    bits: int,
    group_size: int = -1,
    symmetric: bool = False,
    damping: float = 0.01,
    by_activation: bool = False,
) -> Rounded:
    """One input after the other is rounded, and those that follow make up for its error as well as they can.

    Args:
        kernel, bits, group_size, symmetric: as in `nearest`.
        gram: (in, in).
        damping: share of its mean that is added to the diagonal.
        by_activation: inputs in the order of their size, the largest first.

    Reference: Frantar et al. (2022), "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers".
    """
    kernel = np.array(kernel, "float64")
    order = np.argsort(-np.diag(gram), kind="stable") if by_activation else np.arange(len(kernel))
    kernel, inverse = kernel[order], inverse_factor(gram[np.ix_(order, order)], damping)

    groups = group_ids(len(kernel), group_size)
    codes, parameters = np.zeros_like(kernel), []
    block = (
        BLOCK if group_size == -1 else group_size * max(1, BLOCK // group_size)
    )  # Groups begin with up-to-date weights.
    for begin in range(0, len(kernel), block):
        end = min(begin + block, len(kernel))
        errors = np.zeros((end - begin, kernel.shape[1]))
        for i in range(begin, end):
            if groups[i] == len(parameters):
                parameters.append(_parameters(kernel[groups == groups[i]], bits, symmetric))
            scale, zero = parameters[groups[i]]
            codes[i] = _codes(kernel[i], scale, zero, bits)
            errors[i - begin] = (kernel[i] - (codes[i] - zero) * scale) / inverse[i, i]
            kernel[i + 1 : end] -= np.outer(inverse[i, i + 1 : end], errors[i - begin])
        kernel[end:] -= inverse[begin:end, end:].T @ errors
    scale, zero = (np.stack(part) for part in zip(*parameters))
    back = np.argsort(order)
    return Rounded(codes[back], scale, zero, groups[back], np.ones(len(kernel)))


def inverse_factor(gram: np.ndarray, damping: float) -> np.ndarray:
    """Upper triangular (in, in): row i says what the inputs after i are to be changed by for an error of the weights
    of i, given that those before it are fixed.

    Args:
        gram: (in, in).
        damping: share of its mean that is added to the diagonal.
    """
    gram = np.array(gram, "float64")
    diagonal = np.diag(gram).copy()
    silent = diagonal == 0  # An input that was never there may be changed in any way.
    gram[silent, silent] = 1.0
    gram[np.diag_indices_from(gram)] += damping * max(diagonal.mean(), 1e-12)
    return np.linalg.cholesky(np.linalg.inv(gram)).T


def awq(kernel: np.ndarray, gram: np.ndarray, sizes: np.ndarray, group_size: int = -1, grid: int = 20) -> Rounded:
    """Inputs that are large get finer weights: they are multiplied before rounding, and divided after it.

    Of `grid` strengths, and none, the one is taken that leaves the smallest error of the outputs. Then each group's
    range is cut down if that makes up for the weights it loses, as in the authors' code.

    Args:
        kernel, group_size: as in `nearest`, with 4 bits.
        gram: (in, in).
        sizes: (in,), the mean absolute value of each input.
        grid: strengths to try.

    Reference: Lin et al. (2023), "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration".
    """
    kernel, gram = np.asarray(kernel, "float64"), np.asarray(gram, "float64")
    sizes = np.where(sizes > 1e-8, sizes, 1.0)
    best, least = None, np.inf
    for strength in np.linspace(0.0, 1.0, grid + 1):
        scales = sizes**strength
        scales = np.maximum(scales / np.sqrt(scales.max() * scales.min()), 1e-4)
        rounded = nearest(kernel * scales[:, None], 4, group_size)._replace(input_scales=scales)
        error = output_error(kernel, rounded.values(), gram)
        if error < least:
            best, least = rounded, error
    scales = best.input_scales
    cut = _cut(kernel * scales[:, None], gram / np.outer(scales, scales), group_size)._replace(input_scales=scales)
    return cut if output_error(kernel, cut.values(), gram) < least else best


def _cut(kernel, gram, group_size: int) -> Rounded:
    """`nearest` with 4 bits, each group's range as narrow as leaves the smallest error of what it adds to an output."""
    groups = group_ids(len(kernel), group_size)
    codes, parameters = np.zeros_like(kernel), []
    for g in range(groups[-1] + 1):
        inside = groups == g
        weights, own = kernel[inside], gram[np.ix_(inside, inside)]
        least = np.full(weights.shape[1], np.inf)
        scale, zero = np.ones_like(least), np.zeros_like(least)
        for share in RANGES:
            tried = _parameters(weights * share, 4, symmetric=False)
            errors = weights - (_codes(weights, *tried, 4) - tried[1]) * tried[0]
            error = np.sum(errors * (own @ errors), axis=0)
            scale, zero = (np.where(error < least, new, old) for new, old in zip(tried, (scale, zero)))
            least = np.minimum(error, least)
        codes[inside] = _codes(weights, scale, zero, 4)
        parameters.append((scale, zero))
    scale, zero = (np.stack(part) for part in zip(*parameters))
    return Rounded(codes, scale, zero, groups, np.ones(len(kernel)))


def group_ids(inputs: int, group_size: int) -> np.ndarray:
    """(inputs,), the group of each."""
    return np.arange(inputs) // (inputs if group_size == -1 else group_size)


def _parameters(weights, bits: int, symmetric: bool):
    """(scale, zero), each (out,), of a group of weights (inputs, out): whatever they are, 0 is among its numbers."""
    low, high = np.minimum(weights.min(axis=0), 0.0), np.maximum(weights.max(axis=0), 0.0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = (high - low) / (2**bits - 1)
    scale = np.where(scale > 0, scale, 1.0).astype("float32").astype("float64")  # as it will be kept
    zero = np.full(scale.shape, 2.0 ** (bits - 1)) if symmetric else np.round(-low / scale)
    return scale, zero


def _codes(weights, scale, zero, bits: int):
    return np.clip(np.round(weights / scale) + zero, 0, 2**bits - 1)
