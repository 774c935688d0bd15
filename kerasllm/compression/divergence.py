"""How far a student's distribution over the vocabulary is from its teacher's, without ever holding all of either's
logits: as `kerasllm.losses`, a chunk of tokens at a time, with the gradients computed in the forward pass."""

import math

from keras import ops

from kerasllm.losses import chunk_tokens

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")


def linear_distillation(
    hidden,
    kernel,
    teacher_hidden,
    teacher_kernel,
    targets,
    weights=None,
    *,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    hard: float = 0.0,
    chunk_size: int | None = None,
):
    """Summed distance of `softmax(hidden @ kernel / T)` from the teacher's, and the cross-entropy of the targets.

    With p the teacher's distribution, q the student's and m = beta · p + (1 − beta) · q, the divergence is KL(p‖q)
    ("forward_kl": q covers all that p does), KL(q‖p) ("reverse_kl": q keeps to what p finds likely) or
    beta · KL(p‖m) + (1 − beta) · KL(q‖m) ("jensen_shannon", which tends to the first two at its ends).

    Args:
        hidden: (tokens, dim), what the student's head reads.
        kernel: (dim, vocabulary).
        teacher_hidden: (tokens, teacher_dim). Not differentiated, as is the next.
        teacher_kernel: (teacher_dim, vocabulary).
        targets: (tokens,), integer.
        weights: (tokens,), float; a token counts this much. All 1 when left out. Not differentiated.
        divergence: see above.
        temperature: T, what logits are divided by; the divergence is multiplied by T², which keeps its gradients' size.
        beta: of "jensen_shannon", in (0, 1).
        hard: share of the cross-entropy of the targets in the loss, at temperature 1; the divergence has the rest.
        chunk_size: tokens whose logits are alive at once; chosen by size when left out.

    Returns:
        (3,) float32, summed over tokens by their weights: the loss, which is differentiable (once) in `hidden` and
        `kernel`; and, not differentiated, −log q(target) at temperature 1, and whether the target has the student's
        largest logit.

    References: Hinton et al. (2015), "Distilling the Knowledge in a Neural Network"; Gu et al. (2023), "MiniLLM", for
    the reverse; Agarwal et al. (2023), "On-Policy Distillation of Language Models", for the generalised Jensen-Shannon
    divergence.
    """
    hidden, kernel, teacher_hidden, teacher_kernel = (
        as_tensor(x) for x in (hidden, kernel, teacher_hidden, teacher_kernel)
    )
    tokens = hidden.shape[0]
    weights = ops.ones_like(targets, "float32") if weights is None else ops.cast(weights, "float32")
    targets = ops.cast(targets, "int32")
    arrays = [hidden, teacher_hidden, targets, weights]
    size = chunk_size or (tokens and chunk_tokens(tokens, 2 * kernel.shape[1]))
    if tokens is not None and size < tokens and tokens % size:
        padding = size - tokens % size
        arrays = [ops.pad(x, [(0, padding), *[(0, 0)] * (len(x.shape) - 1)]) for x in arrays]
    chunked = tokens is not None and size < tokens
    settings = (divergence, float(temperature), float(beta), float(hard))

    @ops.custom_gradient
    def summed(hidden, kernel, teacher_hidden, teacher_kernel, targets, weights):
        def chunk(h, t, y, w):
            return _chunk(h, kernel, t, teacher_kernel, y, w, settings)

        if chunked:
            sums, d_hidden, d_kernel = _in_turn(chunk, (hidden, teacher_hidden, targets, weights), size, kernel)
        else:
            sums, d_hidden, d_kernel = chunk(hidden, teacher_hidden, targets, weights)

        def gradient(*arguments, upstream=None):
            scale = (arguments[0] if upstream is None else upstream)[0]
            d_both = (d * ops.cast(scale, d.dtype) for d in (d_hidden, d_kernel))
            return (*d_both, None, None, None, None)

        return sums, gradient

    hidden, teacher_hidden, targets, weights = arrays
    teacher_hidden, teacher_kernel = ops.stop_gradient(teacher_hidden), ops.stop_gradient(teacher_kernel)
    return summed(hidden, kernel, teacher_hidden, teacher_kernel, targets, weights)


