"""Tables of figures: a model in several precisions, several models on one text. Runs in a job."""

import math

import numpy as np

from kerasllm.compression.command import saved_class
from kerasllm.compression.report import num_bytes, tokens_per_second
from kerasllm.data.pairs import read_pairs

DATES, MOST_PAIRS = "builtin:dates:validation", 16
MOST_WINDOWS = 8


def quantization_table(directory: str, modes: list[str], text: str) -> list[dict]:
    """One row a precision: "mode", "megabytes", "tokens_per_second", "loss" and "flips", the share of places where
    another token than in float is the likeliest; `None` where it means nothing."""
    cls = saved_class(directory)
    rows, reference = [], None
    for mode in modes:
        model = cls.from_preset(directory)
        if mode != "fp32":
            model.quantize(mode)
        logits, targets = logits_and_targets(model, text)
        best = logits.argmax(-1)
        reference = best if reference is None else reference
        writes = hasattr(model, "generate")
        rows.append(
            {
                "mode": mode,
                "megabytes": num_bytes(model) / 1e6,
                "tokens_per_second": tokens_per_second(model) if writes else None,
                "loss": loss_of(logits, targets),
                "flips": float((best != reference).mean()),
            }
        )
    return rows


def evaluation_table(directories: dict[str, str], text: str) -> list[dict]:
    """One row a model, by title: "loss" (nats a token), "perplexity", "bits_per_byte", "accuracy"."""
    rows = []
    for title, directory in directories.items():
        model = saved_class(directory).from_preset(directory)
        logits, targets = logits_and_targets(model, text)
        loss = loss_of(logits, targets)
        counted = targets >= 0
        rows.append(
            {
                "title": title,
                "loss": loss,
                "perplexity": math.exp(min(loss, 50)),
                "bits_per_byte": _bits_per_byte(model, loss, targets),
                "accuracy": float((logits.argmax(-1) == targets)[counted].mean()),
            }
        )
    return rows


def logits_and_targets(model, text: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, vocabulary_size) and (tokens,) with -1 where nothing is predicted.

    A causal model predicts each next token of the text, a masked one every seventh, hidden; one with an encoder the
    built-in dates that are kept for validation.
    """
    if model.config.num_encoder_layers:
        pairs = [_answered(model, *pair) for pair in read_pairs(DATES)[:MOST_PAIRS]]
    else:
        ids = np.array(model.tokenizer.encode_texts([text])[0], "int32")
        length = model.config.max_sequence_length
        windows = [ids[start : start + length] for start in range(0, min(len(ids), MOST_WINDOWS * length), length)]
        pairs = [_read(model, window) for window in windows if len(window) > 1]
    return tuple(np.concatenate(part) for part in zip(*pairs))


def _answered(model, source: str, target: str):
    ids = np.array(model.tokenizer.encode(target), "int64")
    return model.trace(source, ids.tolist()).logits[0][: len(ids)], ids


def _read(model, ids: np.ndarray):
    if model.config.causal:
        return model.predict(ids[None, :-1], verbose=0)[0], ids[1:].astype("int64")
    hidden, targets = ids.copy(), np.full(len(ids), -1)
    hidden[::7], targets[::7] = model.tokenizer.token_to_id(model.tokenizer.role_tokens["mask_token"]), ids[::7]
    return model.predict(hidden[None], verbose=0)[0], targets


def _bits_per_byte(model, loss: float, targets: np.ndarray) -> float | None:
    if model.config.num_encoder_layers or not model.config.causal:
        return None
    return loss * len(targets) / np.take(model.tokenizer.byte_lengths, targets).sum() / math.log(2)


def loss_of(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean cross-entropy, nats, where there is a target."""
    counted = targets >= 0
    logits = logits[counted].astype("float64")
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[np.arange(len(logits)), targets[counted]]
    return float(np.mean(np.log(np.exp(logits).sum(-1)) - chosen))
