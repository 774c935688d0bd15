"""Another checkout of this repository beside this one: is a training step or decoding slower, is more compiled?

`python benchmarks/two_versions.py CHECKOUT [--rounds 9]`, CHECKOUT being where the version to compare with is checked
out, such as `git worktree add ../before COMMIT` made it. Each contender is a process of its own; both take turns.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from process import Worker

HERE = Path(__file__).resolve().parents[1]
BACKENDS = ("tensorflow", "jax", "torch")


class Version(Worker):
    """A worker that runs the scripts and the library of a checkout."""

    def __init__(self, checkout: Path, script: str, arguments: list[str], log: Path) -> None:
        self.checkout = checkout
        super().__init__(str(checkout), str(checkout / "benchmarks" / script), arguments, log, limit=600)

    def ask_seconds(self, request: Any) -> float:
        """Seconds, or the inverse of a rate: more is slower."""
        answer = self.ask(request)
        return answer["seconds"] if "seconds" in answer else 1 / answer["tokens_per_second"]


def compare(checkouts: list[Path], script: str, arguments: list[str], request: Any, rounds: int) -> list[float]:
    """This version's seconds ÷ the other's, once a round; who begins takes turns, too."""
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for i, checkout in enumerate(checkouts):
            os.environ["PYTHONPATH"] = str(checkout)
            workers.append(Version(checkout, script, arguments, Path(folder) / f"{i}.log"))
        ratios = []
        for number in range(rounds):
            seconds = {}
            for which in (0, 1) if number % 2 else (1, 0):
                seconds[which] = workers[which].ask_seconds(request)
            ratios.append(seconds[0] / seconds[1])
        for worker in workers:
            worker.stop()
    return ratios


def compilations(checkout: Path, backend: str) -> str:
    """What `fit`, `evaluate` and `generate` of a small model compile, as compile_count.py of this version counts it."""
    import subprocess

    environment = {**os.environ, "PYTHONPATH": str(checkout), "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(HERE / "benchmarks" / "compile_count.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="where the other version is checked out")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default: %(default)s)")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="only this one; may be repeated")
    parser.add_argument("--124m", dest="large", action="store_true", help="decode GPT-2 124M, too")
    options = parser.parse_args()
    checkouts, threads = [HERE, options.checkout.resolve()], str(os.cpu_count() or 1)
    print("| | this ÷ other, seconds: median | least to most | compiled here, there |\n|---|---|---|---|")
    for backend in options.backend or BACKENDS:
        counts = ", ".join(compilations(checkout, backend) for checkout in checkouts)
        step = compare(checkouts, "worker.py", [f"kerasllm-{backend}", "a", threads], 40, options.rounds)
        rows = [("training step, 4 x 128", step, counts)]
        for workload in ("tiny", *(["124m"] if options.large else [])):
            arguments, request = [f"kerasllm-{backend}", workload, threads, "full"], {"case": 0, "seconds": 2}
            ratios = compare(checkouts, "decode_worker.py", arguments, request, options.rounds)
            rows.append((f"decode, {workload}, batch 1", ratios, ""))
        for name, ratios, count in rows:
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            print(f"| {backend}, {name} | {statistics.median(ratios):.3f} | {spread} | {count} |", flush=True)


if __name__ == "__main__":
    main()
