"""The curves of a training run as a picture."""

import json
import os
from pathlib import Path
from typing import Any

from kerasllm.files import written_aside


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, one for each evaluation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object; it is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no metrics file at {path}.")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"Line {number} of {path} is not a JSON object: {line[:80]!r}")
        records.append(record)
    return records


def plot_curves(metrics_jsonl: str | os.PathLike, png: str | os.PathLike) -> None:
    """Draws training and validation loss against steps.

    Args:
        metrics_jsonl: what `JSONLLogger` wrote.
        png: the picture to write.

    Raises:
        ImportError: matplotlib is not installed.
        FileNotFoundError, ValueError: the file of metrics is missing, damaged, or has no losses.

    Example:

    ```python
    plot_curves("saved_models/mine/metrics.jsonl", "curves.png")
    ```
    """
    try:
        # Not pyplot: that keeps global state, and would look for a screen.
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Curves need matplotlib. Install it with: pip install 'kerasllm[plot]'") from None
    records = read_metrics(metrics_jsonl)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    last = []
    for key, label, color in (("loss", "training", "tab:blue"), ("val_loss", "validation", "tab:orange")):
        points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
        if points:
            # A point alone makes no line.
            axes.plot(*zip(*points), color=color, label=label, marker="o" if len(points) < 30 else None, ms=3)
            last.append(f"{label} {points[-1][1]:.3f}")
    if not last:
        raise ValueError(f"There is no loss to draw in {metrics_jsonl}.")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=f"At the end: {', '.join(last)}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with written_aside(png) as aside:
        figure.savefig(aside, format="png", dpi=150)
