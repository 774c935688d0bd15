"""A process that holds one model and answers for it: lines of JSON in, lines of JSON out.

The first line says which model; each later one is a request or takes one back. It ends when its input does, so it never
outlives the server. Nothing of HTTP is known here, and nothing of Keras in the server's own process.
"""

import functools
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path

import kerasllm
from kerasllm.quiet import load_backend

load_backend()  # Before anything else imports Keras: a server's log is to begin with the server's lines.

from kerasllm.interop.presets import read_config  # noqa: E402
from kerasllm.serving.reader import Reader  # noqa: E402
from kerasllm.serving.writer import Job, Writer, failure  # noqa: E402

OPENED_AS = {"PairedMaskedLM": "MaskedLM"}
SERVED = ("CausalLM", "Seq2SeqLM", "MaskedLM", "TextClassifier", "TextEmbedder")


def task_in(directory) -> str:
    """Which task a saved model is served as.

    Raises:
        FileNotFoundError, ValueError: no model, or one of a task that is not served.
    """
    family, config = read_config(directory)
    [architecture, *_] = json.loads((Path(directory) / "config.json").read_text()).get("architectures") or [""]
    tasks = {name: task for task, name in family.architectures.items()}
    default = "Seq2SeqLM" if config.num_encoder_layers else "CausalLM" if config.causal else "MaskedLM"
    task = tasks.get(architecture, default)
    task = OPENED_AS.get(task, task)
    if task not in SERVED:
        raise ValueError(f"A {task} is not served. Received: {str(directory)!r}. Served: {', '.join(SERVED)}")
    return task


class Worker:
    """One model, and the pipe to the server.

    Args:
        directory: of the saved model.
        say: takes a dict that the server gets to read.
        slots, length, adapters: see `Writer`.
        cache_dtype: of the model; see `LanguageModel`.
    """

    def __init__(self, directory: str, say, slots=None, length=None, adapters=None, cache_dtype=None):
        self.say, self.task = say, task_in(directory)
        self.model = getattr(kerasllm, self.task).from_preset(directory)
        self.model.cache_dtype = cache_dtype or self.model.cache_dtype
        if self.model.tokenizer is None:
            raise ValueError(f"The model in {directory!r} has no tokenizer, so it cannot be served.")
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        writes = self.task in ("CausalLM", "Seq2SeqLM")
        self.writer = Writer(self.model, slots, length, adapters) if writes else None
        self.reader = None if writes else Reader(self.model, alive=functools.partial(say, {}))

    @property
    def info(self) -> dict:
        return {"task": self.task, **(self.writer or self.reader).info}

    def run(self) -> None:
        """Answers until the process ends."""
        self.say({"ready": self.info})
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            while self.writer is None or self.writer.idle or not self.inbox.empty():
                self.inbox.get()()
            events = self.writer.step()
            self.say({"events": events, "stats": self.writer.stats})

    def _read(self) -> None:
        """Turns lines into what the main thread is to do; texts become tokens here, beside the engine's work."""
        for line in sys.stdin.buffer:
            message = json.loads(line)
            try:
                self.inbox.put(self._prepared(message))
            except Exception as error:  # One request's fault is not the others'.
                self._fail(message, error)
        os._exit(0)

    def _prepared(self, message: dict):
        do = message["do"]
        if do == "generate":
            job: Job = self.writer.prepare(message)
            return functools.partial(self.writer.submit, job)
        if do == "cancel":
            return functools.partial(self._cancel, message["id"])
        if do in ("load_adapter", "unload_adapter"):
            call = functools.partial(getattr(self.writer, do), **message["arguments"])
            return functools.partial(self.writer.submit, functools.partial(self._answer, message, call))
        if do in ("tokenize", "detokenize"):
            self._answer(message, functools.partial(getattr(self, f"_{do}"), **message["arguments"]))
            return lambda: None
        return functools.partial(self._answer, message, functools.partial(self.reader.answer, **message["arguments"]))

    def _cancel(self, job_id: int) -> None:
        if self.writer is not None:
            self.writer.cancel(job_id)
            self.say({"stats": self.writer.stats})

    def _answer(self, message: dict, call) -> None:
        try:
            self.say({"events": [{"id": message["id"], "result": call()}]})
        except Exception as error:
            self._fail(message, error)

    def _fail(self, message: dict, error: Exception) -> None:
        self.say({"events": [failure(message["id"], error)]})

    def _tokenize(self, text: str) -> dict:
        [ids] = self.model.tokenizer.encode_texts([text])
        return {"tokens": ids, "count": len(ids), "max_model_len": self.info["limit"]}

    def _detokenize(self, tokens: list[int]) -> dict:
        return {"prompt": self.model.tokenizer.decode(tokens)}


def main() -> None:
    """Runs in the process that `kerasllm.serving.supervisor` starts."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print is no answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The server decides when it is over.
    lock = threading.Lock()

    def say(message: dict) -> None:
        line = json.dumps(message)
        with lock:
            answers.write(line + "\n")

    try:
        worker = Worker(say=say, **json.loads(sys.stdin.buffer.readline()))
    except (ValueError, KeyError, OSError, ImportError) as error:
        say({"failed": str(error)})
        sys.exit(1)
    worker.run()


if __name__ == "__main__":
    main()
