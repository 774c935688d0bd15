"""What the page shows: functions from values to HTML and SVG, the style, and the drawings in the browser."""

from pathlib import Path

FOLDER = Path(__file__).parent


def asset(name: str) -> str:
    """The text of a file in this folder."""
    return (FOLDER / name).read_text(encoding="utf-8")
