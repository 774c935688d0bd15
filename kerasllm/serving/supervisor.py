"""Models in processes of their own: started, asked, watched, and started again when they end."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from kerasllm.serving.errors import ApiError

LINE_BYTES = 2**28  # of an answer, at the most
LONGEST_PAUSE = 30.0  # seconds between two attempts to start
PATIENCE = 10.0  # seconds that a process has to end by itself
LAST = {"done", "result", "error"}  # what the last event of a request has one of
WATCH = 0.5  # seconds between two looks at whether a process says anything
ROUTES = {
    "CausalLM": "/v1/completions",
    "Seq2SeqLM": "/v1/completions",
    "MaskedLM": "/v1/fill-mask",
    "TextClassifier": "/v1/classify",
    "TextEmbedder": "/v1/embeddings",
}
logger = logging.getLogger("kerasllm.serving")


class ModelProcess:
    """One model's process, seen from the server.

    Args:
        directory: of the saved model; its last part is the model's name.
        max_waiting: answers that may wait for a slot; a request beyond is refused.
        hang_seconds: a process that is asked something and is silent for so long is ended, and started again.
        options: `slots`, `length`, `adapters` and `cache_dtype` of `kerasllm.serving.worker.Worker`.

    Attributes:
        info: what the process says of itself: task, limit (tokens), slots, adapters; empty until it is ready.
        stats: what it said last of its engine.
        adapters: directories by name, which a new process gets to load again.
        failed: why it cannot be loaded, if so.
        was_ready: whether it has ever been loaded. A process that ends before that is not started again.
        pending: answers that were asked for and are not whole.
    """

    def __init__(self, directory: str | os.PathLike, max_waiting: int = 256, hang_seconds: float = 300.0, **options):
        self.directory, self.hang_seconds = Path(directory), hang_seconds
        self.name, self.max_waiting, self.options = self.directory.resolve().name, max_waiting, options
        self.adapters: dict[str, str] = dict(options.pop("adapters", None) or {})
        self.info: dict = {}
        self.stats: dict = {}
        self.failed, self.restarts, self.since = "", 0, int(time.time())
        self.pending, self.was_ready = 0, False
        self.changed = asyncio.Event()
        self._calls: dict[int, asyncio.Queue] = {}
        self._ids = itertools.count(1)
        self._process: asyncio.subprocess.Process | None = None
        self._silent_since: float | None = None  # while it owes an answer
        self._stopping = asyncio.Event()

    @property
    def ready(self) -> bool:
        return bool(self.info)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Keeps a process running until `stop`, or until the model turns out not to load."""
        pause = 0.5
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._live()
            except OSError as error:
                logger.error("cannot start", extra={"model": self.name, "error": str(error)})
            finally:
                self._lost()
            if self._stopping.is_set():
                return
            if not self.was_ready:
                code = self._process and self._process.returncode
                self._fail(self.failed or f"its process ended with the exit code {code}")
                return
            pause = 0.5 if time.monotonic() - began > 60 else min(LONGEST_PAUSE, 2 * pause)
            self.restarts += 1
            logger.error("the model's process ended; it is started again", extra={"model": self.name})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def stop(self) -> None:
        """Ends the process: by itself, or by force."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        if not self.ready:  # It reads nothing while it loads, and has nothing to finish.
            self.kill()
            return
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """Ends the process now."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    # Requests ------------------------------------------------------------------------------------------------

    def check_room(self, answers: int) -> None:
        """Refuses a request for so many answers when there is no process or the queue is full.

        Raises:
            ApiError: 503 or 429.
        """
        if not self.ready:
            why = f"could not be loaded: {self.failed}" if self.failed else "is being loaded"
            raise ApiError(503, f"The model {self.name!r} {why}.", code="not_ready", headers={"Retry-After": "5"})
        most = self.info.get("slots", 1) + self.max_waiting
        if self.pending and self.pending + answers > most:
            raise ApiError(
                429,
                f"The queue is full: {self.pending} answers run or wait, and there is room for {most}. Try again.",
                code="queue_full",
                headers={"Retry-After": "1"},
            )

    async def ask(self, do: str, answers: int = 1, seconds: float | None = None, **message) -> AsyncIterator[dict]:
        """Sends a request, and yields what comes of it. Leaving early takes the request back.

        Args:
            do: what the process is to do.
            answers: how many slots it takes.
            seconds: that it may take; no limit when left out.
            message: the rest of what the process is told.

        Raises:
            ApiError: the process refused the request, took too long, or ended.
        """
        self.check_room(answers)
        deadline = None if seconds is None else time.monotonic() + seconds
        number, queue = next(self._ids), asyncio.Queue()
        self._calls[number] = queue
        self.pending += answers
        self._silent_since = self._silent_since or time.monotonic()
        ended = False
        try:
            self._send({"id": number, "do": do, **message})
            await self._flushed()
            while not ended:
                event = await _within(deadline, queue.get())
                if "error" in event:
                    ended = True
                    error = event["error"]
                    raise ApiError(error["status"], error["message"], error.get("param"), error.get("code"))
                ended = bool(event.keys() & LAST)
                yield event
        finally:
            self.pending -= answers
            if self._calls.pop(number, None) is not None and not ended:
                self._send({"id": number, "do": "cancel"})

    async def call(self, do: str, seconds: float | None = None, **arguments) -> dict:
        """Sends a request that has one answer, and returns it."""
        async with contextlib.aclosing(self.ask(do, seconds=seconds, arguments=arguments)) as events:
            async for event in events:
                return event["result"]

    def _send(self, message: dict) -> None:
        if self._process is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _flushed(self) -> None:
        # A process that has just ended is told by its output, not here.
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.drain()

    # The process ---------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kerasllm.serving.worker"),
            stdin=pipe,
            stdout=pipe,
            limit=LINE_BYTES,
            start_new_session=True,  # A terminal's Ctrl-C is for the server, which lets it finish.
        )
        if self._stopping.is_set():  # while it was started
            self.kill()
        self._send({"directory": str(self.directory), "adapters": self.adapters, **self.options})
        watch = asyncio.create_task(self._watch())
        try:
            async for line in self._process.stdout:
                self._hear(json.loads(line))
        finally:
            watch.cancel()
            with contextlib.suppress(TimeoutError):  # It has closed its output, so it is about to end.
                await asyncio.wait_for(self._process.wait(), 1.0)
            self.kill()
            await self._process.wait()

    async def _watch(self) -> None:
        """Ends a process that hangs: a deadlock does not end by itself, and nobody else would notice."""
        while self._silent_since is None or time.monotonic() - self._silent_since < self.hang_seconds:
            await asyncio.sleep(WATCH)
        logger.error("the model's process hangs; it is ended", extra={"model": self.name})
        self.kill()

    def _hear(self, message: dict) -> None:
        self.stats = message.get("stats", self.stats)
        for event in message.get("events", ()):
            if queue := self._calls.get(event["id"]):
                queue.put_nowait(event)
            if event.keys() & LAST:
                self._calls.pop(event["id"], None)
        self._silent_since = time.monotonic() if self._calls else None
        if "ready" in message:
            self.info, self.failed, self.was_ready = message["ready"], "", True
            self.changed.set()
            logger.info("ready", extra={"model": self.name, **self.info})
        if "failed" in message:
            self._fail(message["failed"])

    def _fail(self, why: str) -> None:
        self.failed = why
        self.changed.set()

    def _lost(self) -> None:
        """Tells everybody who waits for an answer that none will come."""
        self.info, self.stats, self._silent_since = {}, {}, None
        error = {
            "status": 503,
            "message": f"The process of the model {self.name!r} ended. Try again.",
            "code": "crashed",
        }
        for queue in self._calls.values():
            queue.put_nowait({"error": error})


