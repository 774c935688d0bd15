"""What functions of the standard library do, in a sentence, and their names: positives for text embeddings."""

import ast
import functools
import re
from collections.abc import Iterator

from kerasllm.data.tasks.library import library_modules
from kerasllm.data.tasks.split import names_in_part

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def docstring_pairs(part: str = "train") -> list[tuple[str, str]]:
    """Pairs of the first sentence of a function's docstring and the function's qualified name in words.

    From the running Python's standard library: functions and methods of modules, such as `("Recursively copy a
    directory tree and return the destination directory.", "shutil copytree")`. The rules:

    - the sentence is the first of the first paragraph, on one line, and has at least three words;
    - a docstring that begins with the function's name, or with a call (a signature: "splitext(p) -> ..."), is left
      out, so that the pairs are more than strings that match;
    - names are split at dots, underscores and capitals, and are in lower case;
    - a sentence or a name comes once, with the first function in order of modules that has it;
    - each module is in one part; one in five is held out.

    Args:
        part: `"train"` or `"validation"`.

    Returns:
        List of `(sentence, name)`, in the order of the modules.

    Raises:
        ValueError: there is no such part.

    Example:

    ```python
    for sentence, name in docstring_pairs("validation")[:5]:
        print(name, "←", sentence)
    ```
    """
    rows = _all_pairs()
    chosen = names_in_part(part, [module for module, _, _ in rows])
    return [(sentence, name) for (_, sentence, name), is_chosen in zip(rows, chosen) if is_chosen]


@functools.cache  # both parts are read together, and reading takes seconds
def _all_pairs() -> list[tuple[str, str, str]]:
    """`(module, sentence, name in words)`, each sentence and each name once."""
    rows, seen = [], set()
    for module, _, tree in library_modules():
        for qualified_name, docstring in _functions_of(tree, module):
            sentence, name = _first_sentence(docstring), _in_words(qualified_name)
            if len(sentence.split()) < 3 or _begins_with_name(sentence, qualified_name):
                continue
            if sentence not in seen and name not in seen:
                rows.append((module, sentence, name))
                seen.update((sentence, name))
    return rows


def _functions_of(node: ast.AST, scope: str) -> Iterator[tuple[str, str]]:
    """`(qualified name, docstring)` of functions, and of classes' methods; not of functions inside functions."""
    for child in node.body:
        if isinstance(child, _FUNCTIONS) and (docstring := ast.get_docstring(child)):
            yield f"{scope}.{child.name}", docstring
        elif isinstance(child, ast.ClassDef):
            yield from _functions_of(child, f"{scope}.{child.name}")


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(re.split(r"\n\s*\n", docstring)[0].split())
    return _SENTENCE_END.split(paragraph)[0]


def _begins_with_name(sentence: str, qualified_name: str) -> bool:
    """Whether the first word is `name`, `Class.name`, ... or a call, of whatever name."""
    word = sentence.split()[0].strip("`*'\":,")
    return bool(re.match(r"[\w.]+\(", word)) or f".{qualified_name}".endswith(f".{word}")


def _in_words(qualified_name: str) -> str:
    return " ".join(_NAME_WORD.findall(qualified_name)).lower()
