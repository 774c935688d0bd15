"""Small pieces of HTML. All text from outside is escaped here."""

from collections.abc import Iterable, Mapping
from html import escape

DASH = "\u2013"


def hint(title: str, text: str) -> str:
    """The line at the top of a tab that says what can be done here."""
    return f'<div class="hint"><strong>{escape(title)}</strong> {escape(text)}</div>'


def empty(title: str, text: str) -> str:
    """What stands where there is nothing yet, or where a panel does not apply."""
    return f'<div class="empty"><strong>{escape(title)}</strong><p>{escape(text)}</p></div>'


def error(title: str, text: str) -> str:
    """What went wrong, and what to do."""
    return f'<div class="notice" role="alert"><strong>{escape(title)}</strong><p>{escape(text)}</p></div>'


def facts(values: Mapping[str, object]) -> str:
    """Figures with their names, in a row."""
    cells = "".join(
        f'<div class="fact"><span class="fact-name">{escape(name)}</span>'
        f'<span class="fact-value">{escape(str(value))}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="facts">{cells}</div>'


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], note: str = "") -> str:
    """A table whose first column is text and whose others are figures."""
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f'<p class="note">{escape(note)}</p>' if note else ""
    rows = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="figures">{rows}</table></div>{caption}'


def heading(text: str, note: str = "") -> str:
    """A heading inside a tab."""
    small = f'<span class="note">{escape(note)}</span>' if note else ""
    return f'<h3 class="panel-title">{escape(text)} {small}</h3>'


def samples(pairs: Iterable[tuple[int, str]], muted: bool = False) -> str:
    """What the model wrote at steps, the newest first."""
    items = "".join(
        f'<li><span class="sample-step">step {step:,}</span>'
        f'<span class="sample-text" dir="auto">{escape(text)}</span></li>'
        for step, text in pairs
    )
    return f'<ol class="samples{" muted" if muted else ""}">{items}</ol>'


def pair(left: str, right: str) -> str:
    """Two pieces of HTML side by side."""
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A figure as people read it; a dash for none."""
    if value is None:
        return DASH
    return f"{value:,.{digits}f}{unit}"


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 2 min 05 s."""
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60} min {seconds % 60:02d} s"
