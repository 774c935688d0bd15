"""Ways of tuning a GPT-2 124M, side by side: trainable parameters, step time, peak memory, checkpoints; and quality.

Each way is a process of its own. Those that are compared take turns, as in train_step.py. Memory is what is resident,
less what the libraries took before there was a model, at rest (weights, and what compilers leave) and at the highest in
a step; allocators are told to give back what is freed, which they else keep, for everybody. Quality is of a small T5
that learns two tasks of unlike kinds. Each backend's figures are a file of their own, and quality another.
"""

import os
import random
import statistics
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import report
import typer
from process import Worker
from tuning_quality import TASKS
from tuning_worker import KERAS_HUB_LORA, KERAS_LORA, SHAPES

BACKENDS = ("tensorflow", "jax", "torch")
COMPARED = ("full", "lora", KERAS_LORA, KERAS_HUB_LORA)  # in turns; the time of the others is not compared
ALONE = ("qlora-int8", "qlora-int4", "dora", "adapter", "prompt", "prefix", "ia3", "bitfit", "last-n")
QUALITY = ("full", "lora", "adapter", "ia3", "bitfit")
STEPS = {"full": 2, "toy": 2}
MEGABYTE = 1e6
COLUMNS = (
    "method",
    "trained parameters",
    "ms a step",
    "range",
    "÷ full",
    "at rest, MB",
    "peak, MB",
    "÷ full",
    "checkpoint, MB",
)
BAR_COLUMNS = ("backend", "what", "figure", "bar", "")


class Bar(NamedTuple):
    """A ratio that should not be above a limit: `figure` of `method` over that of `reference`."""

    figure: str
    method: str
    reference: str
    limit: float


BARS = (
    Bar("step time", "lora", "full", 0.75),
    Bar("peak memory", "lora", "full", 0.5),
    Bar("step time", "lora", KERAS_LORA, 0.85),
    Bar("step time", "lora", KERAS_HUB_LORA, 0.85),
    Bar("peak memory", "qlora-int8", "lora", 0.6),
    Bar("peak memory", "qlora-int4", "lora", 0.6),
)
WITHIN, SWAP_MS = 0.98, 5.0  # of full fine-tuning's metric; milliseconds of a swap

Figures = dict[str, dict[str, Any]]  # method → what was measured


def measure(methods: list[str], backend: str, size: str, rounds: int, steps: int, threads: int, logs: Path) -> Figures:
    """The figures of methods that take turns; one that cannot run is reported and left out."""
    workers, figures = {}, {}
    try:
        for method in methods:
            log = logs / f"tuning-{backend}-{method}.log"
            try:
                worker = Worker(method, "tuning_worker.py", [method, backend, size, str(threads)], log)
            except RuntimeError as error:
                typer.secho(str(error), fg="red", err=True)
                continue
            workers[method] = worker
            figures[method] = {**worker.ready, "ms": []}
            typer.echo(f"{backend}, {method}: ready after {worker.ready['ready_seconds']:.0f} s")
        for turn in range(rounds):
            for method in random.Random(turn).sample(sorted(workers), len(workers)):
                figures[method]["ms"].append(1000 * workers[method].ask(steps)["seconds"] / steps)
        for method, worker in workers.items():
            figures[method] |= worker.ask(0)
            ms, peak = statistics.median(figures[method]["ms"]), figures[method]["bytes"] / MEGABYTE
            typer.echo(f"{backend}, {method}: {ms:.0f} ms a step, {peak:.0f} MB")
        return figures
    finally:
        for worker in workers.values():
            worker.stop()


def ratio(figures: Figures, figure: str, method: str, reference: str) -> float | None:
    """One method's step time (median of the rounds' ratios) or peak memory over another's."""
    if method not in figures or reference not in figures:
        return None
    ours, theirs = figures[method], figures[reference]
    if figure == "peak memory":
        return ours["bytes"] / theirs["bytes"]
    return statistics.median(a / b for a, b in zip(ours["ms"], theirs["ms"], strict=True))


def row_of(method: str, figures: Figures) -> list[str]:
    one = figures[method]
    over_full = [ratio(figures, figure, method, "full") for figure in ("step time", "peak memory")]
    time, memory = ("" if value is None else f"{value:.2f}" for value in over_full)
    return [
        method,
        f"{one['parameters']:,}",
        f"{statistics.median(one['ms']):.0f}",
        f"{min(one['ms']):.0f} to {max(one['ms']):.0f}",
        time,
        f"{one['rest_bytes'] / MEGABYTE:.0f}",
        f"{one['bytes'] / MEGABYTE:.0f}",
        memory,
        f"{one['checkpoint_bytes'] / MEGABYTE:.2f}",
    ]


