"""What the Generate tab computes: distributions of the next token, streams of tokens with what else they could be."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from playground.limits import number

ALTERNATIVES = 8
SHOWN = 12
MOST_NEW_TOKENS = 200


def sampler_of(temperature, top_k, top_p, min_p, seed=0):
    """The sampler of the page's controls, whatever they hold.

    Raises:
        ValueError: a setting is out of range.
    """
    from kerasllm import Sampler

    return Sampler(
        temperature=number("temperature", temperature, 0, 100),
        top_k=number("top-k", top_k, 0, 1_000_000, whole=True),
        top_p=number("top-p", top_p, 1e-6, 1),
        min_p=number("min-p", min_p, 0, 1),
        seed=number("seed", seed, 0, 2**31 - 1, whole=True),
    )


def options_of(sampler) -> dict:
    """The same, as options of `generate` in a script."""
    if sampler.temperature == 0:
        return {}
    options = {"sampler": "temperature", "temperature": sampler.temperature, "seed": sampler.seed}
    plain = type(sampler)()
    return options | {
        n: getattr(sampler, n) for n in ("top_k", "top_p", "min_p") if getattr(sampler, n) != getattr(plain, n)
    }


def next_logits(model, prompt: str) -> np.ndarray:
    """(vocabulary,): logits of the token after a prompt, or of the first one of the answer to a source."""
    if model.config.num_encoder_layers:
        return model.trace(prompt, []).logits[0, -1].astype("float32")
    return model.trace(prompt).logits[0, -1].astype("float32")


def distribution(logits: np.ndarray, sampler) -> tuple[np.ndarray, np.ndarray]:
    """(shares, kept): the share of each token after the temperature, of those that the filters keep, and which these
    are. What is taken out has the share it would have had."""
    from keras import ops

    from kerasllm.generation.sampling import NEVER, keep, settings_of

    if sampler.temperature == 0:
        kept = np.arange(len(logits)) == logits.argmax()
        return np.where(kept, 1.0, _softmax(logits)), kept
    settings = {name: ops.convert_to_tensor(value) for name, value in settings_of([sampler], 1).items()}
    filtered = ops.convert_to_numpy(keep(ops.convert_to_tensor(logits[None]), settings))[0]
    kept = filtered > NEVER / 2
    shares = _softmax(logits / sampler.temperature)
    return np.where(kept, shares / shares[kept].sum(), shares), kept


def bars_of(tokenizer, logits: np.ndarray, sampler, shown: int = SHOWN) -> list[tuple[str, float, bool]]:
    """The likeliest tokens as rows of a bar chart: (token, share, whether it can be chosen)."""
    shares, kept = distribution(logits[: tokenizer.vocabulary_size], sampler)
    order = np.lexsort((-logits[: len(shares)], ~kept))[:shown]
    return [(tokenizer.id_to_token(int(i)), float(shares[i]), bool(kept[i])) for i in order]


def stream(model, prompt: str, sampler, max_new_tokens: int, before: Sequence[dict] = ()) -> Iterator[list[dict]]:
    """Writes on, and yields all pieces so far each time there is a new one.

    A piece is a dict of "text", "probability" and "alternatives", (token, id, probability) rows.

    Args:
        before: pieces that stand between the prompt and what is new.
    """
    tokenizer, pieces = model.tokenizer, list(before)
    text = prompt + "".join(piece["text"] for piece in before)
    has_encoder = model.config.num_encoder_layers > 0
    if has_encoder and before:
        raise ValueError("A model with an encoder begins its answer anew. Write another source.")
    options = {} if has_encoder else {"truncation": True}
    for completion in model.generate(
        text, max_new_tokens, sampler=sampler, stream=True, details=True, log_probs=ALTERNATIVES, **options
    ):
        for token_id, log_p, others in zip(completion.token_ids, completion.log_probs, completion.alternatives):
            pieces.append(
                {
                    "text": completion.text or "",
                    "id": token_id,
                    "probability": math.exp(min(0.0, log_p)),
                    "alternatives": _rows(tokenizer, others),
                }
            )
        if not completion.token_ids and completion.text and pieces:
            pieces[-1]["text"] += completion.text
        yield pieces


def branched(tokenizer, pieces: Sequence[dict], place: int, token_id: int) -> list[dict]:
    """The pieces up to a place, and another token there.

    Raises:
        ValueError: there is no such place, or the token is none of its alternatives.
    """
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(pieces):
        raise ValueError(f"There is no token at place {place!r} to branch at. Write something first.")
    found = [row for row in pieces[place]["alternatives"] if row[1] == token_id]
    if not found:
        raise ValueError(f"The token {token_id!r} is none of the alternatives at place {place}.")
    text = tokenizer.decode([token_id])
    return [*pieces[:place], {**pieces[place], "text": text, "id": token_id, "probability": found[0][2]}]


def _rows(tokenizer, others: dict[int, float]) -> list[tuple[str, int, float]]:
    rows = [
        (tokenizer.id_to_token(i), i, math.exp(min(0.0, p))) for i, p in others.items() if i < tokenizer.vocabulary_size
    ]
    return sorted(rows, key=lambda row: -row[2])


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype("float64") - logits.max())
    return weights / weights.sum()
