"""Number words: "four thousand and twelve" ↔ "4012"."""

from collections.abc import Iterator

import numpy as np

from kerasllm.data.order import counted_hash
from kerasllm.data.tasks.split import check_count, in_part

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"))
LARGEST = 10**12 - 1
ALWAYS_TRAINED = 100  # numbers below are the words that all others are made of
_SPELLING_STREAM, _FIRST_NUMBER_STREAM = 0, 1


def number_words(
    num_examples: int, seed: int = 0, largest: int = 999_999, to: str = "digits", part: str = "train"
) -> list[tuple[str, str]]:
    """Pairs of a number in words and in digits, or the other way round.

    The source side varies: words with or without the British "and", with a hyphen or a space ("forty two thousand
    one hundred and five"); digits with or without commas ("42,105"). The target side does not: plain digits, or words
    with "and" and hyphens. Numbers of one digit, two digits, ... are equally likely. One number in ten is held out for
    validation; those below 100 never are.

    Args:
        num_examples: how many pairs.
        seed: pair `i` is a function of `(seed, largest, to, part, i)`.
        largest: the largest number, at most 999,999,999,999; the smallest is 0.
        to: the target side, `"digits"` or `"words"`.
        part: `"train"` or `"validation"`.

    Returns:
        List of `(source, target)`. A pair may come more than once.

    Raises:
        ValueError: an argument out of range, or no number up to `largest` is held out.

    Example:

    ```python
    for words, digits in number_words(3, seed=1):
        print(words, "→", digits)
    ```
    """
    check_count("num_examples", num_examples)
    if to not in ("digits", "words"):
        raise ValueError(f"`to` must be 'digits' or 'words'. Received: {to!r}")
    if not isinstance(largest, int) or not 0 <= largest <= LARGEST:
        raise ValueError(f"`largest` must be an integer in [0, {LARGEST:,}]. Received: {largest!r}")
    numbers = _draw_numbers(num_examples, seed, largest, part)
    spellings = counted_hash(seed, _SPELLING_STREAM, np.arange(num_examples)) % 4
    pairs = []
    for number, spelling in zip(numbers.tolist(), spellings.tolist()):
        if to == "digits":
            pairs.append((spell(number, with_and=spelling < 2, hyphen="- "[spelling % 2]), str(number)))
        else:
            pairs.append((f"{number:,}" if spelling % 2 else str(number), spell(number)))
    return pairs


def spell(number: int, with_and: bool = True, hyphen: str = "-") -> str:
    """A number in English words.

    Args:
        number: in [0, 999,999,999,999].
        with_and: the British "and" before tens and ones.
        hyphen: what stands in "twenty-one".

    Example:

    ```python
    assert spell(4012) == "four thousand and twelve"
    ```
    """
    return " ".join(_words(number, with_and, hyphen))


def _words(number: int, with_and: bool, hyphen: str) -> Iterator[str]:
    rest = number
    for scale, name in (*_SCALES, (100, "hundred")):
        count, rest = divmod(rest, scale)
        if count:
            yield from (*_words(count, with_and, hyphen), name)
    if rest and number >= 100 and with_and:
        yield "and"
    if rest >= 20:
        tens, ones = divmod(rest, 10)
        yield _TENS[tens - 2] + (hyphen + _SMALL[ones] if ones else "")
    elif rest or not number:
        yield _SMALL[rest]


def _draw_numbers(num_examples: int, seed: int, largest: int, part: str) -> np.ndarray:
    """int64 (num_examples,): each place draws, counted, until it has a number of this part."""
    candidates = np.arange(min(largest + 1, 10 * ALWAYS_TRAINED))
    if not _in_part(part, candidates).any():
        raise ValueError(f"No number up to `largest` is held out for validation. Use 999 or more. Received: {largest}")
    numbers, missing, stream = np.zeros(num_examples, np.int64), np.arange(num_examples), _FIRST_NUMBER_STREAM
    while missing.size:
        num_digits = counted_hash(seed, stream, missing) % len(str(largest)) + 1
        # From 0, 10, 100, ... to 9, 99, 999, ..., or to the largest.
        first = np.where(num_digits == 1, 0, 10 ** (num_digits.astype(np.int64) - 1))
        last = np.minimum(10 ** num_digits.astype(np.int64) - 1, largest)
        offset = counted_hash(seed, stream + 1, missing) % (last - first + 1).astype(np.uint64)
        numbers[missing] = first + offset.astype(np.int64)
        missing = missing[~_in_part(part, numbers[missing])]
        stream += 2
    return numbers


def _in_part(part: str, numbers: np.ndarray) -> np.ndarray:
    below = numbers < ALWAYS_TRAINED
    return in_part(part, numbers) & ~below if part == "validation" else in_part(part, numbers) | below
