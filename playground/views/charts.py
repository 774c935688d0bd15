"""Charts as SVG: drawn on the server, coloured by the page's style, sized by the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 680, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 26, 26, 34
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, its (x, y) points, and the style's class that colours it."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line-a"


def curve(lines: Sequence[Line], x_name: str, y_name: str, best: tuple[float, float] | None = None, x_end: float = 0):
    """Lines over a common axis.

    Args:
        lines: to draw; those without points are only in the legend.
        x_name, y_name: with units.
        best: a point to mark.
        x_end: how far the axis goes at the least, so that a line can grow into it.
    """
    points = [p for line in lines for p in line.points if all(map(math.isfinite, p))]
    x_most = max([x_end, 1, *(x for x, _ in points)])
    low, high = min([y for _, y in points], default=0), max([y for _, y in points], default=1)
    ticks_y = ticks(low, high)
    low, high = min(low, ticks_y[0]), max(high, ticks_y[-1])

    def place(x, y):
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / x_most
        up = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (high - low))
        return f"{across:.1f},{up:.1f}"

    parts = []
    for value in ticks_y:
        y = place(0, value).split(",")[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y}" text-anchor="end" dy="0.32em">{value:g}</text>')
    for value in ticks(0, x_most):
        if value <= x_most:
            x = place(value, low).split(",")[0]
            text = f"{value:,.0f}" if value == int(value) else f"{value:g}"
            parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>')
    for line in lines:
        kept = _thinned([p for p in line.points if all(map(math.isfinite, p))])
        if len(kept) > 1:
            parts.append(f'<polyline class="{line.style}" points="{" ".join(place(*p) for p in kept)}"/>')
        if len(kept) <= 40:
            for p in kept:
                x, y = place(*p).split(",")
                parts.append(f'<circle class="dot {line.style}" cx="{x}" cy="{y}" r="2.6"/>')
    if best is not None:
        x, y = place(*best).split(",")
        parts.append(f'<circle class="best" cx="{x}" cy="{y}" r="6"/>')
        # A low point at the right end: the words go to where there is room.
        anchor = "end" if best[0] > 0.6 * x_most else "start"
        shift = -10 if anchor == "end" else 10
        parts.append(
            f'<text class="best-name" x="{float(x) + shift:.1f}" y="{float(y) - 10:.1f}" text-anchor="{anchor}">'
            f"best {best[1]:.3f} at {best[0]:,.0f}</text>"
        )
    parts.append(
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_name)}</text>'
        f'<text class="axis" x="4" y="10">{escape(y_name)}</text>'
    )
    legend = "".join(f'<span class="key {line.style}">{escape(line.name)}</span>' for line in lines)
    names = ", ".join(line.name for line in lines)
    return (
        f'<figure class="chart"><figcaption class="legend">{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y_name} over {x_name}: {names}")}">'
        f"{''.join(parts)}</svg></figure>"
    )


def bars(rows: Sequence[tuple[str, float, bool]], unit: str = "%") -> str:
    """Horizontal bars: (name, share from 0 to 1, whether it is kept); those that are not kept are faint."""
    most = max([share for _, share, _ in rows], default=1) or 1
    items = "".join(
        f'<li class="{"" if kept else "cut"}"><span class="bar-name">{visible(name)}</span>'
        f'<span class="bar-track"><span class="bar" style="width:{100 * share / most:.1f}%"></span></span>'
        f'<span class="bar-value">{100 * share:.1f} {unit}</span></li>'
        for name, share, kept in rows
    )
    return f'<ol class="bars">{items}</ol>'


def scatter(points: Sequence[tuple[float, float, str]], note: str) -> str:
    """Named points in a plane, whose axes have no unit."""
    if not points:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    spread = max(max(xs) - min(xs), max(ys) - min(ys), 1e-9)

    def place(x, y):
        return 40 + 600 * (x - min(xs)) / spread, 20 + 300 * (y - min(ys)) / spread

    parts = []
    for x, y, name in points:
        across, up = place(x, y)
        parts.append(f'<circle class="dot line-a" cx="{across:.1f}" cy="{up:.1f}" r="3"/>')
        parts.append(f'<text class="tick" x="{across + 5:.1f}" y="{up:.1f}" dy="0.32em">{visible(name)}</text>')
    height = 40 + 300 * (max(ys) - min(ys)) / spread
    return (
        f'<figure class="chart"><svg viewBox="0 0 720 {height:.0f}" role="img" aria-label="{escape(note)}">'
        f'{"".join(parts)}</svg><figcaption class="note">{escape(note)}</figcaption></figure>'
    )


def ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers around a range."""
    if high - low < max(abs(high) * 1e-3, 1e-9):
        low, high = low - max(abs(low), 1) / 2, high + max(abs(high), 1) / 2
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= 6)
    first = math.floor(low / step)
    return [round((first + i) * step, 10) for i in range(math.ceil(high / step) - first + 1)]


def visible(token: str) -> str:
    """A token with its blanks to be seen, escaped."""
    shown = token.replace("Ġ", "␣").replace("▁", "␣").replace("Ċ", "⏎").replace("\n", "⏎").replace(" ", "␣")
    return escape(shown) or "∅"


def _thinned(points: list) -> list:
    stride = -(-len(points) // MOST_POINTS) or 1
    return points[::-1][::stride][::-1]
