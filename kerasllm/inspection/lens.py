"""The logit lens: what a model would answer if it stopped after each layer."""

from typing import NamedTuple

import numpy as np
from keras import ops

from kerasllm.models.language_model import no_gradient
from kerasllm.models.trace import Seq2SeqTrace, Trace


class Lens(NamedTuple):
    """What each layer would answer at each place; row 0 are the embeddings, the last row is the model's own answer.

    Attributes:
        tokens: strings, of what was read (by the decoder).
        top_ids, top_probabilities, top_tokens: (layers + 1, length, top), the likeliest tokens, the likeliest first.
        answer_ids: (length,), the model's own likeliest token at each place.
        answer_probabilities: (layers + 1, length), how probable it is after each layer.
        answer_ranks: (layers + 1, length), its place among all tokens; 1 is the likeliest.
    """

    tokens: list[str]
    top_ids: np.ndarray
    top_probabilities: np.ndarray
    top_tokens: np.ndarray
    answer_ids: np.ndarray
    answer_probabilities: np.ndarray
    answer_ranks: np.ndarray


def logit_lens(model, trace_or_text, top: int = 5) -> Lens:
    """Reads each layer's hidden states with the final norm and the head, which were trained for the last one's.

    Args:
        model: that predicts tokens: a `CausalLM`, a `MaskedLM`, or a `Seq2SeqLM`, of which it is the decoder.
        trace_or_text: what `model.trace` returned, or takes.
        top: tokens to list.

    Returns:
        a `Lens`.

    Raises:
        ValueError: a model that does not predict tokens, `top` out of range, or a text that `trace` refuses.

    Example:
    ```python
    lens = logit_lens(model, "The cat sat on the")
    lens.top_tokens[:, -1, 0]  # the likeliest next token, layer by layer
    ```

    Reference: nostalgebraist (2020), "interpreting GPT: the logit lens".
    """
    size = model.config.vocabulary_size if model.tokenizer is None else model.tokenizer.vocabulary_size
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= size:
        raise ValueError(f"`top` must be a whole number from 1 to {size}, the tokens there are. Received: top={top!r}")
    trace = trace_or_text if isinstance(trace_or_text, Trace | Seq2SeqTrace) else model.trace(trace_or_text)
    found, answer = [], None
    with no_gradient():
        for state in reversed(trace.hidden_states):
            log_p = _log_probabilities(model, state, size)
            answer = ops.argmax(log_p, axis=-1)[:, None] if answer is None else answer
            chosen = ops.take_along_axis(log_p, answer, axis=-1)
            rank = 1 + ops.sum(ops.cast(log_p > chosen, "int32"), axis=-1)
            best, ids = ops.top_k(log_p, top)
            found.append([ops.convert_to_numpy(x) for x in (ids, ops.exp(best), ops.exp(chosen)[:, 0], rank)])
    ids, best, chosen, rank = (np.stack(each[::-1]) for each in zip(*found))
    names = np.array([str(i) if model.tokenizer is None else model.tokenizer.id_to_token(int(i)) for i in ids.flat])
    answer = ops.convert_to_numpy(answer)[:, 0]
    return Lens(trace.tokens, ids, best, names.reshape(ids.shape), answer, chosen, rank)


def _log_probabilities(model, state, size: int):
    """(1, length, dim) → (length, size), of the tokens there are."""
    network = model.transformer.decoder if model.config.num_encoder_layers else model.transformer
    hidden = ops.convert_to_tensor(state[0], dtype=network.compute_dtype)
    if model.config.norm_position == "pre":
        hidden = network.final_norm(hidden)
    logits = getattr(model, "token_logits", model.logits)(hidden)
    if logits.shape != (len(hidden), model.config.vocabulary_size):
        raise ValueError(
            f"A {type(model).__name__} predicts no tokens, so it has no logit lens. Use a CausalLM, a MaskedLM or a "
            "Seq2SeqLM."
        )
    return ops.log_softmax(ops.cast(logits[:, :size], "float32"), axis=-1)
