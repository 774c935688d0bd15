"""The text to train on when there is none of one's own."""

from pathlib import Path

CHARACTERS = 300_000
DATES = "builtin:dates"


def builtin_text(folder: Path) -> Path:
    """A file with part of the documentation that comes with Python; written the first time, which takes seconds."""
    from kerasllm.data import read_texts
    from kerasllm.files import written_aside

    path = Path(folder) / "python-docs.txt"
    if not path.is_file():
        # Every few documents, so that it is not all about modules that begin with A.
        texts = [text for number, text in enumerate(read_texts("builtin:pydoc")) if number % 5 == 0]
        with written_aside(path) as aside:
            aside.write_text("\n\n".join(texts)[:CHARACTERS], encoding="utf-8")
    return path
