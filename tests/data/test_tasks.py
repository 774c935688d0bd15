import ast
import datetime
import hashlib
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasllm.data import tasks
from kerasllm.data.tasks import (
    dates,
    docstring_pairs,
    docstrings,
    library,
    library_lines,
    number_words,
    source_lines,
    tfidf_retrieval,
)
from kerasllm.data.tasks.date_forms import _CASES, FORMS, write_date
from kerasllm.data.tasks.numerals import LARGEST, spell
from kerasllm.data.tasks.split import in_part, names_in_part

pytestmark = pytest.mark.one_backend

UNITS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]
ORDINALS = {word: day for day, word in enumerate(UNITS, start=1)} | {
    "tenth": 10, "eleventh": 11, "twelfth": 12, "thirteenth": 13, "fourteenth": 14, "fifteenth": 15, "sixteenth": 16,
    "seventeenth": 17, "eighteenth": 18, "nineteenth": 19, "twentieth": 20, "thirtieth": 30, "thirty-first": 31,
}  # fmt: skip
ORDINALS |= {f"twenty-{word}": 20 + day for day, word in enumerate(UNITS, start=1)}


def read_date(text: str) -> tuple[datetime.date, str | None]:
    """Reads any unambiguous date, by rules of its own; and the weekday, if there is one."""
    words = re.findall(r"[a-z]+-(?:first|second|third|[a-z]+th)|[a-z]+|\d+", text.lower())
    weekday = r"(mon|tue|wed|thu|fri|sat|sun)|(mon|tues|wednes|thurs|fri|satur|sun)day"
    weekday = next((word for word in words if re.fullmatch(weekday, word)), None)
    rest = [
        str(ORDINALS.get(word, word)) for word in words if word not in {weekday, "the", "of", "st", "nd", "rd", "th"}
    ]
    if len(rest) == 1:
        return datetime.datetime.strptime(rest[0], "%Y%m%d").date(), weekday
    form = []
    for word in rest:
        if word.isalpha():
            form.append("%B" if len(word) > 4 or word in ("june", "july") else "%b")
        elif len(word) == 4:
            form.append("%Y")
        else:
            form.append("%d" if "%d" not in form and (rest[0] == word or any(map(str.isalpha, rest))) else "%m")
    if form == ["%Y", "%m", "%m"]:
        form[2] = "%d"
    return datetime.datetime.strptime(
        " ".join(rest).replace("sept", "sep", "%b" in form), " ".join(form)
    ).date(), weekday


def test_every_form_of_a_date_has_one_reading_and_the_right_weekday():
    read, day = {}, datetime.date(2019, 12, 1)
    weekdays = 0
    while (day := day + datetime.timedelta(days=1)).year < 2022:
        for form in FORMS:
            for case in _CASES[1:]:
                text = case(write_date(day, form))
                date, weekday = read_date(text)
                assert date == day, text
                assert read.setdefault(text, day) == day, text
                if weekday:
                    assert day.strftime("%A").lower().startswith(weekday), text
                    weekdays += 1
    assert weekdays == 7 * 761 * 3


def test_dates_are_what_their_texts_say():
    for part in ("train", "validation"):
        for text, date in dates(2000, seed=5, part=part):
            assert read_date(text)[0].isoformat() == date, text


def test_dates_are_counted_and_use_every_form():
    pairs = dates(5000, seed=3)
    assert pairs[:50] == dates(50, seed=3) != dates(50, seed=4)
    assert {1: "st", 2: "nd", 3: "rd"}.items() <= {
        int(match[1]): match[2] for text, _ in pairs if (match := re.search(r"\b(\d)(st|nd|rd|th)\b", text))
    }.items()
    shapes = Counter(re.sub(r"[A-Za-z]+", "a", re.sub(r"\d+", "0", text)) for text, _ in pairs)
    assert len(shapes) >= 20
    assert 0.2 < sum(text.islower() for text, _ in pairs) / 5000 < 0.35
    assert {date[:4] for _, date in pairs} == {str(year) for year in range(1900, 2100)}
    assert dates(0) == []


