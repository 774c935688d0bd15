"""Which weights go, against brute force."""

import itertools

import numpy as np
import pytest

from kerasllm.compression.rounding import output_error
from kerasllm.compression.sparse import largest, sparse_gpt, wanda

pytestmark = pytest.mark.one_backend


def problem(inputs=32, outputs=8, rows=400):
    """(kernel, gram) of inputs that go together, some of which are large."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, inputs)) @ random.normal(size=(inputs, inputs)) / inputs**0.5
    x = (x + 0.3 * random.normal(size=x.shape)) * np.exp(random.normal(size=inputs))
    return random.normal(size=(inputs, outputs)), x.T @ x / rows


@pytest.mark.parametrize("sparsity", [0.25, 0.5, "2:4"])
def test_the_better_chosen_the_smaller_the_error(sparsity):
    kernel, gram = problem()
    magnitude = np.where(largest(np.abs(kernel), sparsity), kernel, 0)
    errors = [output_error(kernel, solve(kernel, gram, sparsity), gram) for solve in (sparse_gpt, wanda)]
    most = output_error(kernel, magnitude, gram)
    assert errors[0] < errors[1] < most
    assert output_error(kernel, wanda(kernel, gram, sparsity, each_output=False), gram) < most


def test_one_lost_input_is_made_up_for_as_well_as_can_be():
    """The first input of each pair is small: the second takes over what least squares gives it."""
    kernel, gram = problem(inputs=2)
    kernel[0] *= 1e-3
    made_up = kernel[1] + gram[0, 1] / gram[1, 1] * kernel[0]
    found = sparse_gpt(kernel, gram, "1:2", damping=0.0)
    np.testing.assert_allclose(found, [np.zeros(8), made_up])


def test_patterns_keep_the_largest_of_each_group():
    scores = np.random.default_rng(1).random((8, 3))
    stays = largest(scores, "1:4")
    for group, output in itertools.product(range(2), range(3)):
        here = scores[4 * group : 4 * group + 4, output]
        np.testing.assert_array_equal(stays[4 * group : 4 * group + 4, output], here == here.max())


def test_shares_of_all_and_of_each_output():
    scores = np.random.default_rng(1).random((10, 4))
    np.testing.assert_array_equal(largest(scores, 0.3), scores >= np.sort(scores.ravel())[12])
    np.testing.assert_array_equal(largest(scores, 0.3, each_output=True), scores >= np.sort(scores, axis=0)[3])
    assert largest(scores, 0).all()


def test_inputs_that_never_come_go_first():
    kernel, gram = problem()
    gram[:4], gram[:, :4] = 0, 0
    for found in (wanda(kernel, gram, 0.25), sparse_gpt(kernel, gram, 0.125)):
        assert (found[:4] == 0).all() and np.isfinite(found).all()
