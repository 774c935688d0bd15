"""Date normalisation: "Monday, 3rd of May 2021" → "2021-05-03".

A task of the kind that Bahdanau's attention is often shown on: most of the answer is copied, some is translated.
"""

import datetime

import numpy as np

from kerasllm.data.order import counted_hash
from kerasllm.data.tasks.split import check_count, in_part

FIRST_DAY, LAST_DAY = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)

# Spelt out, because `calendar` and `strftime` speak the locale's language.
_MONTHS = (
    ("January", "Jan."),
    ("February", "Feb."),
    ("March", "Mar."),
    ("April", "Apr."),
    ("May", "May"),
    ("June", "June"),
    ("July", "July"),
    ("August", "Aug."),
    ("September", "Sept."),
    ("October", "Oct."),
    ("November", "Nov."),
    ("December", "Dec."),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
    "twentieth", "twenty-first", "twenty-second", "twenty-third", "twenty-fourth", "twenty-fifth", "twenty-sixth",
    "twenty-seventh", "twenty-eighth", "twenty-ninth", "thirtieth", "thirty-first",
)  # fmt: skip

# No form has two readings: a month is a word, or the year is written first and the order is year, month, day, or
# dots stand between day, month and year. Years have four digits. So "03/05/2021" and "3-5-21" are not among them.
FORMS = (
    "{year}/{month:02}/{day:02}",
    "{year}/{month}/{day}",
    "{year}.{month:02}.{day:02}",
    "{year} {month:02} {day:02}",
    "{year}{month:02}{day:02}",
    "{day}.{month}.{year}",
    "{day:02}.{month:02}.{year}",
    "{day}. {month}. {year}",
    "{day} {name} {year}",
    "{day}. {name} {year}",
    "{day:02} {short} {year}",
    "{day} {dotted} {year}",
    "{day}-{short}-{year}",
    "{day:02}{short}{year}",
    "{day}/{short}/{year}",
    "{ordinal} {name} {year}",
    "{ordinal} of {name} {year}",
    "{ordinal} of {name}, {year}",
    "the {ordinal} of {name} {year}",
    "the {ordinal} of {dotted} {year}",
    "{word} of {name} {year}",
    "the {word} of {name}, {year}",
    "{name} {day}, {year}",
    "{name} {ordinal}, {year}",
    "{name} the {ordinal}, {year}",
    "{name} the {word}, {year}",
    "{short} {day} {year}",
    "{dotted} {day}, {year}",
    "{dotted} {ordinal}, {year}",
    "{weekday}, {day} {name} {year}",
    "{weekday}, {name} {day}, {year}",
    "{weekday} the {ordinal} of {name} {year}",
    "{weekday}, the {word} of {name} {year}",
    "{shortday} {day} {short} {year}",
    "{shortday}, {short} {day}, {year}",
    "{shortday} {short} {day:02} {year}",
    "{year} {name} {day}",
    "{year}, {name} {ordinal}",
    "{year}-{short}-{day:02}",
)
_CASES = (str, str, str.lower, str.upper)  # half of them as written


def dates(num_examples: int, seed: int = 0, part: str = "train") -> list[tuple[str, str]]:
    """Pairs of a date in one of many surface forms and the same date as ISO 8601 writes it.

    The days are those from 1900 to 2099. One in ten is held out for validation, in all its forms. Every form has one
    reading: where the month is a number, the year comes first ("2021/5/3"), or there are dots and the day comes
    first ("3.5.2021"). A form with a weekday has the right one. Forms come as written, in lower case or in capitals.

    Args:
        num_examples: how many pairs.
        seed: pair `i` is a function of `(seed, part, i)`, so a longer list begins with the shorter one.
        part: `"train"` or `"validation"`.

    Returns:
        List of `(text, "YYYY-MM-DD")`. A pair may come more than once.

    Raises:
        ValueError: an argument out of range.

    Example:

    ```python
    for text, date in dates(3, seed=1):
        print(text, "→", date)
    ```
    """
    check_count("num_examples", num_examples)
    days = np.arange(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1)
    days = days[in_part(part, days)]
    chosen = (counted_hash(seed, stream, np.arange(num_examples)) for stream in range(3))
    pairs = []
    for day, form, case in zip(*chosen):
        date = datetime.date.fromordinal(int(days[day % len(days)]))
        pairs.append((_CASES[case % len(_CASES)](write_date(date, FORMS[form % len(FORMS)])), date.isoformat()))
    return pairs


def write_date(date: datetime.date, form: str) -> str:
    """A date in one of `FORMS`.

    Example:

    ```python
    assert write_date(datetime.date(2021, 5, 3), "{ordinal} of {name} {year}") == "3rd of May 2021"
    ```
    """
    name, dotted = _MONTHS[date.month - 1]
    weekday = _WEEKDAYS[date.weekday()]
    return form.format(
        year=date.year,
        month=date.month,
        day=date.day,
        name=name,
        short=name[:3],
        dotted=dotted,
        ordinal=f"{date.day}{_suffix(date.day)}",
        word=_ORDINALS[date.day - 1],
        weekday=weekday,
        shortday=weekday[:3],
    )


def _suffix(day: int) -> str:
    if day in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
