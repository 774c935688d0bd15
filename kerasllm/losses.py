"""Linear cross-entropy: the head's projection and the softmax loss in one step, a chunk of tokens at a time.

The logits of a batch are (tokens × vocabulary), by far the largest tensor of a training step. Here only one
chunk of them is alive at any time: for each chunk the loss *and* its gradients with respect to the hidden
states and to the kernel are computed at once, so the backward pass recomputes nothing and only multiplies by
the incoming scalar. Exact in value and gradient; one chunk is the ordinary dense loss.

References: Wijmans et al. (2024), "Cut Your Losses in Large-Vocabulary Language Models"; Hsu et al. (2024),
"Liger Kernel", whose gradient-in-forward scheme this is.
"""

import math
from typing import NamedTuple

import keras
from keras import ops

# Logits alive at once. Below it a single chunk is fastest; far above it memory decides.
CHUNK_LOGITS = 2**25
# Without a gradient of the kernel to add up, small chunks cost nothing.
FROZEN_CHUNK_LOGITS = 2**23


def chunk_tokens(num_tokens: int, vocabulary_size: int, logits: int = CHUNK_LOGITS) -> int:
    """How many tokens a chunk holds: all of them when their logits are few, else a power of two."""
    if num_tokens * vocabulary_size <= logits:
        return num_tokens
    return min(num_tokens, 1 << max(6, (logits // vocabulary_size).bit_length() - 1))


def check_loss_options(label_smoothing: float, z_loss: float) -> None:
    """Raises a ValueError unless `label_smoothing` is in [0, 1) and `z_loss` is a number of at least 0."""
    for name, value, below in (("label_smoothing", label_smoothing, 1.0), ("z_loss", z_loss, math.inf)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < below:
            raise ValueError(f"`{name}` must be a number in [0, {below:g}). Received: {name}={value!r}")


def linear_cross_entropy(
    hidden,
    kernel,
    targets,
    weights=None,
    chunk_size=None,
    *,
    label_smoothing=0.0,
    z_loss=0.0,
    frozen_kernel=False,
    frozen_rows=False,
):
    """Summed cross-entropy of `softmax(hidden @ kernel)` against integer targets.

    Args:
        hidden: (tokens, dim), float.
        kernel: (dim, vocabulary), float.
        targets: (tokens,), integer.
        weights: (tokens,), float; a token counts this much. All 1 when left out. Not differentiated.
        chunk_size: tokens whose logits are alive at once; chosen by size when left out.
        label_smoothing: share of a target's probability that is spread evenly over the whole vocabulary, in [0, 1).
        z_loss: factor of the square of log Σ exp(logits), which keeps the logits from drifting; PaLM's is 1e-4.
        frozen_kernel: the kernel gets no gradient, and none is computed: a third of the work, and its memory.
        frozen_rows: the kernel gets no gradient and is given as (vocabulary, dim), as a tied embedding lies: XLA would
            else make a transposed copy of it.

    Returns:
        loss: scalar float32, in nats, Σ weight · (cross-entropy with the smoothed target + z_loss · logsumexp²).
            Differentiable (once) in `hidden`, `kernel`.
        nll: scalar float32, Σ weight · −log p(target), without the two options. What perplexity is made of; not
            differentiated, except that it *is* the loss where both options are 0.
        correct: scalar float32, Σ weight over tokens whose target has the largest logit.

    Raises:
        ValueError: an option is out of range.

    Example:
    ```python
    loss, nll, correct = linear_cross_entropy(hidden, kernel, targets, label_smoothing=0.1)
    ```

    References: Szegedy et al. (2015), "Rethinking the Inception Architecture", section 7, for label smoothing;
    Chowdhery et al. (2022), "PaLM", section 5, for the z-loss.
    """
    check_loss_options(label_smoothing, z_loss)
    num_tokens, vocabulary_size = hidden.shape[0], kernel.shape[0 if frozen_rows else 1]
    trained = not (frozen_kernel or frozen_rows)
    if weights is None:
        weights = ops.ones_like(targets, dtype="float32")
    weights = ops.cast(weights, "float32")
    if chunk_size is None:
        logits = CHUNK_LOGITS if trained else FROZEN_CHUNK_LOGITS
        chunk_size = num_tokens and chunk_tokens(num_tokens, vocabulary_size, logits)
    if num_tokens is None or chunk_size >= num_tokens:
        chunk_size = None
    elif num_tokens % chunk_size:
        padding = chunk_size - num_tokens % chunk_size
        hidden = ops.pad(hidden, [(0, padding), (0, 0)])
        targets, weights = ops.pad(targets, [(0, padding)]), ops.pad(weights, [(0, padding)])
    targets, options = ops.cast(targets, "int32"), (float(label_smoothing), float(z_loss))
    run = _BACKENDS[keras.backend.backend()]
    loss, correct, *nll = run(hidden, kernel, targets, weights, chunk_size, options, _Kernel(trained, frozen_rows))
    return loss, (nll[0] if nll else loss), correct


def cross_entropy(logits, targets, weights, *, label_smoothing=0.0, z_loss=0.0):
    """What `linear_cross_entropy` computes, of logits that are there: (…, vocabulary), with (…) targets and weights."""
    logits = ops.cast(logits, "float32")
    normalizer = ops.logsumexp(logits, axis=-1)
    target = ops.squeeze(ops.take_along_axis(logits, ops.expand_dims(ops.cast(targets, "int32"), -1), axis=-1), -1)
    weights = ops.cast(weights, "float32")
    nll = ops.sum(weights * (normalizer - target))
    correct = ops.sum(weights * ops.cast(target >= ops.max(logits, axis=-1), "float32"))
    if not (label_smoothing or z_loss):
        return nll, nll, correct
    smoothed = (1 - label_smoothing) * target + label_smoothing * ops.mean(logits, axis=-1)
    return ops.sum(weights * (normalizer - smoothed + z_loss * normalizer**2)), nll, correct


def token_log_likelihoods(hidden, kernel, targets, chunk_size=None):
    """log p(target) of each token, (tokens,) float32; chunked like the loss, without gradients."""
    size = chunk_size or chunk_tokens(hidden.shape[0], kernel.shape[1])
    pieces = []
    for start in range(0, hidden.shape[0], size):
        logits = ops.cast(ops.matmul(hidden[start : start + size], kernel), "float32")
        target = ops.take_along_axis(logits, ops.expand_dims(targets[start : start + size], -1), axis=-1)
        pieces.append(ops.squeeze(target, -1) - ops.logsumexp(logits, axis=-1))
    return ops.concatenate(pieces)


# The functions below return sums (loss, correct), and (loss, correct, nll) where the options make the loss another one.


class _Kernel(NamedTuple):
    """How the kernel is to be taken: whether it is trained, and whether it lies as (vocabulary, dim)."""

    trained: bool
    rows: bool


def _chunk(hidden, kernel, targets, weights, options, rows):
    """The sums of one chunk, and d loss / d logits, in float32."""
    smoothing, z_loss = options
    logits = ops.einsum("td,vd->tv", hidden, kernel) if rows else ops.matmul(hidden, kernel)
    logits = ops.cast(logits, "float32")
    is_target = ops.expand_dims(targets, 1) == ops.arange(logits.shape[1], dtype="int32")
    largest = ops.max(logits, axis=-1, keepdims=True)
    exponentials = ops.exp(logits - largest)
    total = ops.sum(exponentials, axis=-1, keepdims=True)
    target = ops.sum(ops.where(is_target, logits, 0.0), axis=-1)
    normalizer = largest[:, 0] + ops.log(total[:, 0])
    nll = ops.sum(weights * (normalizer - target))
    correct = ops.sum(weights * ops.cast(target >= largest[:, 0], "float32"))
    if not any(options):
        scaled = exponentials * (weights[:, None] / total)
        return (nll, correct), scaled - ops.where(is_target, weights[:, None], 0.0)
    smoothed = (1 - smoothing) * target + smoothing * ops.mean(logits, axis=-1)
    loss = ops.sum(weights * (normalizer - smoothed + z_loss * normalizer**2))
    scaled = exponentials * ((weights * (1 + 2 * z_loss * normalizer))[:, None] / total)
    expected = ops.where(is_target, 1 - smoothing, 0.0) + smoothing / logits.shape[1]
    return (loss, correct, nll), scaled - weights[:, None] * expected


def _chunk_with_gradients(hidden, kernel, targets, weights, options, how):
    """The sums of one chunk and the gradients, that of a kernel which is not trained being 0."""
    sums, d_logits = _chunk(hidden, kernel, targets, weights, options, how.rows)
    d_logits = ops.cast(d_logits, hidden.dtype)
    d_hidden = ops.matmul(d_logits, kernel if how.rows else ops.transpose(kernel))
    return sums, d_hidden, ops.matmul(ops.transpose(hidden), d_logits) if how.trained else ops.zeros((), kernel.dtype)


def _zeros(options):
    return tuple(ops.zeros((), "float32") for _ in range(3 if any(options) else 2))


def _added(sums, more):
    return tuple(a + b for a, b in zip(sums, more))


def _jax(hidden, kernel, targets, weights, chunk_size, options, how):
    import jax
    import jax.numpy as jnp

    def split(x):
        return x.reshape(-1, chunk_size, *x.shape[1:])

    @jax.custom_vjp
    def summed(hidden, kernel, targets, weights):
        if chunk_size is None:
            return _chunk(hidden, kernel, targets, weights, options, how.rows)[0]

        def step(sums, chunk):
            h, t, w = chunk
            return _added(sums, _chunk(h, kernel, t, w, options, how.rows)[0]), None

        return jax.lax.scan(step, _zeros(options), (split(hidden), split(targets), split(weights)))[0]

    def forward(hidden, kernel, targets, weights):
        if chunk_size is None:
            sums, d_hidden, d_kernel = _chunk_with_gradients(hidden, kernel, targets, weights, options, how)
            return sums, (d_hidden, d_kernel)

        def step(carry, chunk):
            h, t, w = chunk
            more, d_hidden, d_kernel = _chunk_with_gradients(h, kernel, t, w, options, how)
            return (_added(carry[0], more), carry[1] + d_kernel.astype("float32")), d_hidden

        (sums, d_kernel), d_hidden = jax.lax.scan(
            step,
            (_zeros(options), jnp.zeros(kernel.shape if how.trained else (), "float32")),
            (split(hidden), split(targets), split(weights)),
        )
        return sums, (d_hidden.reshape(hidden.shape), d_kernel.astype(kernel.dtype))

    def backward(gradients, upstream):
        scale = upstream[0]
        d_hidden, d_kernel = gradients
        d_kernel = d_kernel * scale.astype(d_kernel.dtype) if how.trained else None
        return d_hidden * scale.astype(d_hidden.dtype), d_kernel, None, None

    summed.defvjp(forward, backward)
    return summed(hidden, kernel, targets, weights)


def _tensorflow(hidden, kernel, targets, weights, chunk_size, options, how):
    import tensorflow as tf

    @tf.custom_gradient
    def summed(hidden, kernel):
        if chunk_size is None:
            sums, d_hidden, d_kernel = _chunk_with_gradients(hidden, kernel, targets, weights, options, how)
        else:
            dim = hidden.shape[1]
            h = tf.reshape(hidden, (-1, chunk_size, dim))
            t, w = tf.reshape(targets, (-1, chunk_size)), tf.reshape(weights, (-1, chunk_size))
            num_chunks = h.shape[0]

            def body(i, sums, d_kernel, d_hidden):
                more, d_h, d_k = _chunk_with_gradients(h[i], kernel, t[i], w[i], options, how)
                return i + 1, _added(sums, more), d_kernel + tf.cast(d_k, tf.float32), d_hidden.write(i, d_h)

            _, sums, d_kernel, d_hidden = tf.while_loop(
                lambda i, *_: i < num_chunks,
                body,
                (
                    0,
                    _zeros(options),
                    tf.zeros(kernel.shape if how.trained else ()),
                    tf.TensorArray(hidden.dtype, size=num_chunks, element_shape=(chunk_size, dim)),
                ),
                maximum_iterations=num_chunks,
            )
            d_hidden = tf.reshape(d_hidden.stack(), hidden.shape)
            d_kernel = tf.cast(d_kernel, kernel.dtype)

        def backward(d_loss, *_):
            d_trained = d_kernel * tf.cast(d_loss, d_kernel.dtype) if how.trained else None
            return d_hidden * tf.cast(d_loss, d_hidden.dtype), d_trained

        return sums, backward

    return summed(tf.convert_to_tensor(hidden), tf.convert_to_tensor(kernel))


def _torch(hidden, kernel, targets, weights, chunk_size, options, how):
    from kerasllm.losses_torch import LinearCrossEntropy

    kernel = kernel if how.trained else kernel.detach()
    kernel = kernel.t() if how.rows else kernel
    return LinearCrossEntropy.apply(hidden, kernel, targets, weights, chunk_size, *options)


_BACKENDS = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