def test_held_out_days_are_never_trained_on():
    trained = {date for seed in range(3) for _, date in dates(30_000, seed)}
    held_out = {date for seed in range(3) for _, date in dates(5_000, seed, part="validation")}
    assert not trained & held_out
    assert len(held_out) > 5_000
    assert {date[5:7] for date in held_out} == {f"{month:02}" for month in range(1, 13)}
    assert {date[8:] for date in held_out} == {f"{day:02}" for day in range(1, 32)}
    assert in_part("validation", np.arange(100_000)).mean() == pytest.approx(0.1, abs=0.005)


VALUES = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50,
    "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip


def read_number(text: str) -> int:
    total = below = 0
    for word in text.replace("-", " ").split():
        if word == "hundred":
            below *= 100
        elif word in ("thousand", "million", "billion"):
            total, below = total + below * {"t": 10**3, "m": 10**6, "b": 10**9}[word[0]], 0
        elif word != "and":
            below += VALUES[word]
    return total + below


@given(st.integers(0, LARGEST), st.booleans(), st.sampled_from("- "))
def test_number_words_read_back(number, with_and, hyphen):
    text = spell(number, with_and, hyphen)
    assert read_number(text) == number
    assert with_and or "and" not in text.split()
    assert hyphen in text or not re.search(r"ty-?[a-z]", text)
    assert not text.startswith("and") and "  " not in text


def test_number_words_as_the_british_write_them():
    assert spell(0) == "zero"
    assert spell(4012) == "four thousand and twelve"
    assert spell(100) == "one hundred"
    assert spell(1_000_001) == "one million and one"
    assert spell(342_119) == "three hundred and forty-two thousand one hundred and nineteen"
    assert spell(80_061, with_and=False, hyphen=" ") == "eighty thousand sixty one"


@pytest.mark.parametrize("part", ["train", "validation"])
def test_number_words_in_both_directions(part):
    pairs = number_words(3000, seed=2, part=part)
    assert all(digits == str(read_number(words)) for words, digits in pairs)
    assert pairs[:40] == number_words(40, seed=2, part=part) != number_words(40, seed=3, part=part)
    long = [words for words, digits in pairs if int(digits) % 1000 > 120 and int(digits) % 100 > 20]
    assert {(" and " in words, "-" in words) for words in long} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    back = number_words(3000, seed=2, to="words", part=part)
    assert [int(digits.replace(",", "")) for digits, _ in back] == [int(digits) for _, digits in pairs]
    assert all(words == spell(int(digits.replace(",", ""))) for digits, words in back)
    with_comma = sum("," in digits for digits, _ in back) / sum(int(digits) > 999 for _, digits in pairs)
    assert 0.45 < with_comma < 0.55
    shares = Counter(len(digits) for _, digits in pairs)
    assert set(shares) == set(range(1, 7)) if part == "train" else set(shares) == {3, 4, 5, 6}
    assert max(shares.values()) < 1.4 * min(shares.values())


def test_held_out_numbers_are_never_trained_on():
    trained = {int(digits) for _, digits in number_words(50_000, largest=2000)}
    held_out = {int(digits) for _, digits in number_words(5_000, largest=2000, part="validation")}
    assert trained | held_out == set(range(2001))
    assert not trained & held_out
    assert min(held_out) >= 100
    assert {int(digits) for _, digits in number_words(100, largest=0)} == {0}
    assert max(int(digits) for _, digits in number_words(2000, largest=LARGEST)) > 10**11


SOURCE = '''"""Summary of this module for the reader.

The second paragraph describes the contents of the module in English words.

    >>> an_example("in a docstring") == "code"
"""
# The first comment of the file.
import os.path as the_path  # a remark on the same line

#: A documented constant follows here.
NAMES = ("alpha_one", "beta_two")
# unused_name = os.path.join("alpha", "beta")
"""A string that stands alone is no statement.
# Nor is this a comment of any kind
"""


class Example(dict, metaclass=type):
    """Short text."""

    def method_name(self, argument: str = "naïve ☃") -> None:
        self.field_name = "naïve ☃"; other_name = argument  # a remark
        if self.field_name and argument:  # a branch here
            return other_name.strip("abc")

    async def many_lines(
        self, first, second
    ):
        await self.field_name(
            first, second)
'''


