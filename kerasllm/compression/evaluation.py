"""Text on which a model and its smaller self are compared: inputs, and the tokens that they should have predicted."""

from typing import NamedTuple

import numpy as np
from keras import ops

from kerasllm.compression.calibration import calibration_rows
from kerasllm.data.pairs import read_pairs
from kerasllm.models.labels import label_ids
from kerasllm.models.language_model import no_gradient

ROWS = 8  # in a batch
HIDDEN = 7  # of so many tokens one is hidden from a masked language model
TOKENS_A_TEXT = 8  # that a text to classify counts as


class Batch(NamedTuple):
    """What the model reads, and which token each place should predict, where `counts` says so, (batch, length).

    Of a classifier, which label each text has, (batch,).
    """

    inputs: dict
    targets: np.ndarray
    counts: np.ndarray


def evaluation_batches(model, source, max_tokens: int = 8192) -> list[Batch]:
    """Batches of a text, the same each time.

    Args:
        model: a `CausalLM`, a `MaskedLM` (of whose tokens every seventh is hidden), a `Seq2SeqLM` or a
            `TextClassifier`.
        source: what `kerasllm.data.read_texts` takes, or arrays of token ids; for a `Seq2SeqLM` or a `TextClassifier`
            what `kerasllm.data.read_pairs` takes: sources and targets, texts and labels.
        max_tokens: tokens to look at, at the most; an eighth as many texts to classify.

    Raises:
        ValueError: the text is too short, or the task is another one.
    """
    names = {base.__name__ for base in type(model).__mro__}
    if "Seq2SeqLM" in names:
        return _pairs(model, source, max_tokens)
    if "TextClassifier" in names:
        return _labelled(model, source, max_tokens)
    if not names & {"CausalLM", "MaskedLM"}:
        raise ValueError(
            "A CausalLM, a MaskedLM, a Seq2SeqLM or a TextClassifier can be compared. Received: a "
            f"{type(model).__name__}. Evaluate it with its own `evaluate`, before and after."
        )
    length = min(model.config.max_sequence_length, 256)
    rows = calibration_rows(model, source, max(1, max_tokens // length), length)
    if "CausalLM" in names:
        inputs, targets = rows[:, :-1], rows[:, 1:]
        counts = np.ones(targets.shape, "bool")
    else:
        mask = model.tokenizer.mask_token_id if model.tokenizer else None
        if mask is None:
            raise ValueError("A MaskedLM is compared on hidden tokens, and its tokenizer has no mask token.")
        counts = np.zeros(rows.shape, "bool")
        counts[:, HIDDEN // 2 :: HIDDEN] = True
        inputs, targets = np.where(counts, mask, rows).astype("int32"), rows
    return [
        Batch({"token_ids": inputs[i : i + ROWS]}, targets[i : i + ROWS], counts[i : i + ROWS])
        for i in range(0, len(rows), ROWS)
    ]


def _pairs(model, source, max_tokens: int) -> list[Batch]:
    pairs, batches, seen = read_pairs(source), [], 0
    for begin in range(0, len(pairs), ROWS):
        x, y, weights = model._text_arrays(*zip(*pairs[begin : begin + ROWS]))
        batches.append(Batch(x, y, np.asarray(weights) > 0))
        seen += int(batches[-1].counts.sum())
        if seen >= max_tokens:
            break
    return batches


def _labelled(model, source, max_tokens: int) -> list[Batch]:
    if model.multi_label:
        raise ValueError(
            "A TextClassifier with several labels a text has no one distribution to compare. Evaluate it with its own "
            "`evaluate`, before and after. Received: multi_label=True"
        )
    texts, labels = zip(*read_pairs(source)[: max(1, max_tokens // TOKENS_A_TEXT)])
    labels = [label.strip() for label in labels]
    inputs, labels = model.as_inputs(list(texts)), np.asarray(label_ids(labels, model.labels))
    parts = [slice(begin, begin + ROWS) for begin in range(0, len(labels), ROWS)]
    return [
        Batch({name: x[part] for name, x in inputs.items()}, labels[part], np.ones(len(labels[part]), "bool"))
        for part in parts
    ]


def log_probabilities(model, batch: Batch) -> np.ndarray:
    """float32 (tokens that count, vocabulary)."""
    with no_gradient():
        logits = ops.convert_to_numpy(ops.cast(model(batch.inputs, training=False), "float32"))[batch.counts]
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def mean_loss(model, batches: list[Batch]) -> float:
    """Nats a token."""
    losses = [_losses(log_probabilities(model, batch), batch) for batch in batches]
    return float(np.concatenate(losses).mean())


def _losses(log_probs, batch: Batch) -> np.ndarray:
    return -np.take_along_axis(log_probs, batch.targets[batch.counts][:, None].astype("int64"), axis=-1)[:, 0]


class Difference(NamedTuple):
    """What a change of its weights did to a model, over the tokens of a text.

    Attributes:
        perplexity_before, perplexity_after: exp of the mean loss.
        accuracy_before, accuracy_after: share of tokens, or labels, that are the likeliest.
        kl: mean Kullback-Leibler divergence of the new distribution from the old one, nats a token.
        top1_changed: share of tokens for which another one is now the likeliest.
        tokens: compared.
    """

    perplexity_before: float
    perplexity_after: float
    accuracy_before: float
    accuracy_after: float
    kl: float
    top1_changed: float
    tokens: int


def difference(before, after, batches: list[Batch]) -> Difference:
    """Compares two models of the same vocabulary, batch by batch."""
    sums, tokens = np.zeros(6), 0
    for batch in batches:
        old, new = log_probabilities(before, batch), log_probabilities(after, batch)
        kl = (np.exp(old) * (old - new)).sum(axis=-1)
        targets, old_best, new_best = batch.targets[batch.counts], old.argmax(axis=-1), new.argmax(axis=-1)
        parts = _losses(old, batch), _losses(new, batch), old_best == targets, new_best == targets, kl
        sums += [part.sum(dtype="float64") for part in (*parts, old_best != new_best)]
        tokens += len(old)
    means = sums / tokens
    return Difference(*map(float, (*np.exp(means[:2]), *means[2:])), tokens)
