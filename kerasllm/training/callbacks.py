"""What watches a training run: progress, throughput, the log of metrics, samples, and a stop at NaN."""

import json
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

import keras

from kerasllm.locks import WriterLock
from kerasllm.training.checkpoint import latest
from kerasllm.training.tasks import FIGURES
from kerasllm.training.throughput import Throughput
from kerasllm.training.watcher import Watcher, inner_optimizer

__all__ = ["Figure", "JSONLLogger", "Progress", "Samples", "StopOnNaN", "Throughput"]

REFRESHES_PER_SECOND = 4


class Progress(Watcher):
    """A moving line in a terminal, and a printed line for each epoch: losses, speed, time left.

    Redraws at most four times a second.

    Args:
        console: a `rich.console.Console`; standard error when left out.

    Example:

    ```python
    model.fit(train, validation_data=validation, epochs=5, callbacks=[Throughput(), Progress()], verbose=0)
    ```
    """

    def __init__(self, console=None):
        super().__init__()
        from rich.console import Console

        self.console = console or Console(stderr=True)
        self.bar = None

    def on_train_begin(self, logs=None):
        self._task = self._validation_loss = None
        self._drawn_at = 0.0
        if self.console.is_terminal and self.total_steps:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            text = TextColumn("{task.fields[figures]}")
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), text, TimeRemainingColumn())
            self.bar = Bar(*columns, console=self.console, auto_refresh=False)
            self.bar.start()
            # A fit that ends in an exception never tells its callbacks: leave nothing behind that matters.
            self.console.show_cursor(True)

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if self.bar is None or now - self._drawn_at < 1 / REFRESHES_PER_SECOND:
            return
        self._drawn_at, step = now, self.step_after(batch)
        if self._task is None:
            # Where it starts, a resumed run has already been: the time left is judged from here.
            self._task = self.bar.add_task("", total=self.total_steps, completed=step, figures="")
        figures = {"loss": (logs or {}).get("loss"), "val_loss": self._validation_loss}
        self.bar.update(self._task, completed=step, figures=_figures(figures), refresh=True)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        self._validation_loss = logs.get("val_loss")
        total = f"/{self.total_steps}" if self.total_steps else ""
        say(self.console, f"step {self.steps_done}{total}  {_figures(logs)}")

    def on_train_end(self, logs=None):
        self.close()

    def close(self) -> None:
        """Takes the bar down; needed only if `fit` raised."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def say(console, text: str, **style: Any) -> None:
    """Prints a line as it is, but for characters that the terminal's encoding lacks, which become question marks."""
    text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(text, markup=False, highlight=False, **style)


