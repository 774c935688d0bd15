"""Jobs: what takes long runs in a process of its own, one at a time.

A process is the simplest thing that can be stopped within a second whatever it is doing, that keeps its memory and its
errors to itself, and that does not care whether anybody still looks at the page.
"""

import collections
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from playground.limits import MAX_WAITING_JOBS

POLITE_SECONDS = 0.7  # between asking a process to stop and ending it
TICK_SECONDS = 0.05
ACTIVE = ("queued", "running", "stopping")
LOG_BYTES = 20_000


class Job:
    """One piece of work.

    Attributes:
        owner: key of the session that asked for it.
        kind: of work, a key of `playground.worker.WORK`.
        title: for people.
        folder: where the process writes: `log.txt`, `result.json`, `failed.json`.
        arguments: of the work, as JSON can hold it.
        seconds: after which it is stopped.
        state: "queued", "running", "stopping", "done", "stopped", "failed".
        message: what went wrong, in words.
    """

    counter = itertools.count(1)

    def __init__(self, owner: str, kind: str, title: str, folder: Path, arguments: dict, seconds: float):
        self.number = next(Job.counter)
        self.owner, self.kind, self.title = owner, kind, title
        self.folder, self.arguments, self.seconds = Path(folder), arguments, seconds
        self.state, self.message, self.result = "queued", "", None
        self.started = self.ended = None
        self.stop_asked = threading.Event()

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def elapsed(self) -> float:
        """Seconds since it started."""
        return 0.0 if self.started is None else (self.ended or time.monotonic()) - self.started


class Jobs:
    """The queue of the one device. Each session has at most one job that waits or runs.

    Args:
        environment: of the processes, beside this one's.
    """

    def __init__(self, environment: dict[str, str] | None = None):
        self.environment = {**os.environ, **(environment or {})}
        self._waiting: collections.deque[Job] = collections.deque()
        self._latest: collections.OrderedDict[str, Job] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Puts a job at the end of the queue.

        Raises:
            ValueError: its session has one already, or the queue is full.
        """
        with self._changed:
            before = self._latest.get(job.owner)
            if before is not None and before.is_active:
                raise ValueError(f"“{before.title}” is still {before.state}. Stop it, or wait until it is done.")
            if len(self._waiting) >= MAX_WAITING_JOBS:
                raise ValueError(f"{len(self._waiting)} jobs are waiting, which is all there is room for. Try later.")
            self._waiting.append(job)
            self._latest.pop(job.owner, None)
            self._latest[job.owner] = job
            for owner in [o for o, j in self._latest.items() if not j.is_active][: -4 * MAX_WAITING_JOBS]:
                del self._latest[owner]
            self._changed.notify_all()
        return job

    def latest(self, owner: str) -> Job | None:
        """The newest job of a session, finished or not."""
        return self._latest.get(owner)

    def place(self, job: Job) -> int:
        """How many jobs are before it."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    def stop(self, owner: str) -> None:
        """Stops what a session has waiting or running; the process is gone within a second."""
        job = self._latest.get(owner)
        if job is None or not job.is_active:
            return
        job.stop_asked.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.state, job.message = "stopped", "Stopped before it began."

    def close(self) -> None:
        """Stops everything."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            for job in self._latest.values():
                job.stop_asked.set()
            self._changed.notify_all()
        self._thread.join(5)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._waiting.popleft()
                job.state, job.started = "running", time.monotonic()
            try:
                self._run(job)
            except Exception as error:  # the queue outlives whatever went wrong with one job
                job.state, job.message = "failed", f"{type(error).__name__}: {error}"
            job.ended = time.monotonic()

    def _run(self, job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "failed.json"):
            (job.folder / name).unlink(missing_ok=True)
        (job.folder / "job.json").write_text(json.dumps({"kind": job.kind, **job.arguments}))
        root = str(Path(__file__).resolve().parent.parent)
        environment = {**self.environment, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        with open(job.folder / "log.txt", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "playground.worker", str(job.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            try:
                too_long = self._watch(job, process)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        failed = read_json(job.folder / "failed.json")
        job.result = read_json(job.folder / "result.json")
        if job.result is not None and process.returncode == 0:
            job.state = "done"
        elif failed:
            job.state, job.message = "failed", failed["message"]
        elif too_long:
            job.state = "stopped"
            job.message = f"Stopped at the limit of {job.seconds:g} seconds. Resume to go on."
        elif job.stop_asked.is_set():
            job.state = "stopped"
        else:
            job.state, job.message = "failed", _ending(job.folder / "log.txt", process.returncode)

    def _watch(self, job: Job, process: subprocess.Popen) -> bool:
        """Waits for the end; returns whether it was the limit of time that ended it."""
        while process.poll() is None:
            too_long = job.elapsed > job.seconds
            if too_long or job.stop_asked.wait(TICK_SECONDS):
                job.state = "stopping"
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(POLITE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()  # Checkpoints are whole or absent.
                    process.wait()
                return too_long
        return False


def read_json(path: Path) -> dict | None:
    """A small JSON file, or `None` if it is not there or half written."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _ending(log: Path, code: int) -> str:
    lines = log.read_bytes()[-LOG_BYTES:].decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "It said nothing."
    return f"The process ended with code {code}: {last[:400]}"
