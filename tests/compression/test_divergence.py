"""The chunked distance of a student from its teacher is the plain formula, in value and gradient."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm.compression.divergence import linear_distillation

RANDOM = np.random.default_rng(0)
TOKENS, DIM, TEACHER_DIM, VOCABULARY = 10, 6, 5, 13
HIDDEN, TEACHER = (RANDOM.normal(size=(TOKENS, dim)).astype("float32") for dim in (DIM, TEACHER_DIM))
KERNEL, TEACHER_KERNEL = (RANDOM.normal(size=(dim, VOCABULARY)).astype("float32") for dim in (DIM, TEACHER_DIM))
TARGETS = RANDOM.integers(0, VOCABULARY, TOKENS).astype("int32")
WEIGHTS = RANDOM.random(TOKENS).astype("float32")
SETTINGS = {
    "plain": {},
    "warm": {"temperature": 3.0, "hard": 0.25},
    "reverse": {"divergence": "reverse_kl", "temperature": 2.0},
    "js": {"divergence": "jensen_shannon", "beta": 0.3, "temperature": 2.0, "hard": 0.1},
}


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def plain(hidden, kernel, divergence="forward_kl", temperature=1.0, beta=0.5, hard=0.0):
    """The formula as the papers have it, in float64."""
    logits, teacher = hidden.astype("float64") @ kernel, TEACHER.astype("float64") @ TEACHER_KERNEL
    log_q, log_p = log_softmax(logits / temperature), log_softmax(teacher / temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    if divergence == "forward_kl":
        apart = (p * (log_p - log_q)).sum(axis=-1)
    elif divergence == "reverse_kl":
        apart = (q * (log_q - log_p)).sum(axis=-1)
    else:
        log_m = np.log(beta * p + (1 - beta) * q)
        apart = beta * (p * (log_p - log_m)).sum(axis=-1) + (1 - beta) * (q * (log_q - log_m)).sum(axis=-1)
    nll = -log_softmax(logits)[np.arange(TOKENS), TARGETS]
    correct = logits.argmax(axis=-1) == TARGETS
    loss = (1 - hard) * temperature**2 * apart + hard * nll
    return np.array([(WEIGHTS * x).sum() for x in (loss, nll, correct)])


def slopes(array, loss, step=1e-4):
    """d loss / d array by central differences."""
    found = np.zeros(array.shape)
    for place in np.ndindex(array.shape):
        change = np.zeros(array.shape)
        change[place] = step
        found[place] = (loss(array + change) - loss(array - change)) / (2 * step)
    return found


def value_and_gradients(**settings):
    """(sums, d loss / d hidden, d loss / d kernel) as a training step finds them."""

    def sums(hidden, kernel):
        return linear_distillation(hidden, kernel, TEACHER, TEACHER_KERNEL, TARGETS, WEIGHTS, **settings)

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def loss(hidden, kernel):
            found = sums(hidden, kernel)
            return 2 * found[0], found

        (_, found), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(HIDDEN, KERNEL)
    elif backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def run(hidden, kernel):
            with tf.GradientTape() as tape:
                tape.watch((hidden, kernel))
                found = sums(hidden, kernel)
                loss = 2 * found[0]
            return found, tape.gradient(loss, (hidden, kernel))

        found, gradients = run(tf.constant(HIDDEN), tf.constant(KERNEL))
    else:
        leaves = [ops.convert_to_tensor(x).requires_grad_() for x in (HIDDEN, KERNEL)]
        found = sums(*leaves)
        (2 * found[0]).backward()
        found, gradients = found.detach(), [leaf.grad for leaf in leaves]
    return [ops.convert_to_numpy(x) for x in (found, *gradients)]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_chunks_are_the_formula(name, chunk_size):
    settings = SETTINGS[name]
    found, d_hidden, d_kernel = value_and_gradients(**settings, chunk_size=chunk_size)
    np.testing.assert_allclose(found, plain(HIDDEN, KERNEL, **settings), rtol=2e-5)
    expected = slopes(HIDDEN, lambda hidden: plain(hidden, KERNEL, **settings)[0])
    np.testing.assert_allclose(d_hidden, 2 * expected, atol=2e-3)
    expected = slopes(KERNEL, lambda kernel: plain(HIDDEN, kernel, **settings)[0])
    np.testing.assert_allclose(d_kernel, 2 * expected, atol=2e-3)


def test_the_teacher_itself_is_no_distance_away():
    for settings in SETTINGS.values():
        settings = {**settings, "hard": 0.0}
        sums = linear_distillation(HIDDEN, KERNEL, HIDDEN, KERNEL, TARGETS, **settings)
        assert abs(float(ops.convert_to_numpy(sums)[0])) < 1e-4
