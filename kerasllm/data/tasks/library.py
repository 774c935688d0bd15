"""The modules of the running Python's standard library: parsed, never imported, so nothing in them runs."""

import ast
import sysconfig
from collections.abc import Iterator
from importlib.util import decode_source
from pathlib import Path

from kerasllm.data.pydoc_corpus import SKIPPED_FOLDERS


def library_modules() -> Iterator[tuple[str, str, ast.Module]]:
    """`(dotted name, text, syntax tree)` of each module, always in the same order; tests are left out.

    Raises:
        FileNotFoundError: this Python came without its library's source files.

    Example:

    ```python
    names = [name for name, _, _ in library_modules()]
    ```
    """
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(folder.rglob("*.py"))
    if not paths:
        raise FileNotFoundError(f"Python's standard library is not here as source files. Received: {folder}")
    for path in paths:
        parts = path.relative_to(folder).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts):
            try:
                text = decode_source(path.read_bytes())
                tree = ast.parse(text)
            except (SyntaxError, ValueError, OSError):
                continue
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), text, tree
