"""A contender's process, kept alive between its turns: it is asked, and answers, in lines of JSON."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Worker:
    """A script of this folder in a process of its own. The first thing it says is that it is ready.

    Args:
        name: the contender's.
        script: file name; it answers on its standard output.
        arguments: its command line.
        log: file that takes what it prints elsewhere.
        limit: seconds it may take to get ready, and for each answer; then it is killed. `None` is for ever.

    Raises:
        RuntimeError: here and in `ask`, the process ended, failed or was killed; the message says why.
    """

    def __init__(
        self,
        name: str,
        script: str,
        arguments: Sequence[str],
        log: Path,
        limit: float | None = None,
    ) -> None:
        self.name, self.log, self.limit = name, log, limit
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name(script)), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            )
        self.ready = self._answer()

    def ask(self, request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        with contextlib.suppress(BrokenPipeError):  # reading the answer tells how it ended
            self.process.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(self.limit, kill) if self.limit else None
        if timer:
            timer.daemon = True
            timer.start()
        line = self.process.stdout.readline()
        if timer:
            timer.cancel()
        if not line:
            status = self.process.wait()
            if late.is_set():
                raise RuntimeError(f"{self.name} was killed: no answer within {self.limit:.0f} s")
            tail = self.log.read_text(errors="replace").strip().splitlines()[-8:]
            raise RuntimeError(f"{self.name} ended with status {status}:\n" + "\n".join(tail))
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def stop(self) -> None:
        """Let it end by itself, and kill it if it does not within half a minute."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
