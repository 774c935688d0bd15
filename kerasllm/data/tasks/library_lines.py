"""Lines of the standard library and what they are, as Python's own parser and tokenizer say."""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kerasllm.data.order import permute
from kerasllm.data.pydoc_corpus import docstrings_of, prose
from kerasllm.data.tasks.library import library_modules
from kerasllm.data.tasks.split import check_count, names_in_part

LABELS = ("prose", "code", "signature", "comment")
_SIGNATURES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SHORTEST, _LONGEST = 10, 100  # characters


def source_lines(part: str = "train", limit: int | None = None, keep_marks: bool = False) -> list[tuple[str, str]]:
    """Pairs of a line of the running Python's standard library and its label.

    - `"prose"`: a line of an English paragraph of a docstring;
    - `"code"`: a statement that fits a line (no definition, no docstring);
    - `"signature"`: the line of a `def` or `class`;
    - `"comment"`: a line that is a comment. Code that is commented out is left out.

    Indentation is stripped, and so is the `#` of a comment, which would give the label away. Without it, comments and
    prose are both English, and many lines could be either: a linear model of character n-grams, trained on 24,000
    lines, gets 85 % of all lines right, and 99.6 % with `keep_marks`.

    Lines have 10 to 100 characters and at least three words or names. A text comes once: the first module that has it
    keeps it, and a text with two labels is left out. Each module is in one part, one in five in validation; there are
    as many lines of each label.

    Args:
        part: `"train"` or `"validation"`.
        limit: at most so many lines; they begin the whole list, with as many of each label.
        keep_marks: leave the `#` of comments where it is; the lines are the same otherwise.

    Returns:
        List of `(line, label)`, shuffled, labels in turn.

    Raises:
        ValueError: an argument out of range.

    Example:

    ```python
    for line, label in source_lines("validation", limit=8):
        print(f"{label:>10}: {line}")
    ```
    """
    if limit is not None:
        check_count("limit", limit)
    lines = _labelled_lines()
    chosen = names_in_part(part, [line.module for line in lines])
    by_label = {label: [] for label in LABELS}
    for line, is_chosen in zip(lines, chosen):
        if is_chosen:
            by_label[line.label].append(line.mark + line.text if keep_marks else line.text)
    num_each = min(map(len, by_label.values()))
    kept = num_each if limit is None else min(num_each, limit // len(LABELS))
    shuffled = []
    for number, (label, texts) in enumerate(by_label.items()):
        order = permute(np.arange(kept), len(texts), seed=0, epoch=number)
        shuffled.append([(texts[index], label) for index in order])
    return [pair for pairs in zip(*shuffled) for pair in pairs]


class _Line(NamedTuple):
    module: str
    mark: str  # "# " before a comment
    text: str
    label: str


@functools.cache  # both parts are read together, and reading takes seconds
def _labelled_lines() -> list[_Line]:
    """Each line that is left when texts with two labels are out."""
    first: dict[str, _Line] = {}
    with_two_labels = set()
    for module, source, tree in library_modules():
        for mark, text, label in _lines_of(source, tree):
            telling = _SHORTEST <= len(text) <= _LONGEST and len(re.findall(r"[^\W\d_]{2,}", text)) >= 3
            if telling and first.setdefault(text, _Line(module, mark, text, label)).label != label:
                with_two_labels.add(text)
    return [line for text, line in first.items() if text not in with_two_labels]


def _lines_of(source: str, tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """`(mark, text, label)` of the lines of a module."""
    for docstring in docstrings_of(tree):
        for paragraph in prose(docstring):
            yield from (("", line.strip(), "prose") for line in paragraph.split("\n"))
    lines = source.split("\n")  # as the parser counts: a form feed ends no line
    for node in ast.walk(tree):
        if isinstance(node, _SIGNATURES):
            line = lines[node.lineno - 1].strip()
            if line.endswith(":"):
                yield "", line, "signature"
        elif isinstance(node, ast.stmt) and node.lineno == node.end_lineno and not _is_string(node):
            # Columns count bytes of UTF-8. The end leaves out a comment on the same line.
            yield "", lines[node.lineno - 1].encode()[node.col_offset : node.end_col_offset].decode(), "code"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            comment = token.string.rstrip()
            text = comment.lstrip("#!: \t")
            if not _is_code(text):
                yield comment.removesuffix(text), text, "comment"


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_code(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
