"""Checkpoints from which training goes on exactly: bit for bit what it would have been without the break.

All that training depends on is in one: weights, optimizer, seed states, metric sums, the place in the data,
history, and the state of the other callbacks. A checkpoint is a folder that is whole or absent.
"""

import hashlib
import json
import shutil
import signal
import threading
import warnings
from pathlib import Path

import keras
import numpy as np

from kerasllm.data.counted import CountedDataset
from kerasllm.files import written_aside
from kerasllm.interop.structure import describe, weights_belong_to, weights_read
from kerasllm.locks import WriterLock
from kerasllm.training.watcher import inner_optimizer

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Keras callbacks keep their state in plain attributes.
KERAS_STATE = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
}
AT_EPOCH_BEGIN = (keras.callbacks.SwapEMAWeights,)  # What these know, they need when an epoch begins.


class Interrupted(KeyboardInterrupt):
    """Training was told to stop by a signal, and saved a checkpoint first.

    Attributes:
        signal: number of the signal.
        path: the checkpoint.
    """

    def __init__(self, number: int, path: Path):
        super().__init__(f"Training was stopped by {signal.Signals(number).name}; it is saved in {path}.")
        self.signal, self.path = number, path


class Checkpoint(keras.callbacks.Callback):
    """Saves training every so often, and on SIGINT or SIGTERM, and resumes it exactly.

    Put it last in the list of callbacks. The training data must be one of kerasllm's datasets (strings and
    arrays given to `fit` become one), whose order is counted; others resume only at the end of an epoch.

    Args:
        directory: folder of the checkpoints, `step-00000100` and so on.
        every_steps: steps between checkpoints; at the end of each epoch there is one anyway.
        keep: how many to keep, the newest.
        resume: go on from the newest whole checkpoint, if there is one.

    Other callbacks that have `get_state()` (returning what JSON can hold) and `set_state(state)` are saved
    too, and so are Keras's own: a `ModelCheckpoint` knows its best, a `CSVLogger` goes on with its file. One that
    changes what is trained has `resume(state, within_epoch)` instead, which is called before weights are restored.
    Of any other callback of yours nothing is kept, which a warning says when training is resumed.

    Raises:
        Interrupted: a signal came; the checkpoint is written.
        ValueError: a checkpoint is damaged or belongs to another model, or another process trains into the directory.
        OSError: it could not be written; the ones before it are still there.

    Example:
    ```python
    model.fit(train, epochs=3, callbacks=[kerasllm.training.Checkpoint("run/checkpoints", resume=True)])
    ```
    """

    async_safe = True  # Nothing here happens after a step.

    def __init__(self, directory, every_steps=None, keep=3, resume=False):
        super().__init__()
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"`every_steps` must be at least 1. Received: every_steps={every_steps}")
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1. Received: keep={keep}")
        self.directory = Path(directory)
        self.every_steps = every_steps
        self.keep = keep
        self.resume = resume
        self.resumed_step = 0
        self._epoch = self._start_step = 0
        self._history: dict[str, list] = {}
        self._pending = None
        self._random_state: dict[str, np.ndarray] = {}
        self._signal = None
        self._old_handlers = {}
        self._lock = None

    # When to save -----------------------------------------------------------------------------------------------

    def set_model(self, model):
        super().set_model(model)
        if self.resume and latest(self.directory) is not None:
            for callback in self._others():
                if isinstance(callback, keras.callbacks.CSVLogger):
                    callback.append = True  # Before it opens its file, which would be emptied.

    def on_train_begin(self, logs=None):
        self._history, self._pending, self._signal = {}, None, None
        self._start_step = self.resumed_step = 0
        self.model._initial_epoch = None
        self._lock = WriterLock(self.directory)
        for leftover in self.directory.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        if self.every_steps and not isinstance(self.model.train_data, CountedDataset):
            raise ValueError(
                "Checkpoints within an epoch need data whose order is counted: strings, arrays or a kerasllm dataset. "
                f"Received: {type(self.model.train_data).__name__}. Leave `every_steps` out to save after each epoch."
            )
        newest = latest(self.directory) if self.resume else None
        if newest is not None:
            self._restore(newest)
        if threading.current_thread() is threading.main_thread():
            self._old_handlers = {s: signal.signal(s, self._on_signal) for s in SIGNALS}

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self._pending is not None:
            # Only now: Keras resets metrics, and callbacks reset themselves, at the start of fit or of an epoch.
            state, metrics, rate = self._pending
            if not self._start_step:
                self._resume_random_state()
            else:
                # An epoch's beginning was before the step, such as that of a schedule that multiplies the rate.
                for variable, value in zip(self._variables_set_again(), [*metrics, *rate]):
                    variable.assign(value)
            self._set_callback_states(state["callbacks"])
            self.model.history.history = {k: list(v) for k, v in self._history.items()}
            self.model.history.epoch = list(range(epoch))
            self._pending = None
        else:
            self._start_step = 0

    def on_train_batch_begin(self, batch, logs=None):
        # The state before a step is the state after the one before it; and this hook, unlike the one after a step,
        # is never called from another thread. `_model`: `model` would copy all state back from JAX at each step.
        self._resume_random_state()  # Making PyTorch's data iterator has drawn a number since the epoch began.
        if not batch or not isinstance(self._model.train_data, CountedDataset):
            return
        step = self._start_step + batch
        if self._signal is not None:
            self._save(self._epoch, step)
            self._interrupt()
        if self.every_steps and step % self.every_steps == 0:
            self._save(self._epoch, step)

    def _resume_random_state(self):
        if self._random_state:
            _set_random_state(self._random_state)
            self._random_state = {}

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self._history.setdefault(name, []).append(float(value))
        self._save(epoch + 1, 0)
        if self._signal is not None:
            self._interrupt()

    def on_train_end(self, logs=None):
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}
        self.model._initial_epoch = None
        if self._lock is not None:
            self._lock.release()

    def _on_signal(self, number, frame):
        if self._signal is not None:
            self.on_train_end()  # Told twice: the ordinary way from now on.
            signal.raise_signal(number)
        self._signal = number

    def _interrupt(self):
        self.on_train_end()
        raise Interrupted(self._signal, latest(self.directory))

    # Saving -----------------------------------------------------------------------------------------------------

    def _save(self, epoch, step):
        data = self.model.train_data
        steps_per_epoch = data.steps_per_epoch if isinstance(data, CountedDataset) else 0
        global_step = epoch * steps_per_epoch + step if steps_per_epoch else epoch
        arrays = {f"{group}/{i:05d}": _array(v) for group, vs in self._groups().items() for i, v in enumerate(vs)}
        if not all(np.isfinite(a).all() for name, a in arrays.items() if name.startswith("trainable/")):
            return  # Never replace a good checkpoint by a bad one.
        callbacks, best_weights = self._callback_states()
        arrays |= best_weights | _random_state()
        state = {
            "epoch": epoch,
            "step": step,
            "stopped": bool(self.model.stop_training),
            "structure": weights_belong_to(describe(self.model)),
            "data": self._data_identity(),
            "history": self._history,
            "callbacks": callbacks,
        }
        try:
            write(self.directory / f"step-{global_step:08d}", arrays, state)
        except OSError:
            self.on_train_end()  # Keras does not call it when training ends in an error.
            raise
        for old in _all(self.directory)[: -self.keep]:
            shutil.rmtree(old)

    def _variables_set_again(self):
        rate = inner_optimizer(self.model)._learning_rate
        return [*self.model.metrics_variables, *([rate] if isinstance(rate, keras.Variable) else [])]

    def _groups(self):
        return {
            "trainable": self.model.trainable_variables,
            "non_trainable": self.model.non_trainable_variables,
            "optimizer": self.model.optimizer.variables,
            "metrics": self.model.metrics_variables,
        }

    def _data_identity(self):
        data = self.model.train_data
        if not isinstance(data, CountedDataset):
            return {}
        names = ("num_rows", "batch_size", "seed", "shuffle", "steps_per_epoch", "digest")
        return {name: getattr(data, name) for name in names}

    def _others(self):
        return [c for c in self.model.fit_callbacks if c is not self]

    def _callback_states(self):
        states, arrays = [], {}
        for i, callback in enumerate(self._others()):
            names = _kept_of(callback)
            if hasattr(callback, "get_state"):
                states.append(callback.get_state())
            elif names:
                states.append({name: _plain(getattr(callback, name, None)) for name in names})
                for j, value in enumerate(getattr(callback, "best_weights", None) or []):
                    arrays[f"best/{i:03d}/{j:05d}"] = np.asarray(value)
            else:
                states.append(None)
        return states, arrays

    # Resuming ---------------------------------------------------------------------------------------------------

    def _restore(self, path):
        arrays, state = read(path)
        if len(state["callbacks"]) != len(self._others()):
            raise ValueError(
                f"Checkpoint {str(path)!r} was made with {len(state['callbacks'])} other callbacks, and there are "
                f"{len(self._others())} now. Resume with the same list."
            )
        for callback, of_callback in zip(self._others(), state["callbacks"]):
            if hasattr(callback, "resume"):
                callback.resume(of_callback, within_epoch=state["step"] > 0)
            elif isinstance(callback, AT_EPOCH_BEGIN):
                _set_attributes(callback, of_callback)
            elif not (hasattr(callback, "get_state") or _kept_of(callback) or _is_keras(callback)):
                warnings.warn(
                    f"The checkpoints have nothing of {type(callback).__name__}, which begins anew. Give it "
                    "get_state() and set_state(state) to keep what it knows.",
                    stacklevel=2,
                )
        weights_read(self.model, state.get("structure", {}))
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        groups = self._groups()
        for group, variables in groups.items():
            found = sum(name.startswith(f"{group}/") for name in arrays)
            if found != len(variables):
                raise ValueError(
                    f"Checkpoint {str(path)!r} is of another model or optimizer: it has {found} {group} variables, "
                    f"and this one has {len(variables)}."
                )
            for i, variable in enumerate(variables):
                value = arrays[f"{group}/{i:05d}"]
                if value.shape != tuple(variable.shape):
                    raise ValueError(
                        f"Checkpoint {str(path)!r} is of another model: {variable.path} has shape "
                        f"{tuple(variable.shape)}, and the checkpoint {value.shape}."
                    )
        differing = [k for k, v in self._data_identity().items() if state["data"].get(k, v) != v]
        if differing:
            raise ValueError(
                f"Checkpoint {str(path)!r} was made with other data: {', '.join(differing)} differ. "
                "Resume with the same data, batch size and seed."
            )
        for group in ("trainable", "non_trainable", "optimizer"):
            for i, variable in enumerate(groups[group]):
                variable.assign(arrays[f"{group}/{i:05d}"])
        self._random_state = {k: v for k, v in arrays.items() if k.startswith("random/")}
        metrics = [arrays[f"metrics/{i:05d}"] for i in range(len(groups["metrics"]))]
        state["best"] = {name: value for name, value in arrays.items() if name.startswith("best/")}
        rate = [_array(v) for v in self._variables_set_again()[len(metrics) :]]
        self._pending = (state, metrics, rate)
        self._best_weights = state["best"]
        self._history = state["history"]
        self._start_step = state["step"]
        data = self.model.train_data
        if isinstance(data, CountedDataset):
            data.resume(state["epoch"], state["step"])
            self.resumed_step = state["epoch"] * data.steps_per_epoch + state["step"]
        # Keras's own BackupAndRestore tells fit where to begin in the same way.
        self.model._initial_epoch = 10**9 if state["stopped"] else state["epoch"]

    def _set_callback_states(self, states):
        for i, (callback, state) in enumerate(zip(self._others(), states)):
            if state is None or hasattr(callback, "resume") or isinstance(callback, AT_EPOCH_BEGIN):
                continue
            if hasattr(callback, "set_state"):
                callback.set_state(state)
                continue
            _set_attributes(callback, state)
            best = [v for name, v in sorted(self._best_weights.items()) if name.startswith(f"best/{i:03d}/")]
            if best:
                callback.best_weights = best


