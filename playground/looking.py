"""What the Look inside tab computes: attention for the page, a model without some heads."""

import base64
import contextlib
from dataclasses import dataclass

import numpy as np

from playground.limits import MAX_SHOWN_TOKENS

KINDS = {"decoder": "Self", "encoder": "Self, in the encoder", "cross": "Cross: answer to source"}
MOST_CONTINUED = 24


@dataclass(frozen=True)
class Seen:
    """What a model did with a text.

    Attributes:
        trace: of the library.
        start: how many of the (decoder's) tokens were given; the rest it wrote itself.
        logits: (vocabulary,), of the token that comes next, or stands at the first mask.
        loss: of the text, nats a token; `None` if it is too short to have one.
    """

    trace: object
    start: int
    logits: np.ndarray
    loss: float | None


def see(model, prompt: str, heads=(), kind: str = "decoder", written: str | None = None) -> Seen:
    """Reads a prompt, and what the model writes after it, without some heads.

    Args:
        heads: (layer, head) pairs that are switched off, of the attention of this kind.
        written: what comes after the prompt (a T5's answer); the model's own, with all heads, when left out.
    """
    written = continuation(model, prompt) if written is None else written
    with without(model, heads, kind):
        if model.config.num_encoder_layers:
            trace = model.trace(prompt, written)
            logits, start = trace.logits[0, 0], 1
        elif model.config.causal:
            trace = model.trace(prompt + written)
            start = min(len(model.tokenizer.encode_texts([prompt])[0]), len(trace.tokens))
            logits = trace.logits[0, start - 1]
        else:
            trace = model.trace(prompt)
            mask = model.tokenizer.role_tokens.get("mask_token")
            place = trace.tokens.index(mask) if mask in trace.tokens else len(trace.tokens) - 1
            logits, start = trace.logits[0, place], len(trace.tokens)
        loss = _loss(model, prompt, written)
    return Seen(trace, start, np.asarray(logits, "float32"), loss)


def continuation(model, prompt: str) -> str:
    """What a model writes greedily after a prompt; nothing for one that fills masks."""
    if model.config.num_encoder_layers:
        return model.generate(prompt)
    if not model.config.causal:
        return ""
    room = model.config.max_sequence_length - len(model.tokenizer.encode_texts([prompt])[0])
    if room < 1:
        return ""
    return model.generate(prompt, min(MOST_CONTINUED, room), strip_prompt=True)


@contextlib.contextmanager
def without(model, heads, kind: str):
    """The model with some heads switched off; `kind` as in the page, "decoder" being all there is in one stack."""
    from kerasllm.inspection import ablate

    if not heads:
        yield
        return
    with ablate(model, heads=[tuple(head) for head in heads], stack=kind):
        yield


def kinds_of(model) -> list[str]:
    """The kinds of attention that a model has."""
    return list(KINDS) if model.config.num_encoder_layers else ["decoder"]


def attention_value(seen: Seen, kind: str, first: int = 0, off=()) -> dict:
    """The attention of all heads as the page draws it: at most `MAX_SHOWN_TOKENS` queries and keys from `first` on,
    weights as bytes."""
    maps = seen.trace.attention_maps(kind)
    queries, keys = maps.query_tokens, maps.key_tokens
    same = kind != "cross"
    q_first = max(0, min(first, len(queries) - MAX_SHOWN_TOKENS))
    k_first = max(0, min(first, len(keys) - MAX_SHOWN_TOKENS))
    q, k = slice(q_first, q_first + MAX_SHOWN_TOKENS), slice(k_first, k_first + MAX_SHOWN_TOKENS)
    weights = np.asarray(maps.weights)[:, :, q, k]
    packed = np.clip(np.rint(weights * 255), 0, 255).astype("uint8")
    return {
        "queries": queries[q],
        "keys": keys[k],
        "same": same,
        "layers": packed.shape[0],
        "heads": packed.shape[1],
        "start": max(0, min(seen.start - q_first, len(queries[q]))) if kind != "encoder" else len(queries[q]),
        "weights": base64.b64encode(packed.tobytes()).decode(),
        "off": [list(head) for head in off],
    }


def _loss(model, prompt: str, written: str) -> float | None:
    from kerasllm.inspection import text_loss

    try:
        if model.config.num_encoder_layers:
            return text_loss(model, prompt, written) if written else None
        return text_loss(model, prompt)
    except ValueError:
        return None  # One token has no next one.