def _in_turn(chunk, arrays, size: int, kernel):
    """What `chunk` makes of all tokens, so many after so many."""

    def step(i, carry):
        here = [_part(x, i * size, size) for x in arrays]
        more, d_here, d_more = chunk(*here)
        sums, d_hidden, d_kernel = carry
        d_hidden = ops.slice_update(d_hidden, (i * size, 0), d_here)
        return sums + more, d_hidden, d_kernel + ops.cast(d_more, "float32")

    hidden = arrays[0]
    start = (ops.zeros((3,), "float32"), ops.zeros_like(hidden), ops.zeros(kernel.shape, "float32"))
    sums, d_hidden, d_kernel = ops.fori_loop(0, hidden.shape[0] // size, step, start)
    return sums, d_hidden, ops.cast(d_kernel, kernel.dtype)


def _part(x, begin, size: int):
    return ops.slice(x, (begin, *[0] * (len(x.shape) - 1)), (size, *x.shape[1:]))


def _chunk(hidden, kernel, teacher_hidden, teacher_kernel, targets, weights, settings):
    """The sums of one chunk, and what the first of them changes by with the hidden states and with the kernel."""
    divergence, temperature, beta, hard = settings
    logits = ops.cast(ops.matmul(hidden, kernel), "float32")
    teacher = ops.cast(ops.matmul(teacher_hidden, teacher_kernel), "float32")
    log_q, log_p = (ops.log_softmax(x / temperature, axis=-1) for x in (logits, teacher))
    apart, d_scaled = _divergence(divergence, log_p, log_q, beta)

    is_target = ops.expand_dims(targets, 1) == ops.arange(kernel.shape[1], dtype="int32")
    log_hard = log_q if temperature == 1 else ops.log_softmax(logits, axis=-1)
    nll = -ops.sum(ops.where(is_target, log_hard, 0.0), axis=-1)
    target = ops.sum(ops.where(is_target, logits, 0.0), axis=-1)
    correct = ops.cast(target >= ops.max(logits, axis=-1), "float32")

    soft = (1 - hard) * temperature**2
    d_logits = soft / temperature * d_scaled
    if hard:
        d_logits = d_logits + hard * (ops.exp(log_hard) - ops.cast(is_target, "float32"))
    d_logits = ops.cast(d_logits * weights[:, None], hidden.dtype)
    sums = [ops.sum(weights * x) for x in (soft * apart + hard * nll, nll, correct)]
    d_hidden = ops.matmul(d_logits, ops.transpose(kernel))
    return ops.stack(sums), d_hidden, ops.matmul(ops.transpose(hidden), d_logits)


def _divergence(kind: str, log_p, log_q, beta: float):
    """(tokens,), and what it changes by with the logits that q is the softmax of."""
    p, q = ops.exp(log_p), ops.exp(log_q)
    if kind == "forward_kl":
        return ops.sum(p * (log_p - log_q), axis=-1), q - p
    if kind == "reverse_kl":
        ratio = log_q - log_p
        value = ops.sum(q * ratio, axis=-1, keepdims=True)
        return value[:, 0], q * (ratio - value)
    log_m = ops.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    ratio = log_q - log_m
    of_q = ops.sum(q * ratio, axis=-1, keepdims=True)
    value = beta * ops.sum(p * (log_p - log_m), axis=-1) + (1 - beta) * of_q[:, 0]
    return value, (1 - beta) * q * (ratio - of_q)


def as_tensor(x):
    """The value of an array or a variable. TensorFlow's own gradients are of functions of tensors, not of variables."""
    x = ops.convert_to_tensor(x)
    return ops.reshape(x, ops.shape(x))