def _kept_of(callback) -> tuple[str, ...] | None:
    """The attributes that are the state of one of Keras's callbacks, or of a class derived from one."""
    return next((names for kind, names in KERAS_STATE.items() if isinstance(callback, kind)), None)


def _set_attributes(callback, state: dict) -> None:
    for name, value in state.items():
        setattr(callback, name, value)


def _is_keras(callback) -> bool:
    return type(callback).__module__.split(".")[0] in ("keras", "kerasllm")


def latest(directory) -> Path | None:
    """The newest whole checkpoint of a folder, or `None`."""
    found = _all(Path(directory))
    return found[-1] if found else None


def _all(directory: Path) -> list[Path]:
    return sorted(p for p in directory.glob("step-*") if p.is_dir()) if directory.is_dir() else []


def write(path: Path, arrays: dict[str, np.ndarray], state: dict) -> None:
    """Writes a checkpoint folder, whole or not at all."""
    import safetensors.numpy

    if path.exists():
        shutil.rmtree(path)
    try:
        with written_aside(path) as aside:
            aside.mkdir()
            weights = safetensors.numpy.save(arrays)
            (aside / "state.safetensors").write_bytes(weights)
            state = {**state, "sha256": hashlib.sha256(weights).hexdigest()}
            (aside / "state.json").write_text(json.dumps(state))
    except OSError as error:
        before = latest(path.parent)
        kept = f"The one before it, {before.name}, is whole." if before else "There is none before it."
        raise OSError(error.errno, f"Could not write checkpoint {path.name}: {error.strerror}. {kept}") from error


