"""Run the suite once under each backend, with one summary: `python tests/run_all.py [-- PYTEST ARGUMENTS]`.

Each backend has processes of its own, since Keras fixes its backend at import; several, since a process keeps every
function it ever compiled. Two run at a time, each with one thread on two cores: small models spend their time in Python
and in compilers, where a second thread helps little.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

REPOSITORY = Path(__file__).resolve().parent.parent
BACKENDS = ("tensorflow", "jax", "torch")  # the last, which compiles least, also runs what needs only one
PARTS = 4  # of each backend's files
TAIL_LINES = 25
NO_TESTS_COLLECTED = 5  # pytest's exit status
print_lock = threading.Lock()


@dataclass
class Outcome:
    """What one process's tests came to."""

    backend: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))


def environment(backend: str, threads: int) -> dict[str, str]:
    """This process's environment with the backend and its thread pools set."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(pools, str(threads)),
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "true",  # TensorFlow's own keeps the most that there ever was
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "90",
    }


def run(backend: str, pytest_arguments: list[str], threads: int) -> Outcome:
    """Run pytest under `backend`, showing lines as they come."""
    outcome = Outcome(backend)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", "--durations=5", "-rfE"]
        process = subprocess.Popen(
            command + pytest_arguments,
            cwd=REPOSITORY,
            env=environment(backend, threads),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for line in process.stdout:
            outcome.tail.append(line.rstrip())
            with print_lock:
                print(f"{backend:>10} | {line.rstrip()}", flush=True)
        status = process.wait()
        count(report, outcome)
    if status not in (0, NO_TESTS_COLLECTED):
        outcome.failed = max(outcome.failed, 1)  # a crash or a usage error leaves no failed test to count
    outcome.seconds = time.perf_counter() - started
    return outcome


def count(report: Path, outcome: Outcome) -> None:
    """Add the numbers of pytest's XML report, which a run that crashed may not have written."""
    if not report.exists():
        return
    for suite in ElementTree.parse(report).iter("testsuite"):
        tests, failures, errors, skipped = (
            int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
        )
        outcome.failed += failures + errors
        outcome.skipped += skipped
        outcome.passed += tests - failures - errors - skipped


def jobs_of(backends: list[str], pytest_arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Backend and pytest's arguments of each process; long ones first."""
    once, each = ["-m", "one_backend"], ["-m", "not one_backend"]
    if pytest_arguments:
        last = backends[-1]
        return [(name, pytest_arguments if name == last else [*each, *pytest_arguments]) for name in backends]
    files = [str(path.relative_to(REPOSITORY)) for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))]
    parts = [files[first::PARTS] for first in range(PARTS)]
    *others, last = backends
    work = [(name, [*each, *part]) for name in others for part in parts]
    return [*work, (last, once), *((last, [*each, *part]) for part in parts)]


def summarise(outcomes: list[Outcome]) -> int:
    """Print the tails of what failed, the table and the closing line; return the exit status."""
    for outcome in outcomes:
        if outcome.failed:
            print(f"\n--- {outcome.backend} " + "-" * 60)
            print("\n".join(outcome.tail))
    print(f"\n{'backend':<12}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    names = ("passed", "failed", "skipped", "seconds")
    for backend in dict.fromkeys(outcome.backend for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.backend == backend]
        passed, failed, skipped, seconds = (sum(getattr(outcome, name) for outcome in mine) for name in names)
        print(f"{backend:<12}{passed:>8}{failed:>8}{skipped:>9}{seconds:>9.0f}")
    passed, failed, skipped, _ = (sum(getattr(outcome, name) for outcome in outcomes) for name in names)
    if not passed and not failed:
        print("\nNo test ran.")
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed or not passed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="only this one; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: %(default)s)")
    parser.add_argument("pytest_arguments", nargs="*", metavar="-- ARGUMENT", help="passed on to pytest")
    options = parser.parse_args()
    backends = list(dict.fromkeys(options.backend or BACKENDS))
    work = jobs_of(backends, options.pytest_arguments)
    jobs = max(1, min(options.jobs, len(work), os.cpu_count() or 1))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(run, backend, arguments, threads) for backend, arguments in work]
        outcomes = [future.result() for future in runs]
    return summarise(outcomes)


if __name__ == "__main__":
    sys.exit(main())
