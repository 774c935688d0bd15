"""Tokens a second: kerasllm's three backends beside KerasHub, transformers and llama.cpp, in one run.

A machine's speed drifts while it is measured, so the contestants take turns: each is a process kept alive, and in
every round each answers once while the others wait. The memory's bandwidth is measured in the same turns. Ratios are
taken within a round, and medians over the rounds.
"""

import os
import random
import time
from pathlib import Path
from typing import Annotated, Any

import decode_summary as summary
import report
import typer
from decode_shapes import KERASLLM, PEERS, WORKLOADS, Case, Workload
from decode_summary import Figures, Results
from process import Worker

BANDWIDTH = "bandwidth"
SECONDS = 1.0  # a turn lasts at least this long


class Run:
    """One run's settings, and what it finds out besides the figures.

    Attributes:
        bandwidths: bytes a second, one for each round of each case.
        left_out: (contestant, workload and case, reason) of what could not be measured.
    """

    def __init__(self, rounds: int, threads: int, timeout: float, toy: bool) -> None:
        self.rounds, self.threads, self.timeout, self.toy = rounds, threads, timeout, toy
        self.bandwidths: list[float] = []
        self.left_out: list[tuple[str, str, str]] = []
        self.logs = report.REPOSITORY / "build/benchmarks"
        self.logs.mkdir(parents=True, exist_ok=True)

    def leave_out(self, name: str, place: str, error: RuntimeError) -> None:
        typer.secho(str(error), fg="red", err=True)
        reason = str(error).strip().splitlines()[-1].removeprefix(f"{name}: ")
        self.left_out.append((name, place, reason.replace(f"{report.REPOSITORY}/", "")))

    def start(self, name: str, workload: str) -> Worker:
        arguments = [name, workload, str(self.threads), "toy" if self.toy else "full"]
        log = self.logs / f"decode-{workload}-{name}.log"
        return Worker(name, "decode_worker.py", arguments, log, self.timeout)

    def measure(self, workload: Workload, contestants: list[str]) -> dict[int, Figures]:
        """The figures of every case of a workload; who cannot take part is noted and left out."""
        workers: list[Worker] = []
        try:
            for contestant in (BANDWIDTH, *contestants):
                try:
                    workers.append(self.start(contestant, workload.name))
                except RuntimeError as error:
                    self.leave_out(contestant, workload.name, error)
            return {
                case.batch_size: self.measure_case(index, case, f"{workload.name}: {case.label}", workers)
                for index, case in enumerate(workload.cases)
            }
        finally:
            for worker in workers:
                worker.stop()

    def measure_case(self, index: int, case: Case, place: str, workers: list[Worker]) -> Figures:
        """The figures of one case: everybody compiles and warms up, then all take their turns."""
        taking_part, figures = {}, {}
        for worker in workers:
            if worker.process.poll() is not None:
                continue
            started = time.perf_counter()
            try:
                for _ in range(2):  # what compiles in the first call sometimes compiles again in the second
                    worker.ask({"case": index, "seconds": 0})
            except RuntimeError as error:
                self.leave_out(worker.name, place, error)
                continue
            typer.echo(f"{place}: {worker.name} ready after {time.perf_counter() - started:.1f} s")
            taking_part[worker.name], figures[worker.name] = worker, []
        for turn in range(self.rounds):
            # A new order each round, so that nobody always follows the same neighbour's warm or cold caches.
            for name in random.Random(turn).sample(sorted(taking_part), len(taking_part)):
                try:
                    figures[name].append(taking_part[name].ask({"case": index, "seconds": 0 if self.toy else SECONDS}))
                except RuntimeError as error:
                    self.leave_out(name, place, error)
                    del taking_part[name], figures[name]
            speeds = [
                f"{name} {rows[-1]['tokens_per_second']:.1f}" for name, rows in figures.items() if name != BANDWIDTH
            ]
            typer.echo(f"{place}, round {turn + 1}: " + ", ".join(speeds))
        self.bandwidths += [row["bytes_per_second"] for row in figures.pop(BANDWIDTH, [])]
        return figures


def choose(given: str, available: list[str], what: str) -> list[str]:
    """The names in a comma-separated option."""
    names = available if given == "all" else given.split(",")
    if unknown := [name for name in names if name not in available]:
        raise typer.BadParameter(f"unknown {what} {unknown}; there are {', '.join(available)} and all")
    return names


def write(workloads: dict[str, Workload], results: Results, run: Run, folder: Path) -> None:
    """Show the tables; write them, the figures and the chart into a folder."""
    bandwidth = max(run.bandwidths, default=None)
    tables = [
        summary.table(workload, case, results[name][case.batch_size], bandwidth)
        for name, workload in workloads.items()
        for case in workload.cases
    ]
    tables.append(summary.bars_table(results))
    if run.left_out:
        tables.append(("Left out", ("contestant", "case", "reason"), run.left_out))
    for content in tables:
        report.show(*content)
    notes = ["Toy models: these figures show only that everything runs."] if run.toy else []
    if bandwidth:
        notes.append(f"Memory bandwidth, the best of the same turns: {bandwidth / 1e9:.1f} GB/s.")
    if "ragged" in workloads:
        notes.append(summary.ragged_note(workloads["ragged"].cases[0]))
    notes.append("![tokens a second](decode.png)")
    data: dict[str, Any] = {
        "threads": run.threads,
        "rounds": run.rounds,
        "bandwidth": run.bandwidths,
        "left_out": run.left_out,
        "workloads": results,
    }
    report.write("decode", "Tokens a second, greedy decoding", tables, data, notes, folder)
    summary.draw(folder / "decode.png", workloads, results, bandwidth)
    typer.echo(f"written: {folder / 'decode.md'}")


def main(
    shapes: Annotated[str, typer.Option(help=f"comma-separated: {', '.join(WORKLOADS)}, or all")] = "all",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    contestants: Annotated[str, typer.Option(help="comma-separated names, or all")] = "all",
    threads: Annotated[int, typer.Option(min=1, help="the same for everybody")] = os.cpu_count() or 1,
    timeout: Annotated[float, typer.Option(min=1, help="seconds after which a silent contestant is killed")] = 600,
    quick: Annotated[
        bool, typer.Option("--quick", help="toy models and one round, into build/benchmarks: does it all run?")
    ] = False,
    save: Annotated[bool, typer.Option(help="write benchmarks/results/; without, build/benchmarks/")] = True,
) -> None:
    """Measure the tokens a second of every contestant, taking turns."""
    names = choose(contestants, [*KERASLLM, *PEERS], "contestants")
    chosen = choose(shapes, list(WORKLOADS), "shapes")
    workloads = {name: WORKLOADS[name].toy() if quick else WORKLOADS[name] for name in chosen}
    run = Run(1 if quick else rounds, threads, timeout, toy=quick)
    results = {
        name: run.measure(workload, [one for one in workload.contestants if one in names])
        for name, workload in workloads.items()
    }
    write(workloads, results, run, report.RESULTS if save and not quick else run.logs)


if __name__ == "__main__":
    typer.run(main)
