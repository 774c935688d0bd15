"""`builtin:pydoc`: a corpus that every Python carries, so that a first model needs no download.

The English prose of `pydoc_data.topics` (the language reference) and of the standard library's docstrings.
The library's files are parsed and never imported, so nothing in them runs.
"""

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_WORD = re.compile(r"[(\"'*]*[A-Za-z]+(?:['\u2019-][a-z]+)*[.,;:!?)\"'*]*")


def read_pydoc() -> Iterator[str]:
    """The corpus's documents, one for each topic and each module, always in the same order.

    Example:

    ```python
    text = "\\n\\n".join(read_pydoc())
    ```
    """
    seen: set[str] = set()
    for texts in [*_topics(), *_docstrings(Path(sysconfig.get_path("stdlib")))]:
        paragraphs = [paragraph for text in texts for paragraph in prose(text) if paragraph not in seen]
        seen.update(paragraphs)
        if paragraphs:
            yield "\n\n".join(dict.fromkeys(paragraphs)) + "\n"


def _topics() -> Iterator[list[str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    for name in sorted(topics):
        yield [topics[name]]


def _docstrings(folder: Path) -> Iterator[list[str]]:
    for path in sorted(folder.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError, OSError):
                continue
            yield list(docstrings_of(tree))


def docstrings_of(node: ast.AST) -> Iterator[str]:
    if docstring := ast.get_docstring(node):
        yield docstring
    for child in node.body:
        if isinstance(child, _DOCUMENTED):
            yield from docstrings_of(child)


def prose(text: str) -> Iterator[str]:
    """The paragraphs that are mostly English words: no doctests, tables, grammars or signatures."""
    for paragraph in re.split(r"\n\s*\n", text.expandtabs()):
        words = paragraph.split()
        english = sum(bool(_WORD.fullmatch(word)) for word in words)
        if len(words) >= 6 and english >= 0.8 * len(words) and ">>>" not in paragraph:
            yield inspect.cleandoc(paragraph)
