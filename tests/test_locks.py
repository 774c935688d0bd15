"""One writer at a time, with real processes: refused while the holder lives, free as soon as it is gone."""

import os
import re
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kerasllm
from kerasllm.cli import app
from kerasllm.locks import LOCK_FILE, WriterLock, only_writer
from kerasllm.training import JSONLLogger, train
from kerasllm.training.recipe import Recipe

pytestmark = pytest.mark.one_backend

HOLDER = "import sys; from kerasllm.locks import WriterLock; WriterLock(*eval(sys.argv[1])); print('held'); input()"
CONFIG = kerasllm.TransformerConfig(16, 8, num_layers=1, num_heads=1, hidden_dim=8)
ROWS = np.arange(18).reshape(2, 9) % 16


@pytest.fixture
def hold():
    """Starts a process that holds a lock, and returns it; it is killed without warning."""
    holders = []

    def start(path, is_file=False):
        code = repr((str(path), is_file))
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout.readline() == b"held\n"
        holders.append(holder)
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


@pytest.fixture(scope="module")
def model():
    model = kerasllm.CausalLM(CONFIG)
    model.compile("sgd")
    model.add_adapter("a", kerasllm.tuning.LoRA(rank=1))
    return model


def recipe(folder):
    (folder / "words.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return Recipe.from_dict(
        {
            "name": "tiny",
            "data": {"source": str(folder / "words.txt"), "sequence_length": 8, "batch_size": 2},
            "tokenizer": {"kind": "char"},
            "model": {"num_layers": 1, "num_heads": 1, "hidden_dim": 8},
            "training": {"steps": 2, "sample_prompt": None},
        }
    )


def fit(model, *callbacks):
    model.fit(ROWS, verbose=0, callbacks=list(callbacks))


def command(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exit_code == 2:
        raise ValueError(result.output)


# What writes into "out": (name of what it locks, whether that is a file, what writes).
WRITERS = {
    "a new run": ("out", False, lambda m, f: train(recipe(f), f / "out")),
    "a resumed run": ("out", False, lambda m, f: train(recipe(f), f / "out", resume=True)),
    "checkpoints": ("out", False, lambda m, f: fit(m, kerasllm.training.Checkpoint(f / "out"))),
    "metrics": ("out", True, lambda m, f: fit(m, JSONLLogger(f / "out"))),
    "a model": ("out", False, lambda m, f: m.save_to_preset(f / "out")),
    "an adapter": ("out", False, lambda m, f: m.save_adapter(f / "out", "a")),
    "an export": ("out", False, lambda m, f: m.export(f / "out", "huggingface", overwrite=True)),
    "quantize": ("out", False, lambda m, f: command("quantize", f, "--eval", f, "--output", f / "out")),
    "prune": ("out", False, lambda m, f: command("prune", f, "--eval", f, "--output", f / "out")),
    "distil": ("out", False, lambda m, f: command("distil", f, "--data=x", "--num-layers=1", "--output", f / "out")),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_second_writer_is_refused_and_told_of_the_first(what, model, tmp_path, hold):
    name, is_file, write = WRITERS[what]
    holder = hold(tmp_path / name, is_file)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"out.* is being written by process {holder.pid} on .*, since 20\d\d-"):
        write(model, tmp_path)
    assert {path.name for path in set(tmp_path.rglob("*")) - set(before)} <= {"words.txt"}


def test_the_lock_of_a_killed_process_is_gone(model, tmp_path, hold):
    holder = hold(tmp_path / "out")
    holder.kill()
    holder.wait()
    assert (tmp_path / "out" / LOCK_FILE).is_file()
    train(recipe(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not list(tmp_path.rglob("*.lock"))


def test_what_a_failed_writer_had_made_is_removed(tmp_path):
    with pytest.raises(KeyError), only_writer(tmp_path / "a" / "b"):
        raise KeyError
    assert not any(tmp_path.iterdir())
    with only_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["kept"]
    with pytest.raises(ValueError, match="A file is in the way"), only_writer(tmp_path / "a" / "b" / "kept"):
        pass


def test_threads_of_a_process_are_writers_too(tmp_path):
    found = []

    def other():
        try:
            WriterLock(tmp_path)
        except ValueError as error:
            found.append(str(error))

    with only_writer(tmp_path):
        with only_writer(tmp_path / "." / "sub" / ".."):  # the same folder, and this thread has it
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1 and re.search(rf"process {os.getpid()} on", found[0])


def test_training_that_failed_leaves_the_lock_to_the_next(model, tmp_path, hold):
    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(model, Fails(), kerasllm.training.Checkpoint(tmp_path / "out"))
    fit(model, kerasllm.training.Checkpoint(tmp_path / "out"))
    assert not (tmp_path / "out" / LOCK_FILE).exists()
    hold(tmp_path / "out")


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="has no locks"), only_writer(tmp_path / "out"):
        (tmp_path / "out" / "written").touch()
    assert (tmp_path / "out" / "written").is_file()
