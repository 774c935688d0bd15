"""Milliseconds a training step: kerasllm beside KerasHub, transformers and a plain PyTorch GPT, in one run.

A machine's speed drifts while it is measured, so the contenders take turns: each is a process kept alive,
and in every round each takes one burst of steps while the others wait. Ratios are taken within a round, and
medians over the rounds.
"""

import os
import random
import statistics
from pathlib import Path
from typing import Annotated, Any

import report
import typer
from peers import SHAPES, Shape
from process import Worker
from worker import CONTENDERS

STEPS = {"a": 40, "b": 3}  # a burst lasts one to three seconds on two cores
BASELINE = "plain"
COLUMNS = ("contender", "ms a step", "range", "÷ plain PyTorch", "÷ best peer of its backend")


def measure(names: list[str], shape: str, steps: int, rounds: int, threads: int, logs: Path) -> dict[str, Any]:
    """Milliseconds a step of each contender in each round; one that cannot run is reported and left out."""
    workers = []
    try:
        for name in names:
            try:
                log = logs / f"{name}-{shape}.log"
                workers.append(Worker(name, "worker.py", [name, shape, str(threads)], log))
            except RuntimeError as error:
                typer.secho(str(error), fg="red", err=True)
                continue
            ready = workers[-1].ready
            typer.echo(f"{name}: ready after {ready['ready_seconds']:.0f} s, loss {ready['loss']:.3f}")
        milliseconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
        for turn in range(rounds):
            # A new order each round, so that nobody always follows the same neighbour's warm or cold caches.
            for worker in random.Random(turn).sample(workers, len(workers)):
                milliseconds[worker.name].append(1000 * worker.ask(steps)["seconds"] / steps)
            typer.echo(f"round {turn + 1}: " + ", ".join(f"{name} {ms[-1]:.1f}" for name, ms in milliseconds.items()))
        return milliseconds
    finally:
        for worker in workers:
            worker.stop()


def ratio(milliseconds: dict[str, list[float]], name: str, reference: str | None) -> float | None:
    """Median over the rounds of one contender's time divided by another's in the same round."""
    if reference not in milliseconds:
        return None
    return statistics.median(
        ours / theirs for ours, theirs in zip(milliseconds[name], milliseconds[reference], strict=True)
    )


def summarise(milliseconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Each contender's median, its range, and its ratios to the plain GPT and to its backend's best peer.

    The peers are the libraries, KerasHub and transformers; the plain GPT is a yardstick of its own.
    """
    medians = {name: statistics.median(times) for name, times in milliseconds.items()}
    summary = {}
    for name in sorted(medians, key=medians.get):
        peers = [
            peer
            for peer in medians
            if CONTENDERS[peer].backend == CONTENDERS[name].backend
            and CONTENDERS[peer].library in ("kerashub", "transformers")
        ]
        best_peer = min(peers, key=medians.get, default=None)
        summary[name] = {
            "median_ms": medians[name],
            "ms": milliseconds[name],
            "over_plain": ratio(milliseconds, name, BASELINE),
            "best_peer": best_peer,
            "over_best_peer": ratio(milliseconds, name, best_peer),
        }
    return summary


def table(shape: Shape, summary: dict[str, dict[str, Any]]) -> tuple[str, tuple[str, ...], list[list[str]]]:
    """The title, columns and rows that both the terminal and the Markdown file show."""

    def times(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        [
            name,
            f"{row['median_ms']:.1f}",
            f"{min(row['ms']):.1f} to {max(row['ms']):.1f}",
            times(row["over_plain"]),
            times(row["over_best_peer"]),
        ]
        for name, row in summary.items()
    ]
    return shape.label, COLUMNS, rows


def main(
    shape: Annotated[str, typer.Option(help="a, b or all")] = "all",
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    steps: Annotated[int | None, typer.Option(min=1, help="steps a burst; chosen by shape if left out")] = None,
    contenders: Annotated[str, typer.Option(help="comma-separated names, or all")] = "all",
    threads: Annotated[int, typer.Option(min=1, help="the same for everybody")] = os.cpu_count() or 1,
    save: Annotated[bool, typer.Option(help="write benchmarks/results/")] = True,
) -> None:
    """Measure ms a training step of every contender, taking turns."""
    names = list(CONTENDERS) if contenders == "all" else contenders.split(",")
    shapes = list(SHAPES) if shape == "all" else [shape]
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise typer.BadParameter(f"unknown contenders {unknown}; there are {', '.join(CONTENDERS)}")
    if unknown := [name for name in shapes if name not in SHAPES]:
        raise typer.BadParameter(f"unknown shape {unknown}; there are {', '.join(SHAPES)} and all")

    logs = report.REPOSITORY / "build/benchmarks"
    logs.mkdir(parents=True, exist_ok=True)
    results, tables = {}, []
    for name in shapes:
        milliseconds = measure(names, name, steps or STEPS[name], rounds, threads, logs)
        results[name] = summarise(milliseconds)
        tables.append(table(SHAPES[name], results[name]))
        report.show(*tables[-1])
    if save:
        data = {"threads": threads, "rounds": rounds, "shapes": results}
        report.write("train_step", "Milliseconds a training step", tables, data)


if __name__ == "__main__":
    typer.run(main)