def test_lines_are_labelled_as_the_parser_says():
    lines = list(library_lines._lines_of(SOURCE, ast.parse(SOURCE)))
    assert [mark for mark, _, label in lines if label == "comment"] == ["# ", "#: "]
    assert Counter((text, label) for _, text, label in lines) == Counter(
        [
            ("Summary of this module for the reader.", "prose"),
            ("The second paragraph describes the contents of the module in English words.", "prose"),
            ("The first comment of the file.", "comment"),
            ("A documented constant follows here.", "comment"),
            ("import os.path as the_path", "code"),
            ('NAMES = ("alpha_one", "beta_two")', "code"),
            ("class Example(dict, metaclass=type):", "signature"),
            ('def method_name(self, argument: str = "naïve ☃") -> None:', "signature"),
            ('self.field_name = "naïve ☃"', "code"),
            ("other_name = argument", "code"),
            ('return other_name.strip("abc")', "code"),
        ]
    )


def test_source_lines_are_balanced_split_and_true():
    train, validation = source_lines("train"), source_lines("validation")
    for pairs in (train, validation):
        counts = Counter(label for _, label in pairs)
        assert set(counts) == {"prose", "code", "signature", "comment"}
        assert len(set(counts.values())) == 1
    assert len(train) > 10_000 and len(validation) > 1_000
    texts = [text for text, _ in train + validation]
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() and 10 <= len(text) <= 100 for text in texts)
    for text, label in train[:4000]:
        body = {"code": text, "signature": text + " pass"}.get(label)
        if body is None:
            assert not text.startswith("#")
            with pytest.raises(SyntaxError):
                ast.parse(text if label == "comment" else f"( {text} = 1")
        elif not re.match(r"(return|yield|await|break|continue|async|nonlocal|.*\byield\b|.*\bawait\b)", text):
            kind = ast.parse(body).body[0]
            assert isinstance(kind, library_lines._SIGNATURES) == (label == "signature")


def test_source_lines_with_a_limit_begin_the_whole_list():
    pairs = source_lines("validation")
    assert source_lines("validation", limit=43) == pairs[:40]
    assert Counter(label for _, label in pairs[:40]) == dict.fromkeys(library_lines.LABELS, 10)
    assert source_lines("validation", limit=0) == []
    assert source_lines("validation", limit=10**9) == pairs


def test_marks_of_comments_may_be_kept():
    for (text, label), (marked, same_label) in zip(source_lines(), source_lines(keep_marks=True), strict=True):
        assert label == same_label
        assert marked == text if label != "comment" else marked[0] == "#" and marked.lstrip("#!: \t") == text


def test_modules_are_in_one_part_only():
    names = [name for name, _, _ in library.library_modules()]
    assert {"os", "json", "json.decoder", "pydoc"} <= set(names)
    assert not any("test" in name.split(".") or "site-packages" in name for name in names)
    validation, train = names_in_part("validation", names), names_in_part("train", names)
    assert (validation ^ train).all()
    assert 0.05 < validation.mean() < 0.2
    module_of = {line.text: line.module for line in library_lines._labelled_lines()}
    trained, held_out = ({module_of[text] for text, _ in source_lines(part)} for part in ("train", "validation"))
    assert len(trained) > 200 and len(held_out) > 20
    assert not trained & held_out


def test_a_python_without_its_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(library.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"not here as source files. Received: "):
        list(library.library_modules())


def test_docstring_pairs_follow_the_rules(tmp_path, monkeypatch):
    (tmp_path / "sample.py").write_text('''
def splitHTTPHeader_v2(text):
    """Cut the header
    in two parts.  The second sentence.

    More."""

def no_docstring(): pass

def signature(text):
    """signature(text) -> list

    Takes things apart."""

def too_short():
    """Close it."""

class Box:
    def put_in(self):
        """Box.put_in(x) puts things in."""
    def take_out(self):
        """Take the thing out, e.g. now!"""
    def again(self):
        """Cut the header in two parts."""
''')
    monkeypatch.setattr(library.sysconfig, "get_path", lambda name: str(tmp_path))
    docstrings._all_pairs.cache_clear()
    try:
        assert docstring_pairs("train") + docstring_pairs("validation") == [
            ("Cut the header in two parts.", "sample split http header v 2"),
            ("Take the thing out, e.g. now!", "sample box take out"),
        ]
    finally:
        docstrings._all_pairs.cache_clear()


