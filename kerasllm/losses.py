"""Linear cross-entropy: the head's projection and the softmax loss in one step, a chunk of tokens at a time.

The logits of a batch are (tokens × vocabulary), by far the largest tensor of a training step. Here only one
chunk of them is alive at any time: for each chunk the loss *and* its gradients with respect to the hidden
states and to the kernel are computed at once, so the backward pass recomputes nothing and only multiplies by
the incoming scalar. Exact in value and gradient; one chunk is the ordinary dense loss.

References: Wijmans et al. (2024), "Cut Your Losses in Large-Vocabulary Language Models"; Hsu et al. (2024),
"Liger Kernel", whose gradient-in-forward scheme this is.
"""

import keras
from keras import ops

# Logits alive at once. Below it a single chunk is fastest; far above it memory decides.
CHUNK_LOGITS = 2**25


def chunk_tokens(num_tokens: int, vocabulary_size: int) -> int:
    """How many tokens a chunk holds: all of them when their logits are few, else a power of two."""
    if num_tokens * vocabulary_size <= CHUNK_LOGITS:
        return num_tokens
    return min(num_tokens, 1 << max(6, (CHUNK_LOGITS // vocabulary_size).bit_length() - 1))


def linear_cross_entropy(hidden, kernel, targets, weights=None, chunk_size=None):
    """Summed cross-entropy of `softmax(hidden @ kernel)` against integer targets.

    Args:
        hidden: (tokens, dim), float.
        kernel: (dim, vocabulary), float.
        targets: (tokens,), integer.
        weights: (tokens,), float; a token counts this much. All 1 when left out. Not differentiated.
        chunk_size: tokens whose logits are alive at once; chosen by size when left out.

    Returns:
        loss: scalar float32, Σ weight · −log p(target), in nats. Differentiable (once) in `hidden`, `kernel`.
        correct: scalar float32, Σ weight over tokens whose target has the largest logit.

    Example:
    ```python
    loss, correct = linear_cross_entropy(hidden, kernel, targets)
    ```
    """
    num_tokens = hidden.shape[0]
    if weights is None:
        weights = ops.ones_like(targets, dtype="float32")
    weights = ops.cast(weights, "float32")
    if chunk_size is None:
        chunk_size = num_tokens and chunk_tokens(num_tokens, kernel.shape[1])
    if num_tokens is None or chunk_size >= num_tokens:
        chunk_size = None
    elif num_tokens % chunk_size:
        padding = chunk_size - num_tokens % chunk_size
        hidden = ops.pad(hidden, [(0, padding), (0, 0)])
        targets, weights = ops.pad(targets, [(0, padding)]), ops.pad(weights, [(0, padding)])
    return _BACKENDS[keras.backend.backend()](hidden, kernel, ops.cast(targets, "int32"), weights, chunk_size)


def token_log_likelihoods(hidden, kernel, targets, chunk_size=None):
    """log p(target) of each token, (tokens,) float32; chunked like the loss, without gradients."""
    size = chunk_size or chunk_tokens(hidden.shape[0], kernel.shape[1])
    pieces = []
    for start in range(0, hidden.shape[0], size):
        logits = ops.cast(ops.matmul(hidden[start : start + size], kernel), "float32")
        target = ops.take_along_axis(logits, ops.expand_dims(targets[start : start + size], -1), axis=-1)
        pieces.append(ops.squeeze(target, -1) - ops.logsumexp(logits, axis=-1))
    return ops.concatenate(pieces)


def _chunk(hidden, kernel, targets, weights):
    """Loss, correct count and d loss / d logits of one chunk, in float32."""
    logits = ops.cast(ops.matmul(hidden, kernel), "float32")
    is_target = ops.expand_dims(targets, 1) == ops.arange(kernel.shape[1], dtype="int32")
    largest = ops.max(logits, axis=-1, keepdims=True)
    exponentials = ops.exp(logits - largest)
    total = ops.sum(exponentials, axis=-1, keepdims=True)
    target = ops.sum(ops.where(is_target, logits, 0.0), axis=-1)
    loss = ops.sum(weights * (largest[:, 0] + ops.log(total[:, 0]) - target))
    correct = ops.sum(weights * ops.cast(target >= largest[:, 0], "float32"))
    scaled = exponentials * (weights[:, None] / total)
    return loss, correct, scaled - ops.where(is_target, weights[:, None], 0.0)


def _chunk_with_gradients(hidden, kernel, targets, weights):
    loss, correct, d_logits = _chunk(hidden, kernel, targets, weights)
    d_logits = ops.cast(d_logits, hidden.dtype)
    d_hidden = ops.matmul(d_logits, ops.transpose(kernel))
    d_kernel = ops.matmul(ops.transpose(hidden), d_logits)
    return loss, correct, d_hidden, d_kernel


def _jax(hidden, kernel, targets, weights, chunk_size):
    import jax
    import jax.numpy as jnp

    def split(x):
        return x.reshape(-1, chunk_size, *x.shape[1:])

    @jax.custom_vjp
    def summed(hidden, kernel, targets, weights):
        if chunk_size is None:
            return _chunk(hidden, kernel, targets, weights)[:2]

        def step(carry, chunk):
            h, t, w = chunk
            loss, correct, _ = _chunk(h, kernel, t, w)
            return (carry[0] + loss, carry[1] + correct), None

        zero = jnp.zeros((), "float32")
        return jax.lax.scan(step, (zero, zero), (split(hidden), split(targets), split(weights)))[0]

    def forward(hidden, kernel, targets, weights):
        if chunk_size is None:
            loss, correct, d_hidden, d_kernel = _chunk_with_gradients(hidden, kernel, targets, weights)
            return (loss, correct), (d_hidden, d_kernel)

        def step(carry, chunk):
            h, t, w = chunk
            loss, correct, d_hidden, d_kernel = _chunk_with_gradients(h, kernel, t, w)
            return (carry[0] + loss, carry[1] + correct, carry[2] + d_kernel.astype("float32")), d_hidden

        zero = jnp.zeros((), "float32")
        carry, d_hidden = jax.lax.scan(
            step,
            (zero, zero, jnp.zeros(kernel.shape, "float32")),
            (split(hidden), split(targets), split(weights)),
        )
        loss, correct, d_kernel = carry
        return (loss, correct), (d_hidden.reshape(hidden.shape), d_kernel.astype(kernel.dtype))

    def backward(gradients, upstream):
        scale = upstream[0]
        d_hidden, d_kernel = gradients
        return (d_hidden * scale.astype(d_hidden.dtype), d_kernel * scale.astype(d_kernel.dtype), None, None)

    summed.defvjp(forward, backward)
    return summed(hidden, kernel, targets, weights)


def _tensorflow(hidden, kernel, targets, weights, chunk_size):
    import tensorflow as tf

    @tf.custom_gradient
    def summed(hidden, kernel):
        if chunk_size is None:
            loss, correct, d_hidden, d_kernel = _chunk_with_gradients(hidden, kernel, targets, weights)
        else:
            dim = hidden.shape[1]
            h = tf.reshape(hidden, (-1, chunk_size, dim))
            t, w = tf.reshape(targets, (-1, chunk_size)), tf.reshape(weights, (-1, chunk_size))
            num_chunks = h.shape[0]

            def body(i, loss, correct, d_kernel, d_hidden):
                more, right, d_h, d_k = _chunk_with_gradients(h[i], kernel, t[i], w[i])
                d_kernel += tf.cast(d_k, tf.float32)
                return i + 1, loss + more, correct + right, d_kernel, d_hidden.write(i, d_h)

            _, loss, correct, d_kernel, d_hidden = tf.while_loop(
                lambda i, *_: i < num_chunks,
                body,
                (
                    0,
                    tf.zeros(()),
                    tf.zeros(()),
                    tf.zeros(kernel.shape),
                    tf.TensorArray(hidden.dtype, size=num_chunks, element_shape=(chunk_size, dim)),
                ),
                maximum_iterations=num_chunks,
            )
            d_hidden = tf.reshape(d_hidden.stack(), hidden.shape)
            d_kernel = tf.cast(d_kernel, kernel.dtype)

        def backward(d_loss, d_correct):
            return d_hidden * tf.cast(d_loss, d_hidden.dtype), d_kernel * tf.cast(d_loss, d_kernel.dtype)

        return (loss, correct), backward

    return summed(tf.convert_to_tensor(hidden), tf.convert_to_tensor(kernel))


def _torch(hidden, kernel, targets, weights, chunk_size):
    from kerasllm.losses_torch import LinearCrossEntropy

    return LinearCrossEntropy.apply(hidden, kernel, targets, weights, chunk_size)


_BACKENDS = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