def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads a checkpoint folder.

    Raises:
        ValueError: a file is missing, damaged, or not the one that was written.
    """
    import safetensors.numpy

    try:
        state = json.loads((path / "state.json").read_text())
        weights = (path / "state.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != state["sha256"]:
            raise ValueError("state.safetensors is not the file that was written (its hash differs)")
        return safetensors.numpy.load(weights), state
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"Checkpoint {str(path)!r} is damaged: {error}. Remove it to resume from the one before."
        ) from None


def _random_state() -> dict[str, np.ndarray]:
    """PyTorch's own generators, which Keras's dropout draws from there; elsewhere all seeds are variables."""
    if keras.backend.backend() != "torch":
        return {}
    import torch

    state = {"random/cpu": torch.get_rng_state().numpy()}
    if torch.cuda.is_available():
        state |= {f"random/cuda{i}": s.numpy() for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def _set_random_state(arrays) -> None:
    if keras.backend.backend() != "torch":
        return
    import torch

    torch.set_rng_state(torch.from_numpy(arrays["random/cpu"].copy()))
    for i in range(torch.cuda.device_count()):
        if f"random/cuda{i}" in arrays:
            torch.cuda.set_rng_state(torch.from_numpy(arrays[f"random/cuda{i}"].copy()), i)


def _array(variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable.value), order="C")


def _plain(value):
    return float(value) if isinstance(value, np.floating) else value
