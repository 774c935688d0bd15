"""What a recipe's task means: which model, which special tokens, which data, and which figure beside the loss.

Imports no backend, so that recipes are checked at once.
"""

import dataclasses
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
    built in has a held-out part of its own."""
    from kerasllm.data.chat import read_conversations, split_examples
    from kerasllm.data.pairs import read_pairs

    options = {} if task.conversations else {"columns": (data.source_column, data.target_column)}
    read = read_conversations if task.conversations else read_pairs
    pairs = read(data.source, **options)
    if data.validation_fraction and str(data.source).startswith("builtin:"):
        return pairs, read(f"{data.source}:validation", **options)
    return split_examples(pairs, data.validation_fraction)


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
