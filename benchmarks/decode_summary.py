"""What decode.py makes of its figures: medians, ratios within a round, the bars, tables and a chart."""

import statistics
from pathlib import Path
from typing import Any

from decode_shapes import (
    BARS,
    RAGGED_SLOTS,
    STATIC,
    Bar,
    Case,
    Workload,
    ragged_lengths,
    scheduled_steps,
    static_lengths,
)
from report import TableContent

Figures = dict[str, list[dict[str, float]]]  # of each contestant in one case, in each round
Results = dict[str, dict[int, Figures]]  # by workload, then by batch size

COLUMNS = ("contestant", "tokens/s", "range", "first token, ms", "of the bandwidth limit", "peak memory, MB")
RAGGED_COLUMNS = (
    "contestant",
    "tokens/s",
    "range",
    *(column for reference in STATIC for column in (f"{reference}, tokens/s", "ratio")),
    "peak memory, MB",
)
BAR_COLUMNS = ("case", "kerasllm", "reference", "ratio", "bar", "")
COLORS = {"kerasllm": "#1f6fb2", "kerashub": "#d9822b", "transformers": "#7a7a7a", "llama.cpp": "#4c9f50"}


def rates(rows: list[dict[str, float]], key: str = "tokens_per_second") -> list[float]:
    return [row[key] for row in rows]


def ratio(figures: Figures, name: str, reference: str) -> float | None:
    """Median over the rounds of one contestant's tokens a second over another's in the same round."""
    if reference in STATIC:
        theirs = rates(figures.get(name, []), reference)
    else:
        theirs = rates(figures.get(reference, []))
    ours = rates(figures.get(name, []))
    if not ours or not theirs:
        return None
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def limit(workload: Workload, case: Case, bandwidth: float) -> float:
    """Tokens a second if a step took no longer than reading the weights once."""
    return case.batch_size * bandwidth / workload.bytes_a_step


def row_of(name: str, figures: Figures, fastest: float | None) -> list[str]:
    """One contestant's row; `fastest` is the limit, or `None` where it is not known or makes no sense."""
    rows = figures[name]
    made = rates(rows)
    median = statistics.median(made)
    row = [name, f"{median:.1f}", f"{min(made):.1f} to {max(made):.1f}"]
    is_ragged = next(iter(STATIC)) in rows[0]
    if is_ragged:
        for reference in STATIC:
            static = statistics.median(rates(rows, reference))
            row += [f"{static:.1f}", f"{ratio(figures, name, reference):.2f}"]
    else:
        waits = rates(rows, "first_token_seconds") if "first_token_seconds" in rows[0] else []
        row += [f"{1000 * statistics.median(waits):.1f}" if waits else ""]
        row += [f"{median / fastest:.0%}" if fastest else ""]
    return [*row, f"{max(rates(rows, 'peak_bytes')) / 1e6:.0f}"]


def table(workload: Workload, case: Case, figures: Figures, bandwidth: float | None) -> TableContent:
    """The title, columns and rows of one case, fastest first."""
    fastest = limit(workload, case, bandwidth) if bandwidth and not case.ragged else None
    names = sorted(figures, key=lambda name: -statistics.median(rates(figures[name])))
    columns = RAGGED_COLUMNS if case.ragged else COLUMNS
    return f"{workload.label}, {case.label}", columns, [row_of(name, figures, fastest) for name in names]


def verdict(bar: Bar, results: Results) -> list[str]:
    """One row of the table of bars."""
    found = ratio(results.get(bar.workload, {}).get(bar.batch_size, {}), bar.contestant, bar.reference)
    place = bar.workload if bar.reference in STATIC else f"{bar.workload}, batch {bar.batch_size}"
    row = [place, bar.contestant, bar.reference]
    if found is None:
        return [*row, "", f"{bar.factor}", "not measured"]
    return [*row, f"{found:.2f}", f"{bar.factor}", "met" if found >= bar.factor else "**missed**"]


def bars_table(results: Results) -> TableContent:
    """Every bar whose workload was run."""
    return "Bars", BAR_COLUMNS, [verdict(bar, results) for bar in BARS if bar.workload in results]


def ragged_note(case: Case) -> str:
    """What the draw of lengths allows, were every step to take the same time."""
    lengths = ragged_lengths(case)
    static, scheduled = sum(static_lengths(lengths, RAGGED_SLOTS)), scheduled_steps(lengths)
    least = max(max(lengths), -(-sum(lengths) // RAGGED_SLOTS))
    return (
        f"Ragged: {case.batch_size} requests of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all, in "
        f"{RAGGED_SLOTS} slots. Static batches of as many take {static} steps; joining in the order of arrival takes "
        f"{scheduled}, and no order fewer than {least}. Were all steps alike, that would be ratios of "
        f"{static / scheduled:.2f} and {static / least:.2f}."
    )


def draw(path: Path, workloads: dict[str, Workload], results: Results, bandwidth: float | None) -> None:
    """A PNG with a panel for each case: tokens a second of each contestant, and the limit where it is near.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('The chart needs matplotlib: `pip install "kerasllm[plot]"`') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (workloads[name], case, results[name][case.batch_size])
        for name in results
        for case in workloads[name].cases
        if results[name].get(case.batch_size)
    ]
    if not panels:
        return
    rows = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(13, 3.3 * rows), squeeze=False, layout="constrained")
    for axis, (workload, case, figures) in zip(axes.flat, panels, strict=False):
        draw_panel(axis, workload, case, figures, bandwidth)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.suptitle("Greedy decoding in float32: median tokens a second, range over the rounds")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_panel(axis: Any, workload: Workload, case: Case, figures: Figures, bandwidth: float | None) -> None:
    bars = {name: (rates(rows), COLORS[name.partition("-")[0]]) for name, rows in figures.items()}
    if case.ragged:
        for name, rows in figures.items():
            bars.update({f"{name}, {reference}": (rates(rows, reference), "#a9c8e2") for reference in STATIC})
    names = sorted(bars, key=lambda name: statistics.median(bars[name][0]))
    for place, name in enumerate(names):
        made, color = bars[name]
        median = statistics.median(made)
        spread = [[median - min(made)], [max(made) - median]]
        axis.barh(place, median, color=color, xerr=spread, error_kw={"ecolor": "#333333", "capsize": 2})
        axis.annotate(f"{median:,.0f}", (max(made), place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    largest = max(max(made) for made, _ in bars.values())
    axis.set_xlim(0, 1.18 * largest)
    fastest = limit(workload, case, bandwidth) if bandwidth and not case.ragged else None
    if fastest and fastest < 2 * largest:
        axis.set_xlim(0, max(1.18 * largest, 1.05 * fastest))
        axis.axvline(fastest, color="#b03030", linestyle="--", linewidth=1)
        axis.annotate(
            "bandwidth limit",
            (fastest, 0),
            (-4, 0),
            textcoords="offset points",
            color="#b03030",
            fontsize=8,
            rotation=90,
            va="bottom",
            ha="right",
        )
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_title(f"{workload.label}\n{case.label}", fontsize=10)
    axis.set_xlabel("tokens/s", fontsize=9)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.spines[["top", "right"]].set_visible(False)
