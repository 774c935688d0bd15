"""A saved model measured as its task was in training: what `kerasllm evaluate` does."""

import os
from collections.abc import Sequence

from kerasllm.data.dataset import TokenDataset
from kerasllm.data.pairs import read_pairs
from kerasllm.data.shards import tokenize
from kerasllm.models.inputs import tokenizer_of
from kerasllm.objectives.named import build
from kerasllm.training.tasks import TASKS, fit_arguments, retrieval_at_1

# The objective of each model on running text; the others are measured on pairs of texts.
OBJECTIVES = {task.model: task.objective for task in reversed(TASKS.values()) if task.objective}
PAIRED = ("Seq2SeqLM", "TextClassifier", "TextEmbedder")


def evaluate_model(
    model,
    source: str | os.PathLike,
    column: str | None = None,
    columns: Sequence[str] | None = None,
    batch_size: int = 16,
) -> dict[str, str]:
    """Figures of a model on a text, or on pairs of texts, in words.

    Args:
        model: a `CausalLM`, `MaskedLM`, `PairedMaskedLM` or `ReplacedTokenDetector`, which are measured on the text,
            as in training, with what is hidden or replaced always the same; or a `Seq2SeqLM`, `TextClassifier` or
            `TextEmbedder`, on pairs.
        source: what `read_texts` takes, or `read_pairs`.
        column: of the text, in a table.
        columns: of the pairs.
        batch_size: rows in a batch.

    Raises:
        ValueError: the model has another task, or no tokenizer; a label that it does not know; see also `read_texts`
            and `read_pairs`.

    Example:

    ```python
    evaluate_model(kerasllm.TextClassifier.from_preset("saved_models/mine"), "labelled.csv")["accuracy"]
    ```
    """
    name = type(model).__name__
    tokenizer_of(model)
    if name not in (*PAIRED, *OBJECTIVES):
        raise ValueError(f"A {name} is not measured here: use its own `evaluate`.")
    model.compile()
    if hasattr(model, "truncation"):
        model.truncation = True  # as in training
    if name in PAIRED:
        return _on_pairs(model, name, read_pairs(source, columns), batch_size)
    objective, length = build(OBJECTIVES[name], model.tokenizer), model.config.max_sequence_length
    if hasattr(objective, "row_length"):
        length = objective.row_length(length)
    shards = tokenize(source, model.tokenizer, column)
    pad = model.tokenizer.pad_token_id or 0
    dataset = TokenDataset(shards, length, batch_size, objective=objective, shuffle=False, pad_token_id=pad)
    return {"tokens": f"{len(shards):,}", **_figures(model, dataset)}


def _on_pairs(model, name: str, pairs: list[tuple[str, str]], batch_size: int) -> dict[str, str]:
    if name == "TextClassifier":
        pairs = [(text, _label(label, model.labels)) for text, label in pairs]
    task = next(task for task in TASKS.values() if task.model == name and not task.objective)
    data = model.as_data(*fit_arguments(task, pairs), batch_size=batch_size)
    rows = {"pairs": f"{len(pairs):,}", **_figures(model, data)}
    return rows | ({"retrieval_at_1": f"{retrieval_at_1(model, pairs):.4f}"} if name == "TextEmbedder" else {})


def _label(label: str, names: list[str] | None) -> str | int:
    """A label as the model knows it: by name, or by number if it has no names."""
    label = label.strip()
    return int(label) if names is None and label.isdecimal() else label


def _figures(model, data) -> dict[str, str]:
    results = model.evaluate(data, return_dict=True, verbose=0)
    return {name: f"{value:.4f}" for name, value in results.items()}
