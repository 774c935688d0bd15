"""What a recipe's task means: which model, which special tokens, which data, and which figure beside the loss.

Imports no backend, so that recipes are checked at once.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from kerasllm.tokenizers import DEFAULT_SPECIAL_TOKENS

MOST_TURNS = 200  # that `exact_turns` answers
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
T5_TOKENS = ("<pad>", "</s>", "<unk>")


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of `TASKS`.

    Attributes:
        model: name of the class in `kerasllm`.
        objective: name in `kerasllm.objectives`, for tasks on running text; `None` for tasks on pairs of texts, or on
            conversations.
        special_tokens: what a tokenizer trained for the task has beside its kind's own.
        figure: name of the figure beside the loss, and `model, pairs → number` which computes it.
        conversations: whether the examples are conversations.
        writes_text: whether the model can continue a prompt, so that samples make sense.
    """

    model: str
    objective: str | None = None
    special_tokens: tuple[str, ...] = ()
    figure: tuple | None = None
    conversations: bool = False
    writes_text: bool = False

    def tokens(self, kind: str) -> list[str]:
        """The special tokens of a tokenizer of this kind."""
        usual = DEFAULT_SPECIAL_TOKENS[kind]
        return [*usual, *(token for token in self.special_tokens if token not in usual)]


def exact_match(model, pairs: Sequence[tuple[str, str]]) -> float:
    """Share of the sources whose target the model writes without a mistake."""
    sources, targets = zip(*pairs)
    answers = model.generate(list(sources), max_new_tokens=_longest(model, targets), sampler="greedy")
    return sum(answer == target for answer, target in zip(answers, targets)) / len(pairs)


def exact_turns(model, conversations: Sequence[list[dict]]) -> float:
    """Share of the assistant's turns, of the first `MOST_TURNS`, that the model writes without a mistake."""
    from kerasllm.chat.session import answers

    turns = [
        (messages[:place], message["content"])
        for messages in conversations
        for place, message in enumerate(messages)
        if place and message["role"] == "assistant"
    ][:MOST_TURNS]
    if not turns:
        return 0.0
    histories, expected = zip(*turns)
    found = answers(model, list(histories), _longest(model, expected), truncation=True)
    return sum(answer.strip() == text.strip() for answer, text in zip(found, expected)) / len(turns)


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
    "next-sentence": Task("PairedMaskedLM", "next_sentence", BERT_TOKENS),
    "replaced-tokens": Task("ReplacedTokenDetector", "generated", BERT_TOKENS),
    "span-corruption": Task("Seq2SeqLM", "span", (*T5_TOKENS, *(f"<extra_id_{i}>" for i in range(100)))),
    "seq2seq": Task("Seq2SeqLM", None, T5_TOKENS, ("exact_match", exact_match)),
    "instruct": Task("CausalLM", None, ("<|endoftext|>",), ("exact_match", exact_turns), conversations=True),
    "classify": Task("TextClassifier", None, BERT_TOKENS),
    "embed": Task("TextEmbedder", None, BERT_TOKENS, ("retrieval_at_1", retrieval_at_1)),
}


FIGURES = tuple(dict.fromkeys(f"val_{task.figure[0]}" for task in TASKS.values() if task.figure))


def split_pairs(data, task: Task) -> tuple[list, list | None]:
    """(training pairs, validation pairs) of a recipe's `Data`, or conversations, if the task is on these; what is
    built in has a held-out part of its own.

    Raises:
        ValueError: see `read_pairs` and `read_conversations`; or a label that is empty.
    """
    from kerasllm.data.chat import read_conversations, split_examples
    from kerasllm.data.pairs import COLUMNS, read_pairs
    from kerasllm.data.tables import MissingColumn

    columns = (data.source_column, data.target_column)
    options = {} if task.conversations else {"columns": None if columns == COLUMNS[0] else columns}
    read = read_conversations if task.conversations else read_pairs
    try:
        pairs = read(data.source, **options)
    except MissingColumn as error:
        remedy = "Say which with data.source_column and data.target_column: --set data.source_column=NAME."
        raise ValueError(error.found if task.conversations else f"{error.found} {remedy}") from None
    is_labelled = task.model == "TextClassifier"
    if is_labelled:
        pairs = stripped_labels(pairs)
    if data.validation_fraction and str(data.source).startswith("builtin:"):
        return pairs, read(f"{data.source}:validation", **options)
    if is_labelled and data.validation_fraction:
        return split_by_label(pairs, data.validation_fraction)
    return split_examples(pairs, data.validation_fraction)


def stripped_labels(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of texts and labels, without white space around the labels.

    Raises:
        ValueError: a label is empty, or there is only one.
    """
    pairs = [(text, label.strip()) for text, label in pairs]
    if empty := [text for text, label in pairs if not label]:
        raise ValueError(f"{len(empty)} of {len(pairs)} rows have an empty label, the first that of {empty[0][:80]!r}.")
    if len(labels := {label for _, label in pairs}) == 1:
        raise ValueError(f"All {len(pairs)} rows have the label {labels.pop()!r}: there is nothing to tell apart.")
    return pairs


def split_by_label(pairs: Sequence[tuple[str, str]], validation_fraction: float) -> tuple[list, list]:
    """(those to train on, those to validate on): the last rows of each label, which take turns.

    The first row of a label is never held out.

    Raises:
        ValueError: there are too few rows.
    """
    totals, seen, order = Counter(label for _, label in pairs), Counter(), []
    for index, (_, label) in enumerate(pairs):
        if seen[label]:
            order.append(((seen[label] + 0.5) / totals[label], index))
        seen[label] += 1
    count = min(int(len(pairs) * validation_fraction), len(order))
    if not count:
        raise ValueError(
            f"There are too few examples to keep some for validation. Received: {len(pairs)}, "
            f"validation_fraction={validation_fraction}"
        )
    held_out = [index for _, index in sorted(order)[-count:]]
    kept = set(held_out)
    return [pair for index, pair in enumerate(pairs) if index not in kept], [pairs[index] for index in held_out]


def label_counts(pairs: Sequence[tuple[str, str]], most: int = 20) -> str:
    """The labels and how many rows each has, in words."""
    counts = sorted(Counter(label for _, label in pairs).items())
    more = f" and {len(counts) - most} more" if len(counts) > most else ""
    return f"{len(counts)} labels: {', '.join(f'{label!r} {count:,}' for label, count in counts[:most])}{more}"


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