def bar_rows(backend: str, figures: Figures) -> list[list[str]]:
    rows = []
    for bar in BARS:
        value = ratio(figures, bar.figure, bar.method, bar.reference)
        if value is not None:
            what = f"{bar.figure}, {bar.method} ÷ {bar.reference}"
            rows.append([backend, what, f"{value:.2f}", f"≤ {bar.limit}", "met" if value <= bar.limit else "missed"])
    return rows


def measure_quality(
    methods: list[str], backend: str, size: str, threads: int, logs: Path
) -> tuple[dict[str, Any], list[list[str]]]:
    """Each method's metric on each task and the swap's figures; and the rows about the bars."""
    worker = Worker(
        "quality", "tuning_quality.py", [backend, size, str(threads)], logs / f"tuning-quality-{backend}.log"
    )
    try:
        found: dict[str, Any] = {method: {} for method in methods}
        for method in methods:
            for task in TASKS:
                found[method][task] = worker.ask({"method": method, "task": task})["exact_match"]
                typer.echo(f"{backend}, {method}, {task}: {found[method][task]:.1%} right")
        rows = []
        if {"full", "lora"} <= found.keys():
            for task in TASKS:
                share = found["lora"][task] / max(found["full"][task], 1e-9)
                verdict = "met" if share >= WITHIN else "missed"
                rows.append([backend, f"{task}, lora ÷ full", f"{share:.3f}", f"≥ {WITHIN}", verdict])
            found["swap"] = swap = worker.ask({"swap": "lora"})
            verdict = "met" if swap["ms"] < SWAP_MS else "missed"
            rows.append([backend, "swap of adapters, ms", f"{swap['ms']:.2f}", f"< {SWAP_MS}", verdict])
            verdict = "met" if swap["compilations"] == 0 else "missed"
            rows.append([backend, "compilations of a swap", str(swap["compilations"]), "0", verdict])
        return found, rows
    finally:
        worker.stop()


def main(
    backends: Annotated[str, typer.Option(help="comma-separated")] = ",".join(BACKENDS),
    methods: Annotated[str, typer.Option(help="comma-separated, or all")] = "all",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    quality: Annotated[str, typer.Option(help="backend of the quality table; nothing for none")] = "tensorflow",
    threads: Annotated[int, typer.Option(min=1, help="the same for everybody")] = os.cpu_count() or 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="toy models and one round, into build/benchmarks: does it all run?")
    ] = False,
    save: Annotated[bool, typer.Option(help="write benchmarks/results/; without, build/benchmarks/")] = True,
) -> None:
    """Measure ways of tuning a model."""
    chosen = [*COMPARED, *ALONE] if methods == "all" else methods.split(",")
    if unknown := [name for name in chosen if name not in (*COMPARED, *ALONE)]:
        raise typer.BadParameter(f"unknown methods {unknown}; there are {', '.join((*COMPARED, *ALONE))}")
    logs = report.REPOSITORY / "build/benchmarks"
    logs.mkdir(parents=True, exist_ok=True)
    size, rounds = ("toy", 1) if quick else ("full", rounds)
    folder = report.RESULTS if save and not quick else logs
    notes = ["Toy models: these figures show only that everything runs."] if quick else []

    def write(name: str, title: str, table: tuple, bars: list, figures: dict) -> None:
        tables = [table, ("Bars", BAR_COLUMNS, bars)]
        for content in tables:
            report.show(*content)
        data = {"threads": threads, "rounds": rounds, "figures": figures}
        report.write(f"tuning-{name}", title, tables, data, notes, folder)
        typer.echo(f"written: {folder / f'tuning-{name}.md'}")

    for backend in filter(None, backends.split(",")):
        figures: Figures = {}
        # Those that are compared at once, the others one after another: memory is not for all.
        for group in ([m for m in chosen if m in COMPARED], *([m] for m in chosen if m in ALONE)):
            figures |= measure(group, backend, size, rounds, STEPS[size], threads, logs)
        table = (f"{SHAPES[size].label}, {backend}", COLUMNS, [row_of(name, figures) for name in figures])
        write(backend, f"Ways of tuning a model, {backend}", table, bar_rows(backend, figures), figures)
    if quality:
        names = [name for name in QUALITY if name in chosen]
        found, bars = measure_quality(names, quality, size, threads, logs)
        shares = [[name, *(f"{found[name][task]:.1%}" for task in TASKS)] for name in names]
        table = (f"Exact answers of a small T5, {quality}", ("method", *TASKS), shares)
        write("quality", "What tuned models can do", table, bars, found)


if __name__ == "__main__":
    typer.run(main)
