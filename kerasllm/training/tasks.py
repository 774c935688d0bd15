"""What a recipe's task means: which model, which special tokens, which data, and which figure beside the loss.

Imports no backend, so that recipes are checked at once.
"""

import dataclasses
from collections.abc import Sequence

from kerasllm.tokenizers import DEFAULT_SPECIAL_TOKENS

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
T5_TOKENS = ("<pad>", "</s>", "<unk>")


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of `TASKS`.

    Attributes:
        model: name of the class in `kerasllm`.
        objective: name in `kerasllm.objectives`, for tasks on running text; `None` for tasks on pairs of texts.
        special_tokens: what a tokenizer trained for the task has beside its kind's own.
        figure: name of the figure beside the loss, and `model, pairs → number` which computes it.
        writes_text: whether the model can continue a prompt, so that samples make sense.
    """

    model: str
    objective: str | None = None
    special_tokens: tuple[str, ...] = ()
    figure: tuple | None = None
    writes_text: bool = False

    def tokens(self, kind: str) -> list[str]:
        """The special tokens of a tokenizer of this kind."""
        usual = DEFAULT_SPECIAL_TOKENS[kind]
        return [*usual, *(token for token in self.special_tokens if token not in usual)]


def exact_match(model, pairs: Sequence[tuple[str, str]]) -> float:
    """Share of the sources whose target the model writes without a mistake."""
    sources, targets = zip(*pairs)
    answers = model.generate(list(sources), max_new_tokens=_longest(model, targets))
    return sum(answer == target for answer, target in zip(answers, targets)) / len(pairs)


def retrieval_at_1(model, pairs: Sequence[tuple[str, str]]) -> float:
    """Share of the first texts whose nearest second text, among all, is their own."""
    first, second = (list(side) for side in zip(*pairs))
    similarity = model.similarity(first, second)
    return float((similarity.argmax(axis=1) == range(len(pairs))).mean())


TASKS = {
    "causal-lm": Task("CausalLM", "causal", writes_text=True),
    "prefix-lm": Task("CausalLM", "prefix", writes_text=True),
    "fill-in-the-middle": Task(
        "CausalLM", "fim", ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"), writes_text=True
    ),
    "masked-lm": Task("MaskedLM", "masked", BERT_TOKENS),
    "span-corruption": Task("Seq2SeqLM", "span", (*T5_TOKENS, *(f"<extra_id_{i}>" for i in range(100)))),
    "seq2seq": Task("Seq2SeqLM", None, T5_TOKENS, ("exact_match", exact_match)),
    "classify": Task("TextClassifier", None, BERT_TOKENS),
    "embed": Task("TextEmbedder", None, BERT_TOKENS, ("retrieval_at_1", retrieval_at_1)),
}


FIGURES = tuple(f"val_{task.figure[0]}" for task in TASKS.values() if task.figure)


def split_pairs(data) -> tuple[list, list | None]:
    """(training pairs, validation pairs) of a recipe's `Data`; built-in pairs have a held-out part of their own."""
    from kerasllm.data.pairs import read_pairs

    columns = (data.source_column, data.target_column)
    pairs = read_pairs(data.source, columns)
    if not data.validation_fraction:
        return pairs, None
    if str(data.source).startswith("builtin:"):
        return pairs, read_pairs(f"{data.source}:validation")
    stop = int(len(pairs) * (1 - data.validation_fraction))
    if not 0 < stop < len(pairs):
        raise ValueError(
            f"There are too few pairs to keep some for validation. Received: {len(pairs)} pairs, "
            f"validation_fraction={data.validation_fraction}"
        )
    return pairs[:stop], pairs[stop:]


def model_options(task: Task, pairs: Sequence[tuple[str, str]] | None) -> dict:
    """What the task's model is made with beside its config and tokenizer."""
    if task.model == "TextClassifier":
        return {"labels": sorted({label for _, label in pairs}), "truncation": True}
    return {"truncation": True} if task.model == "TextEmbedder" else {}


def fit_arguments(task: Task, pairs: Sequence[tuple[str, str]]) -> tuple:
    """Pairs as the model's `fit` takes them: (x,) or (x, y)."""
    if task.model == "TextEmbedder":
        return (list(pairs),)
    first, second = zip(*pairs)
    return list(first), list(second)


def _longest(model, targets) -> int:
    """Tokens of the longest target, and one for its end."""
    return min(model.config.max_sequence_length - 1, max(map(len, model.tokenizer.encode(list(targets)))) + 1)