async def _within(deadline: float | None, event) -> dict:
    try:
        return await asyncio.wait_for(event, None if deadline is None else max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise ApiError(504, "The request took longer than it may here. Ask for less.", code="timeout") from None


class Models:
    """All models of a server, and their adapters, by name.

    Args:
        processes: one a model.

    Attributes:
        given_up: set once a model's process is not started again.

    Raises:
        ValueError: two models have the same name.
    """

    def __init__(self, processes: list[ModelProcess]):
        self.processes = {process.name: process for process in processes}
        if len(self.processes) < len(processes):
            raise ValueError(
                "Models go by the names of their directories, which must differ. "
                f"Received: {', '.join(process.name for process in processes)}"
            )
        self.given_up = asyncio.Event()
        self._tasks: list[asyncio.Task] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(process)) for process in self.processes.values()]

    async def _run(self, process: ModelProcess) -> None:
        await process.run()
        self.given_up.set()

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self.processes.values()))
        await asyncio.gather(*self._tasks)

    @property
    def names(self) -> list[str]:
        """Of models and adapters."""
        return [*self.processes, *(name for p in self.processes.values() for name in p.adapters)]

    def find(self, name: str, *tasks: str) -> tuple[ModelProcess, str]:
        """The process of a model, and the adapter that is meant, if any.

        Args:
            name: of a model or an adapter.
            tasks: which of them can do what is wanted; any, when left out.

        Raises:
            ApiError: 404, there is no such model; 503, it is not ready; 400, it does other things.
        """
        for process in self.processes.values():
            if name == process.name or name in process.adapters:
                process.check_room(0)
                if tasks and process.info["task"] not in tasks:
                    raise ApiError(
                        400,
                        f"The model {name!r} is a {process.info['task']}, which answers at "
                        f"{ROUTES[process.info['task']]}; this needs a {' or '.join(tasks)}.",
                        "model",
                    )
                return process, "" if name == process.name else name
        raise ApiError(
            404, f"The model {name!r} does not exist. Models: {', '.join(self.names)}", "model", "model_not_found"
        )
