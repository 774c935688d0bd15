"""What the page accepts. Everything that comes from a browser is checked here, whatever the page itself allows."""

import math
from pathlib import Path

MAX_TEXT_CHARACTERS = 1_000_000
MAX_PROMPT_CHARACTERS = 2_000
MAX_UPLOAD_BYTES = 4 << 20
LEAST_TRAINING_CHARACTERS = 200
MAX_PARAMETERS = 5_000_000
MAX_RUNS = 8  # of one session, on disk
MAX_SESSIONS = 64  # in memory
MAX_WAITING_JOBS = 16
MAX_SHOWN_TOKENS = 64  # of attention; longer texts are shown in a window


def checked_prompt(text: object) -> str:
    """A prompt as it is.

    Raises:
        ValueError: it is no text, empty, or longer than `MAX_PROMPT_CHARACTERS`.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError("The prompt is empty. Write a few words for the model to read.")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"The prompt has {len(text):,} characters, and at most {MAX_PROMPT_CHARACTERS:,} are read. Shorten it."
        )
    return _encodable(text)


def checked_training_text(text: object) -> str:
    """A text to train on.

    Raises:
        ValueError: it is no text, too short to learn from, or too long.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError("There is no text to train on. Paste one, upload a .txt file, or take the built-in text.")
    if len(text) < LEAST_TRAINING_CHARACTERS:
        raise ValueError(
            f"The text has {len(text):,} characters. Training needs at least {LEAST_TRAINING_CHARACTERS}; "
            "a few pages are better."
        )
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ValueError(
            f"The text has {len(text):,} characters, and the playground takes {MAX_TEXT_CHARACTERS:,}. "
            "Shorten it, or train with `kerasllm train --data`, which has no limit."
        )
    return _encodable(text)


def read_upload(path: object) -> str:
    """The text of an uploaded file.

    Raises:
        ValueError: it is too large, or not UTF-8 text.
    """
    path = Path(str(path))
    size = path.stat().st_size
    if size > MAX_UPLOAD_BYTES:
        raise ValueError(f"The file has {size / 1e6:.1f} MB, and at most {MAX_UPLOAD_BYTES / 1e6:.1f} MB are read.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The file is not UTF-8 text: byte {error.start} cannot be read. Save it as plain text in UTF-8."
        ) from None
    if "\0" in text:
        raise ValueError("The file holds zero bytes, so it is not text. Save it as plain text in UTF-8.")
    return checked_training_text(text)


def number(name: str, value: object, least: float, most: float, whole: bool = False) -> float:
    """A number in a range.

    Raises:
        ValueError: it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not least <= value <= most:
        raise ValueError(f"`{name}` must be from {least:g} to {most:g}. Received: {name}={value:g}")
    if whole and value != int(value):
        raise ValueError(f"`{name}` must be a whole number. Received: {name}={value:g}")
    return int(value) if whole else float(value)


def one_of(name: str, value: object, choices) -> str:
    """One of some words.

    Raises:
        ValueError: it is another.
    """
    if value not in tuple(choices):
        raise ValueError(f"`{name}` must be one of {', '.join(map(str, choices))}. Received: {str(value)[:80]!r}")
    return value


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"The text has half a character at place {error.start}. Paste it again.") from None
    return text
