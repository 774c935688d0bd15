"""Which tokens an answer is due to."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from kerasllm.layers.inner import inner
from kerasllm.layers.quantized import float_embeddings
from kerasllm.layers.stack import Visibility
from kerasllm.models.inputs import tokenizer_of
from kerasllm.models.labels import label_ids
from kerasllm.models.language_model import no_gradient

TOKENS_AT_ONCE = 4096  # rows of a batch times their length


class Attribution(NamedTuple):
    """How much each token adds to the log-probability of an answer.

    Attributes:
        tokens: strings, of what was read.
        scores: (length,), in nats; their sum is `log_probability - baseline_log_probability`, but for the error of the
            integral.
        target: the answer.
        log_probability: of the answer, given the text.
        baseline_log_probability: given the baseline.
    """

    tokens: list[str]
    scores: np.ndarray
    target: str
    log_probability: float
    baseline_log_probability: float


def integrated_gradients(model, text: str, target: str | int | None = None, steps: int = 32) -> Attribution:
    """Attributes an answer to the tokens of a text: the gradient, integrated from a baseline to the text.

    The baseline has in each place the mean of all token vectors: a text of the same length that says nothing.

    Args:
        model: a `CausalLM` (the answer is the token that follows the text), a `MaskedLM` (the token in place of the
            first mask), a `TextClassifier` (a label) or a `Seq2SeqLM` (all of the target, and the text is its source).
        text: what is read.
        target: the answer: a token or its id, a label, or a target text. What the model would answer, when left out.
        steps: points of the integral (Gauss and Legendre's). More of them make the sum of the scores more exact.

    Returns:
        an `Attribution`.

    Raises:
        ValueError: another model, a target that is no answer of it, a text that is empty or too long, no mask in the
            text of a `MaskedLM`, or `steps` out of range.

    Example:
    ```python
    found = integrated_gradients(model, "The cat sat on the")
    dict(zip(found.tokens, found.scores))
    ```

    Reference: Sundararajan et al. (2017), "Axiomatic Attribution for Deep Networks".
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 1024:
        raise ValueError(f"`steps` must be a whole number from 1 to 1024. Received: steps={steps!r}")
    tokenizer_of(model)
    if not isinstance(text, str) or not text:
        raise ValueError(f"`text` must be a text that is not empty. Received: text={text!r}")
    if getattr(model.transformer, "prompted", None) is not None:
        raise ValueError("The model reads prompts or prefixes besides the text. Delete these adapters first.")
    read = _source_reader if model.config.num_encoder_layers else _text_reader
    ids, answer, log_p = read(model, text, target)

    table = ops.convert_to_numpy(float_embeddings(model.transformer.embedding.tokens)).astype("float32")
    baseline = np.broadcast_to(table.mean(axis=0), (len(ids), table.shape[1]))
    difference = table[ids] - baseline
    places, weights = np.polynomial.legendre.leggauss(steps)
    # The two ends weigh nothing: only the log-probabilities there are wanted.
    places, weights = [-1, *places, 1], np.array([0, *weights / 2, 0])
    points = np.stack([baseline + (1 + place) / 2 * difference for place in places]).astype("float32")
    size = max(1, TOKENS_AT_ONCE // len(ids))
    differentiate = _differentiated(model, log_p)
    batches = [differentiate(points[start : start + size]) for start in range(0, len(points), size)]
    values, gradients = (np.concatenate(each) for each in zip(*batches))
    scores = np.einsum("s,sld,ld->l", weights, gradients, difference).astype("float32")
    tokens = [model.tokenizer.id_to_token(int(i)) for i in ids]
    return Attribution(tokens, scores, answer, float(values[-1]), float(values[0]))


def _text_reader(model, text, target):
    """(token ids, the answer in words, token vectors (rows, length, dim) → its log-probability (rows,))."""
    inputs = model.as_inputs(text if hasattr(model, "classify") else [text])
    ids = inputs.pop("token_ids")[0]
    place, classes = _place(model, ids)

    def log_probabilities(vectors):
        network, rows = model.transformer, vectors.shape[0]
        others = {key: np.repeat(value, rows, axis=0) for key, value in inputs.items()}
        vectors = ops.cast(vectors, network.compute_dtype)
        features = network.embedding.around(vectors, segment_ids=others.get("segment_ids"))
        token_ids = np.tile(ids, (rows, 1))
        hidden = network(token_ids, features=features, training=False, **others)
        if place is None:
            logits = model.logits(model.pool(hidden, {**others, "token_ids": token_ids}))
        else:
            logits = getattr(model, "token_logits", model.logits)(hidden[:, place])
        logits = ops.cast(logits[:, :classes], "float32")
        # Of a model with several labels each is there or not for itself.
        return ops.log_sigmoid(logits) if getattr(model, "multi_label", False) else ops.log_softmax(logits, axis=-1)

    if target is None:
        with no_gradient():
            vectors = ops.take(ops.convert_to_tensor(float_embeddings(model.transformer.embedding.tokens)), ids, axis=0)
            target = int(ops.argmax(log_probabilities(vectors[None])[0]))
    number = _number(model, target, place is None, classes)
    if place is None:
        answer = str(model.labels[number] if model.labels else number)
    else:
        answer = model.tokenizer.id_to_token(number)
    return ids, answer, lambda vectors: log_probabilities(vectors)[:, number]


def _place(model, ids):
    """Where the answer stands (`None`: it is about the whole text), and how many answers there are."""
    if hasattr(model, "classify"):
        return None, model.num_labels
    size = model.tokenizer.vocabulary_size
    if hasattr(model, "predict_masks"):
        masks = np.flatnonzero(ids == model.tokenizer.mask_token_id)
        if len(masks) == 0:
            raise ValueError("There is no mask in the text: write the tokenizer's mask token where the answer stands.")
        return int(masks[0]), size
    if model.config.causal and hasattr(model, "generate"):
        return len(ids) - 1, size
    raise ValueError(
        f"A {type(model).__name__} has no answer to explain. Use a CausalLM, a MaskedLM, a Seq2SeqLM or a "
        "TextClassifier."
    )


def _number(model, target, is_label: bool, classes: int) -> int:
    """A token or a label as its number."""
    if isinstance(target, str):
        if is_label:
            return int(label_ids([target], model.labels)[0])
        found = model.tokenizer.encode(target)
        if len(found) != 1:
            raise ValueError(f"`target` must be one token. Received: {target!r}, which is {len(found)} tokens")
        return found[0]
    if isinstance(target, bool) or not isinstance(target, int | np.integer) or not 0 <= target < classes:
        raise ValueError(f"`target` must be a name, or a number below {classes}. Received: target={target!r}")
    return int(target)


def _source_reader(model, text, target):
    target = model.generate(text) if target is None else target
    if not isinstance(target, str):
        raise ValueError(f"The `target` of a Seq2SeqLM is a text. Received: target={target!r}")
    x, y, _ = model._text_arrays([text], [target])
    network = model.transformer

    def log_p(vectors):
        vectors = ops.cast(vectors, network.compute_dtype)
        source = inner(network.encoder, network.embedding.around(vectors), Visibility(), training=False)
        written = np.repeat(x["decoder_token_ids"], vectors.shape[0], axis=0)
        logits = ops.cast(model.logits(network.decode(written, source, training=False)), "float32")
        logits = logits[..., : model.tokenizer.vocabulary_size]
        targets = np.repeat(y, vectors.shape[0], axis=0)[..., None]
        return ops.sum(ops.take_along_axis(ops.log_softmax(logits, axis=-1), targets, axis=-1), axis=(1, 2))

    return x["encoder_token_ids"][0], target, log_p


def _differentiated(model, function):
    """Array x → (`function(x)` (rows,), the gradient of its sum with respect to x)."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        variables = model.variables

        @jax.jit  # Operation by operation, there would be hundreds of compilations.
        def differentiated(values, x):
            with keras.StatelessScope(state_mapping=list(zip(variables, values))):
                rows, pull_back = jax.vjp(function, x)
                return rows, *pull_back(ops.ones_like(rows))

        return lambda x: tuple(map(np.asarray, differentiated([v.value for v in variables], x)))
    if backend == "tensorflow":
        import tensorflow as tf

        def differentiated(x):
            x = tf.convert_to_tensor(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                rows = function(x)
            return rows.numpy(), tape.gradient(rows, x).numpy()

        return differentiated
    import torch

    def differentiated(x):
        x = ops.convert_to_tensor(x).requires_grad_()
        rows = function(x)
        return tuple(map(ops.convert_to_numpy, (rows, torch.autograd.grad(rows.sum(), x)[0])))

    return differentiated
