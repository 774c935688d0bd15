"""Where conversations come from, and how they become batches to tune a model on."""

import os
import warnings
from collections.abc import Iterable, Iterator

import numpy as np

from kerasllm.chat.messages import Messages, check_messages
from kerasllm.chat.tokens import encode_conversation
from kerasllm.data import tasks
from kerasllm.data.dataset import TokenDataset
from kerasllm.data.shards import TokenShards
from kerasllm.data.sources import refuse_tables, source_files
from kerasllm.data.tables import not_text, read_rows
from kerasllm.objectives.instruction import Instruction
from kerasllm.tokenizers import Tokenizer

ConversationSource = str | os.PathLike | Iterable[dict | list[dict] | str | os.PathLike]

_NUM_GENERATED = {"train": 10_000, "validation": 200}


def read_conversations(source: ConversationSource) -> list[Messages]:
    """The conversations of a source, each a list of messages with an assistant turn.

    Args:
        source: one of

            - a table, as `read_pairs` takes it, with one conversation a row: a column `messages`, which holds a list of
              dicts with "role" and "content", or the columns `prompt` and `response`. An answer whose "weight" is 0,
              in its message or its row, is read and not learned;
            - `"builtin:conversations"` (10,000, about dates and numbers), with `":validation"` after it for the
              held-out part (200); see `kerasllm.data.tasks.conversations`;
            - an iterable of lists of messages, of dicts as such a row, or of paths.

    Returns:
        List of lists of `{"role": …, "content": …}`.

    Raises:
        FileNotFoundError: there is no such path, or no file matches.
        ValueError: a row without these columns, an unknown role, a content that is not text, no assistant turn, or no
            conversations. The message names the file and the line.
        ImportError: a format whose package is not installed.

    Example:

    ```python
    conversations = read_conversations([{"prompt": "1 + 1?", "response": "2"}])
    ```
    """
    conversations = list(_read(source))
    if not conversations:
        raise ValueError(f"There are no conversations in this source: it is empty. Received: {source!r}")
    return conversations


def from_conversations(
    source: ConversationSource,
    tokenizer: Tokenizer,
    sequence_length: int = 512,
    batch_size: int = 16,
    validation_fraction: float = 0.1,
    seed: int = 0,
    shuffle: bool = True,
) -> tuple[TokenDataset, TokenDataset | None]:
    """Datasets for `model.fit(train, validation_data=validation)`, in which only the assistant's turns carry loss.

    As many conversations as fit share a row, and none sees another. What is longer than a row is cut at its end, with
    a warning that says how many responses that shortened, and how many conversations were dropped because none was
    left.

    Args:
        source: see `read_conversations`.
        tokenizer: a `Tokenizer`, whose chat template makes text of the conversations.
        sequence_length: tokens in a row.
        batch_size: rows in a batch.
        validation_fraction: part of the conversations, the last ones, kept for validation, in [0, 1). With 0 there is
            no validation set.
        seed: of the order of the training rows.
        shuffle: permute the training rows.

    Returns:
        `(train, validation)`, two `TokenDataset`s; `validation` is `None` if `validation_fraction` is 0.

    Raises:
        ValueError: an argument out of range, too few conversations, or every response is cut off.

    Example:

    ```python
    train, validation = from_conversations("builtin:conversations", tokenizer, sequence_length=128)
    ```
    """
    train, held_out = split_examples(read_conversations(source), validation_fraction)
    options = {"tokenizer": tokenizer, "sequence_length": sequence_length, "batch_size": batch_size}
    train_data = conversation_data(train, shuffle=shuffle, seed=seed, **options)
    return train_data, held_out and conversation_data(held_out, shuffle=False, **options)


