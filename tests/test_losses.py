"""Linear cross-entropy against PyTorch's, in value and gradient, for every chunk size."""

import keras
import numpy as np
import pytest
import torch
from differentiate import gradients
from keras import ops

from kerasllm import losses
from kerasllm.losses import chunk_tokens, linear_cross_entropy, token_log_likelihoods

TOKENS, DIM, VOCABULARY = 21, 8, 13


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(TOKENS, DIM)).astype("float32")
    kernel = rng.normal(size=(DIM, VOCABULARY)).astype("float32")
    targets = rng.integers(0, VOCABULARY, TOKENS).astype("int32")
    weights = rng.uniform(0, 2, TOKENS).astype("float32") * (rng.random(TOKENS) > 0.3)
    return hidden, kernel, targets, weights.astype("float32")


def oracle(hidden, kernel, targets, weights):
    """PyTorch's cross_entropy: loss, correct, and the gradients of the loss."""
    h, k = (torch.tensor(np.asarray(x, "float32"), requires_grad=True) for x in (hidden, kernel))
    t, w = torch.tensor(targets).long(), torch.tensor(weights)
    logits = h @ k
    loss = (torch.nn.functional.cross_entropy(logits, t, reduction="none") * w).sum()
    loss.backward()
    correct = (w * (logits.argmax(-1) == t)).sum()
    return loss.item(), correct.item(), h.grad.numpy(), k.grad.numpy()


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 7, 20, 21, 64])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_dense_cross_entropy(case, chunk_size, weighted):
    hidden, kernel, targets, weights = case
    given = weights if weighted else None
    loss, correct, d_hidden, d_kernel = oracle(*case[:3], weights if weighted else np.ones(TOKENS, "float32"))

    def scaled_loss(h, k):
        return linear_cross_entropy(h, k, targets, given, chunk_size)[0] * 0.5

    found_loss, found_correct = linear_cross_entropy(*map(ops.convert_to_tensor, case[:3]), given, chunk_size)
    assert float(found_loss) == pytest.approx(loss, rel=1e-5)
    assert float(found_correct) == pytest.approx(correct, rel=1e-5)
    found = gradients(scaled_loss, hidden, kernel)
    np.testing.assert_allclose(found[0], 0.5 * d_hidden, atol=1e-5)
    np.testing.assert_allclose(found[1], 0.5 * d_kernel, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_equals_dense_when_compiled(case, chunk_size):
    hidden, kernel, targets, weights = case
    expected = oracle(*case)

    def loss_and_correct(h, k):
        return linear_cross_entropy(h, k, targets, weights, chunk_size)

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def loss_only(h, k):
            return loss_and_correct(h, k)[0]

        compiled, compiled_loss = jax.jit(loss_and_correct), jax.jit(loss_only)
    elif backend == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(loss_and_correct, jit_compile=True)

        def compiled_loss(h, k):
            return compiled(h, k)[0]
    else:
        pytest.skip("Keras runs PyTorch uncompiled")
    loss, correct = compiled(hidden, kernel)
    assert float(loss) == pytest.approx(expected[0], rel=1e-5)
    assert float(correct) == pytest.approx(expected[1], rel=1e-5)
    for found, wanted in zip(gradients(compiled_loss, hidden, kernel), expected[2:]):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_bfloat16_inputs_stay_near(case, chunk_size):
    half = [torch.tensor(x).bfloat16().float().numpy() for x in case[:2]]
    expected = oracle(*half, *case[2:])

    def loss(h, k):
        h, k = ops.cast(h, "bfloat16"), ops.cast(k, "bfloat16")
        return linear_cross_entropy(h, k, case[2], case[3], chunk_size)[0]

    tensors = [ops.convert_to_tensor(h) for h in half]
    value = loss(*tensors)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(value) == pytest.approx(expected[0], rel=1e-2)
    for found, wanted in zip(gradients(loss, *half), expected[2:]):
        np.testing.assert_allclose(found, wanted, atol=0.1)


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_large_logits_do_not_overflow(case, chunk_size):
    hidden, kernel, targets, weights = case
    expected = oracle(100 * hidden, kernel, targets, weights)
    value, _ = linear_cross_entropy(*map(ops.convert_to_tensor, (100 * hidden, kernel, targets)), weights, chunk_size)
    assert float(value) == pytest.approx(expected[0], rel=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 1, 8, 100])
def test_token_log_likelihoods(case, chunk_size):
    hidden, kernel, targets, _ = case
    found = token_log_likelihoods(*map(ops.convert_to_tensor, (hidden, kernel, targets)), chunk_size)
    logits = hidden.astype("float64") @ kernel
    expected = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(TOKENS), targets]
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)


@pytest.mark.one_backend
def test_the_chunk_is_chosen_by_size():
    assert chunk_tokens(768, 65) == 768  # small: the dense loss
    for tokens, vocabulary in ((2048, 50257), (8 * 1024, 50304), (65536, 256_000), (10**6, 32_000)):
        size = chunk_tokens(tokens, vocabulary)
        assert size < tokens and size * vocabulary <= losses.CHUNK_LOGITS
        assert 4 * size * vocabulary > losses.CHUNK_LOGITS  # and no smaller than it needs to be
    assert chunk_tokens(10**6, 2**24) >= 1


def test_no_tensor_of_all_logits_is_made():
    if keras.backend.backend() != "jax":
        pytest.skip("reads JAX's program")
    import jax

    tokens, dim, vocabulary, chunk = 1024, 16, 1000, 64
    targets = np.zeros(tokens, "int32")

    def loss(h, k):
        return linear_cross_entropy(h, k, targets, chunk_size=chunk)[0]

    def largest(jaxpr):
        sizes = [np.prod(v.aval.shape) for equation in jaxpr.eqns for v in equation.outvars]
        for equation in jaxpr.eqns:
            for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    sizes.append(largest(inner))
        return max(sizes, default=0)

    arguments = np.zeros((tokens, dim), "float32"), np.zeros((dim, vocabulary), "float32")
    chunked = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(*arguments)
    assert chunk * vocabulary <= largest(chunked.jaxpr) <= chunk * vocabulary + vocabulary
    dense = jax.make_jaxpr(lambda h, k: linear_cross_entropy(h, k, targets, chunk_size=tokens)[0])(*arguments)
    assert largest(dense.jaxpr) >= tokens * vocabulary  # the measure itself sees what it should
