"""Tokens as coloured chips."""

from collections.abc import Sequence
from html import escape

from playground.views.charts import visible

COLOURS = 6


def chips(tokens: Sequence[str], ids: Sequence[int] | None = None, clickable: bool = False) -> str:
    """Tokens in a row, with their ids below. A chip that can be clicked has its place in `data-place`."""
    items = []
    for place, token in enumerate(tokens):
        below = f"<small>{ids[place]}</small>" if ids is not None else ""
        name, more = ("button", f' type="button" data-place="{place}"') if clickable else ("span", "")
        items.append(f'<{name} class="chip chip-{place % COLOURS}"{more}><b>{visible(token)}</b>{below}</{name}>')
    return f'<div class="chips" dir="auto">{"".join(items)}</div>'


def written(pieces: Sequence[dict], prompt: str, chosen: int | None = None) -> str:
    """A prompt, and the tokens written after it: each is coloured by its probability, and can be clicked.

    Args:
        pieces: a dict a token, with "text" and "probability".
        prompt: what was there before.
        chosen: the place of the token whose alternatives are open.
    """
    items = []
    for place, piece in enumerate(pieces):
        sure = min(4, int(piece["probability"] * 5))
        mark = " is-chosen" if place == chosen else ""
        items.append(
            f'<span role="button" tabindex="0" class="token sure-{sure}{mark}" data-place="{place}" '
            f'title="{piece["probability"]:.1%}">{escape(piece["text"]) or "∅"}</span>'
        )
    return f'<div class="written" dir="auto"><span class="prompt">{escape(prompt)}</span>{"".join(items)}</div>'


def alternatives(rows: Sequence[tuple[str, int, float]], place: int) -> str:
    """What else could have stood at a place: (token, id, probability); each can be clicked to go on from."""
    most = max([p for _, _, p in rows], default=1) or 1
    items = "".join(
        f'<li><button type="button" class="branch" data-place="{place}" data-token="{token_id}">'
        f'<span class="bar-name">{visible(token)}</span>'
        f'<span class="bar-track"><span class="bar" style="width:{100 * p / most:.1f}%"></span></span>'
        f'<span class="bar-value">{p:.1%}</span></button></li>'
        for token, token_id, p in rows
    )
    return f'<ol class="bars branches">{items}</ol>'
