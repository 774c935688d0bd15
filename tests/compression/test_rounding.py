"""GPTQ and AWQ against what they are defined by, on matrices small enough to solve."""

import numpy as np
import pytest

from kerasllm.compression.rounding import awq, gptq, nearest, output_error

pytestmark = pytest.mark.one_backend


def problem(inputs, outputs, seed=0):
    """A kernel, and inputs that depend on one another and differ in size."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(4 * inputs, inputs)) @ random.normal(size=(inputs, inputs)) * random.lognormal(size=inputs)
    return random.normal(size=(inputs, outputs)), x.T @ x / len(x), np.abs(x).mean(axis=0)


def one_by_one(kernel, gram, bits):
    """GPTQ from its definition: round a row, then solve for the best values of all rows that are still free."""
    grid = nearest(kernel, bits)
    scale, zero = grid.scale[0], grid.zero[0]
    fixed, current = [], kernel.copy()
    for i in range(len(kernel)):
        codes = np.clip(np.round(current[i] / scale) + zero, 0, 2**bits - 1)
        fixed.append((codes - zero) * scale)
        rest = slice(i + 1, None)
        pull = gram[rest, : i + 1] @ (kernel[: i + 1] - np.array(fixed))
        current[rest] = kernel[rest] + np.linalg.solve(gram[rest, rest], pull)
    return np.array(fixed)


@pytest.mark.parametrize("inputs", [1, 5, 150])  # 150 is more than one block
def test_gptq_is_the_solution_row_by_row(inputs):
    kernel, gram, _ = problem(inputs, 3)
    found = gptq(kernel, gram, bits=3, damping=0.0).values()
    np.testing.assert_allclose(found, one_by_one(kernel, gram, bits=3), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"group_size": 16}, {"group_size": 48}, {"symmetric": True}, {"by_activation": True, "group_size": 32}],
)
def test_gptq_leaves_less_error_than_rounding(options):
    kernel, gram, _ = problem(192, 24)
    plain = {name: value for name, value in options.items() if name != "by_activation"}
    error = output_error(kernel, gptq(kernel, gram, 4, **options).values(), gram)
    assert error < 0.8 * output_error(kernel, nearest(kernel, 4, **plain).values(), gram)


@pytest.mark.parametrize("group_size", [-1, 16])
def test_awq_leaves_less_error_than_rounding(group_size):
    kernel, gram, sizes = problem(64, 16)
    error = output_error(kernel, awq(kernel, gram, sizes, group_size).values(), gram)
    assert error < output_error(kernel, nearest(kernel, 4, group_size).values(), gram)


def test_awq_cuts_the_range_of_a_group_with_one_large_weight():
    kernel, gram, sizes = problem(32, 4)
    kernel[3] *= 3
    without_scaling = {"group_size": 16, "grid": 0}
    found = awq(kernel, gram, sizes, **without_scaling)
    assert output_error(kernel, found.values(), gram) < 0.95 * output_error(
        kernel, nearest(kernel, 4, 16).values(), gram
    )
    assert (found.scale < nearest(kernel, 4, 16).scale).any()
    assert set(np.unique(found.codes)) <= set(range(16))


def test_rounding_is_to_the_nearest_number_of_the_grid():
    kernel = np.random.default_rng(1).normal(size=(32, 5))
    found = nearest(kernel, 3, group_size=8)
    for group in range(4):
        rows = slice(8 * group, 8 * group + 8)
        grid = (np.arange(8)[:, None] - found.zero[group]) * found.scale[group]
        best = np.abs(kernel[rows, None] - grid).min(axis=1)
        np.testing.assert_allclose(np.abs(kernel[rows] - found.values()[rows]), best, atol=1e-12)


def test_an_input_that_is_never_there_and_a_kernel_of_zeros_do_no_harm():
    kernel, gram, sizes = problem(8, 3)
    gram[2], gram[:, 2], sizes[2] = 0.0, 0.0, 0.0
    for found in (gptq(kernel, gram, 4), awq(kernel, gram, sizes)):
        assert np.isfinite(found.values()).all()
    assert not gptq(np.zeros((8, 3)), gram, 4).values().any()