class _RecordFile(Watcher):
    """A text file that grows by records.

    A checkpoint holds them all, so the file of a resumed run has no gap and no repeat.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)
        self.records: list[str] = []
        self._lock = None

    def on_train_begin(self, logs=None):
        self._lock = WriterLock(self.path, is_file=True)
        self._began = False

    def on_train_end(self, logs=None):
        self._lock.release()

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch)
        # Not at the begin of training: a finished run that is resumed has no more epochs, and keeps its file.
        if not self._began:
            self._began = True
            self.set_state({"records": []})

    def get_state(self) -> dict[str, Any]:
        return {"records": list(self.records)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.records = list(state["records"])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(self.records), encoding="utf-8")

    def add(self, record: str) -> None:
        self.records.append(record)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(record)


class JSONLLogger(_RecordFile):
    """Writes each epoch's logs, and its `step`, `epoch` and `learning_rate`, as a line of JSON.

    `step` counts updates. The file is begun anew by each `fit`, unless a `Checkpoint` resumes it. A value
    that JSON does not have (NaN, infinity) becomes `null`.

    Args:
        path: of the file.

    Example:

    ```python
    model.fit(train, epochs=2, callbacks=[Throughput(), JSONLLogger("metrics.jsonl")])
    ```
    """

    def on_epoch_end(self, epoch, logs=None):
        rate = float(keras.ops.convert_to_numpy(inner_optimizer(self.model).learning_rate))
        record = {"step": self.steps_done, "epoch": epoch, **(logs or {}), "learning_rate": rate}
        record = {key: None if _not_finite(value) else value for key, value in record.items()}
        self.add(json.dumps(record) + "\n")


class Samples(_RecordFile):
    """Lets the model write at the end of epochs: prints it, and adds it to a file.

    A prompt that the model cannot go on from ends nothing: why is printed, once, and there are no samples.

    Args:
        path: of the file.
        prompt: what is continued. Empty begins a new document.
        every: epochs between samples.
        max_new_tokens: tokens to write.
        console: a `rich.console.Console`; standard error when left out.
        options: of `model.generate`. Without any: top-p at temperature 0.8.

    Example:

    ```python
    model.fit(train, epochs=4, callbacks=[Samples("samples.txt", prompt="To be", every=2)])
    ```
    """

    def __init__(self, path, prompt="\n", every=1, max_new_tokens=100, console=None, **options):
        super().__init__(path)
        from rich.console import Console

        self.prompt, self.every, self.max_new_tokens = prompt, every, max_new_tokens
        self.console = console or Console(stderr=True)
        self.options = options or {"sampler": "top_p", "temperature": 0.8}
        self.failed = False

    def on_epoch_end(self, epoch, logs=None):
        # Training that was told to stop in the middle of an epoch is in a hurry.
        if (epoch + 1) % self.every or self.watched.stop_training or self.failed:
            return
        try:
            text = self.model.generate(self.prompt, self.max_new_tokens, truncation=True, **self.options)
        except Exception as error:  # Whatever it is, it is of the sample, and training does not depend on that.
            self.failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            prompt = f"the prompt {self.prompt!r} (`prompt` of Samples, training.sample_prompt of a recipe)"
            say(self.console, f"There are no samples, and training goes on: {prompt} failed. {reason}")
            return
        self.add(f"--- step {self.steps_done}\n{text}\n\n")
        say(self.console, text, style="dim")


class Figure(Watcher):
    """Computes a figure of the model at the end of epochs, and adds it to the logs for the callbacks after it.

    One that fails ends nothing: why is a warning, once, and the figure is left out.

    Args:
        name: of the figure, such as "val_exact_match".
        function: model → number.

    Example:

    ```python
    model.fit(train, callbacks=[Figure("val_exact_match", lambda model: exact_match(model, pairs))])
    ```
    """

    def __init__(self, name, function):
        super().__init__()
        self.name, self.function, self.failed = name, function, False

    def on_epoch_end(self, epoch, logs=None):
        if self.watched.stop_training or self.failed:
            return
        try:
            logs[self.name] = self.function(self.model)
        except Exception as error:  # As with samples.
            self.failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"{self.name} cannot be computed, and training goes on without it: {reason}", stacklevel=2)


class StopOnNaN(Watcher):
    """Ends training with an error as soon as the loss is not a number.

    It raises, rather than asking `fit` to stop, so that nothing after it, such as a `Checkpoint`, can save
    what broke: put it first.

    Args:
        checkpoints: the folder of checkpoints, for the message to name the last good one.

    Raises:
        FloatingPointError: from `fit`; it says the step and what to try.

    Example:

    ```python
    model.fit(train, epochs=2, callbacks=[StopOnNaN(), Checkpoint("checkpoints")])
    ```
    """

    def __init__(self, checkpoints: str | os.PathLike | None = None):
        super().__init__()
        self.checkpoints = checkpoints and Path(checkpoints)

    # Keras has the loss on the host here in any case. It is a mean over the epoch so far, so NaN stays NaN.
    def on_train_batch_end(self, batch, logs=None):
        self._check("loss", (logs or {}).get("loss"), self.step_after(batch))

    def on_epoch_end(self, epoch, logs=None):
        for name in ("loss", "val_loss"):
            self._check(name, (logs or {}).get(name), self.steps_done)

    def _check(self, name: str, value: Any, step: int) -> None:
        if _not_finite(value):
            last = latest(self.checkpoints) if self.checkpoints else None
            remedy = f"The last good checkpoint is {last}." if last else "No checkpoint had been saved."
            raise FloatingPointError(
                f"Training stopped at step {step}: `{name}` became {value}. {remedy} "
                "Try a lower learning rate, more warm-up steps, or gradient clipping."
            )


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _figures(logs: dict[str, Any]) -> str:
    """The figures people look at, in one line."""
    parts = [f"{name} {logs[name]:.4f}" for name in ("loss", "val_loss", *FIGURES) if logs.get(name) is not None]
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in logs:
        parts.append(f"{logs['mfu']:.1%} MFU of {logs['mfu_peak_flops'] / 1e12:.3g} TFLOP/s")
    if "eta_seconds" in logs:
        minutes, seconds = divmod(round(logs["eta_seconds"]), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(parts)
