"""Small talk about dates and numbers: "3rd of May 2021 as ISO, please." → "2021-05-03", "And the year?" → "2021"."""

import datetime

import numpy as np

from kerasllm.data.order import counted_hash
from kerasllm.data.tasks.date_forms import dates, write_date
from kerasllm.data.tasks.numerals import number_words

FORMS = ("{day} {name} {year}", "{ordinal} of {name} {year}", "{name} {day}, {year}")
ASKED = {
    "date": ("Write {} as ISO.", "{} as ISO, please.", "What is {} in ISO?"),
    "number": ("Write {} in digits.", "{} in digits, please.", "Which number is {}?"),
}
# What may be asked next, and the part of the last answer that answers it.
FOLLOWED = {
    "date": (("And the year?", slice(0, 4)), ("And the month?", slice(5, 7)), ("And the day?", slice(8, 10))),
    "number": (("And its first digit?", slice(0, 1)), ("And its last digit?", slice(-1, None))),
}
LARGEST = 9_999


def conversations(num_examples: int, seed: int = 0, part: str = "train") -> list[list[dict]]:
    """Conversations in which a date is written as ISO 8601 does, or a number in digits.

    One in two goes on: with a question about the last answer, or with another date or number. Days and numbers that
    are held out (see `dates` and `number_words`) are in no training conversation.

    Args:
        num_examples: how many conversations.
        seed: conversation `i` is a function of `(seed, part, i)`.
        part: `"train"` or `"validation"`.

    Returns:
        List of lists of `{"role": "user" or "assistant", "content": …}`.

    Raises:
        ValueError: an argument out of range.

    Example:

    ```python
    for message in conversations(1)[0]:
        print(message["role"], message["content"])
    ```
    """
    days = [datetime.date.fromisoformat(date) for _, date in dates(2 * num_examples, seed, part)]
    numbers = number_words(2 * num_examples, seed, LARGEST, part=part)
    made = []
    for index, drawn in enumerate(np.stack([counted_hash(seed, i, np.arange(num_examples)) for i in range(8)], 1)):
        drawn, messages = drawn.tolist(), []
        subject = _opening(messages, drawn[:3], days[2 * index], numbers[2 * index])
        if drawn[3] % 4 == 1:
            question, cut = _pick(FOLLOWED[subject], drawn[4])
            _exchange(messages, question, messages[-1]["content"][cut])
        elif drawn[3] % 4 == 2:
            _opening(messages, drawn[5:], days[2 * index + 1], numbers[2 * index + 1])
        made.append(messages)
    return made


def _opening(messages: list[dict], drawn: list[int], day: datetime.date, number: tuple[str, str]) -> str:
    """Asks for a date or a number, and says which of them it was."""
    subject = _pick(tuple(ASKED), drawn[0])
    asked, answer = number if subject == "number" else (write_date(day, _pick(FORMS, drawn[1])), day.isoformat())
    _exchange(messages, _pick(ASKED[subject], drawn[2]).format(asked), answer)
    return subject


def _exchange(messages: list[dict], question: str, answer: str) -> None:
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _pick(choices: tuple, drawn: int):
    return choices[drawn % len(choices)]