def test_docstring_pairs_of_the_library():
    train, validation = docstring_pairs("train"), docstring_pairs("validation")
    assert len(train) > 2_000 and len(validation) > 200
    for column in (0, 1):
        texts = [pair[column] for pair in train + validation]
        assert len(set(texts)) == len(texts)
    for sentence, name in train + validation:
        assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", name), name
        assert "\n" not in sentence and len(sentence.split()) >= 3
        assert not re.match(r"\w+\(", sentence)
    everything = dict(train + validation)
    assert everything["Recursively copy a directory tree and return the destination directory."] == "shutil copytree"


def brute_force_tfidf(queries: list[str], keys: list[str]) -> float:
    words = sorted({word for text in queries + keys for word in text.split()})
    frequency = [sum(word in key.split() for key in keys) for word in words]
    idf = [math.log((1 + len(keys)) / (1 + f)) if f else 0.0 for f in frequency]

    def vector(text):
        counts = [text.split().count(word) for word in words]
        values = np.array([(1 + math.log(c)) * i if c else 0.0 for c, i in zip(counts, idf)])
        return values / max(np.linalg.norm(values), 1e-6)

    similarity = np.array([[round(float(vector(query) @ vector(key)), 9) for key in keys] for query in queries])
    return float(np.mean([(row[i] == row.max()) / (row == row.max()).sum() for i, row in enumerate(similarity)]))


@given(st.lists(st.tuples(*[st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5)] * 2), min_size=1, max_size=7))
def test_tfidf_is_cosine_of_weighted_words(pairs):
    queries, keys = ([" ".join(words) for words in side] for side in zip(*pairs))
    assert tfidf_retrieval(queries, keys) == pytest.approx(brute_force_tfidf(queries, keys))


def test_tfidf_shares_ties():
    assert tfidf_retrieval(["red apple", "green pear"], ["an apple", "a pear"]) == 1.0
    assert tfidf_retrieval(["red apple", "green pear"], ["a pear", "an apple"]) == 0.0
    assert tfidf_retrieval(["what", "is"], ["this", "then"]) == 0.5


@pytest.mark.slow
def test_tasks_are_the_same_in_another_process_and_import_no_backend():
    made = "[tasks.dates(200), tasks.number_words(200), tasks.source_lines('validation'), tasks.docstring_pairs()]"
    code = f"""
import hashlib, sys
from kerasllm.data import tasks
made = {made}
assert not {{"keras", "antigravity", "tkinter"}} & set(sys.modules)
print(hashlib.sha256(repr(made).encode()).hexdigest())
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    here = repr(eval(made, {"tasks": tasks}))
    assert run.stdout == hashlib.sha256(here.encode()).hexdigest() + "\n", run.stderr


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: dates(-1), r"`num_examples` must be an integer that is not negative. Received: -1"),
        (lambda: dates(2.5), r"Received: 2\.5"),
        (lambda: dates(1, part="test"), r"`part` must be one of 'train', 'validation'. Received: 'test'"),
        (lambda: number_words(1, to="roman"), r"`to` must be 'digits' or 'words'. Received: 'roman'"),
        (lambda: number_words(1, largest=-1), r"`largest` must be an integer in .*999,999,999,999\]. Received: -1"),
        (lambda: number_words(1, largest=10**12), r"Received: 1000000000000"),
        (lambda: number_words(1, largest=99, part="validation"), r"No number up to `largest` .*Received: 99"),
        (lambda: number_words(1, part="dev"), r"Received: 'dev'"),
        (lambda: source_lines("test"), r"Received: 'test'"),
        (lambda: source_lines(limit=-4), r"`limit` must be .* Received: -4"),
        (lambda: docstring_pairs("test"), r"Received: 'test'"),
        (lambda: tfidf_retrieval(["a"], []), r"as many queries as keys. Received: 1 and 0"),
        (lambda: tfidf_retrieval([], []), r"Received: 0 and 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