def split_examples(examples: list, validation_fraction: float) -> tuple[list, list | None]:
    """(those to train on, the last ones, to validate on); `None` for a fraction of 0.

    Raises:
        ValueError: the fraction is out of range, or leaves one of the parts empty.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"`validation_fraction` must be in [0, 1). Received: {validation_fraction}")
    if not validation_fraction:
        return examples, None
    stop = int(len(examples) * (1 - validation_fraction))
    if not 0 < stop < len(examples):
        raise ValueError(
            f"There are too few examples to keep some for validation. Received: {len(examples)}, "
            f"validation_fraction={validation_fraction}"
        )
    return examples[:stop], examples[stop:]


def conversation_data(
    conversations: Iterable[Messages],
    tokenizer: Tokenizer,
    sequence_length: int,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
) -> TokenDataset:
    """Batches of checked conversations; see `from_conversations`.

    Raises:
        ValueError: every response is cut off.
    """
    objective = Instruction(tokenizer.vocabulary_size)
    return TokenDataset(
        conversation_shards(conversations, tokenizer, sequence_length, objective),
        sequence_length,
        batch_size,
        packing="documents",
        objective=objective,
        shuffle=shuffle,
        drop_remainder=False,
        pad_token_id=tokenizer.pad_token_id or 0,
        seed=seed,
    )


def conversation_shards(
    conversations: Iterable[Messages], tokenizer: Tokenizer, sequence_length: int, objective: Instruction
) -> TokenShards:
    """The tokens of conversations, each cut to `sequence_length`, with the answers marked for the objective.

    Raises:
        ValueError: every response is cut off.
    """
    documents, cut, dropped, total = [], 0, 0, 0
    for messages in conversations:
        total += 1
        ids, is_answer = encode_conversation(tokenizer, messages)
        cut += _count_answers(is_answer) - _count_answers(is_answer, sequence_length)
        ids, is_answer = ids[:sequence_length], is_answer[:sequence_length]
        if is_answer[1:].any():  # Nothing is predicted from before the first token.
            documents.append(objective.mark(ids, is_answer))
        else:
            dropped += 1
    told = (
        f"The limit of {sequence_length} tokens cuts responses: {cut} in {total} conversations, of which {dropped} are "
        "dropped, with none left to learn from. Use a larger `sequence_length`, if the model's context allows it."
    )
    if not documents:
        raise ValueError(told)
    if cut or dropped:
        warnings.warn(told, stacklevel=4)
    return TokenShards.from_arrays(documents, tokenizer_fingerprint=tokenizer.fingerprint)


def _count_answers(is_answer: np.ndarray, limit: int | None = None) -> int:
    """How many answers end before the limit."""
    ends = is_answer & ~np.append(is_answer[1:], False)
    return int(ends[:limit].sum())


def _read(source: ConversationSource) -> Iterator[Messages]:
    if not isinstance(source, str | os.PathLike):
        refuse_tables(source, 'table["messages"], or a list of dicts')
        for number, item in enumerate(source):
            if isinstance(item, str | os.PathLike):
                yield from _read(item)
            else:
                place = f"Conversation {number}"
                yield check_messages(_messages(item, place) if isinstance(item, dict) else item, place, True)
    elif str(source).startswith("builtin:"):
        yield from _read_builtin(str(source))
    else:
        tables = [source] if str(source).startswith("hf:") else source_files(source)
        for table in tables:
            for place, row in read_rows(table, ("messages",), ("prompt", "response"), optional=("weight",)):
                yield check_messages(_messages(row, place), place, True)


def _messages(row: dict, place: str) -> list[dict]:
    """The messages of a row of a table."""
    if "messages" in row:
        return row["messages"]
    if not {"prompt", "response"} <= row.keys():
        raise ValueError(
            f"{place} must have a column 'messages', or the columns 'prompt' and 'response'. "
            f"It has: {', '.join(map(str, row))}"
        )
    for column in ("prompt", "response"):
        if not isinstance(row[column], str):
            raise not_text(place, column, row[column])
    weight = {"0": 0, "1": 1}.get(row.get("weight"), row.get("weight"))  # In CSV it is text.
    answer = {"role": "assistant", "content": row["response"], "weight": weight}
    return [{"role": "user", "content": row["prompt"]}, answer]


def _read_builtin(name: str) -> list[Messages]:
    _, task, *rest = name.split(":")
    part = rest[0] if rest else "train"
    if task != "conversations" or part not in _NUM_GENERATED or len(rest) > 1:
        raise ValueError(
            "The built-in conversations are builtin:conversations, with nothing, ':train' or ':validation' after it. "
            f"Received: {name!r}"
        )
    return tasks.conversations(_NUM_GENERATED[part], part=part)
