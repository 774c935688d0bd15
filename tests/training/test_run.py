"""A recipe carried out: the run directory, its resume, and everything that can go wrong."""

import errno
import io
import json
import shutil
import signal
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from rich.console import Console

import kerasllm
from kerasllm.training import run
from kerasllm.training.callbacks import JSONLLogger
from kerasllm.training.checkpoint import Interrupted, latest
from kerasllm.training.plots import read_metrics
from kerasllm.training.recipe import Recipe, load_recipe

TIMING = {
    "seconds",
    "steps_per_second",
    "tokens_per_second",
    "flops_per_second",
    "eta_seconds",
    "peak_memory_gb",
}


def recipe(source, **training) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "tiny",
            "description": "A test.",
            "data": {"source": source and str(source), "sequence_length": 8, "batch_size": 2},
            "tokenizer": {"kind": "char"},
            "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "dropout": 0.1},
            "training": {
                "steps": 6,
                "evaluate_every": 3,
                "evaluate_steps": 4,
                "warmup_steps": 1,
                "checkpoint_every": 2,
                "accumulation": 2,
                "early_stopping": 5,
                "sample_prompt": "the",
                "sample_tokens": 4,
                "csv": True,
                **training,
            },
        }
    )


def train(*arguments, **options):
    return run.train(*arguments, console=Console(quiet=True), **options)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "words.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """(model, run directory) of a whole run."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    return train(recipe(text), output), output


def test_the_run_directory_is_complete(trained, text):
    model, output = trained
    files = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    }
    files |= {
        "recipe.yaml",
        "metrics.jsonl",
        "metrics.csv",
        "curves.png",
        "samples.txt",
        "checkpoints",
        "README.md",
    }
    assert {path.name for path in output.iterdir()} == files

    assert load_recipe(output / "recipe.yaml") == recipe(text)
    records = read_metrics(output / "metrics.jsonl")
    assert [record["step"] for record in records] == [3, 6]
    assert {"loss", "val_loss", "tokens_per_second", "learning_rate"} <= records[0].keys()
    assert (output / "samples.txt").read_text().count("--- step") == 2
    assert len((output / "metrics.csv").read_text().splitlines()) == 3
    assert len(list((output / "checkpoints").iterdir())) == 2

    loaded = kerasllm.CausalLM.from_preset(output)
    assert loaded.config == model.config
    for a, b in zip(loaded.weights, model.weights):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))


def test_the_model_card_says_what_it_is(trained, text):
    _, output = trained
    card = (output / "README.md").read_text()
    last = read_metrics(output / "metrics.jsonl")[-1]
    for words in (
        "A test.",
        "`words.txt`; 10% of it",
        f"| val_loss | {last['val_loss']:.4f} |",
        "| steps | 6 |",
    ):
        assert words in card
    assert str(text.parent) not in card


def test_validation_is_the_same_first_batches_each_time(text):
    tokenizer = run._tokenizer(recipe(text), text.parent, None)
    reader = SimpleNamespace(tokenizer=tokenizer, config=SimpleNamespace(max_sequence_length=64))
    _, validation = run._text_data(recipe(text), reader)
    _, whole = run._text_data(recipe(text, evaluate_steps=None), reader)
    assert len(validation) == 4 < len(whole)
    for index in range(4):
        np.testing.assert_array_equal(validation[index][1], whole[index][1])
        assert validation[index][2].all()


def test_an_output_in_use_is_refused(trained, text, tmp_path):
    _, output = trained
    before = (output / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"is not empty\..*--resume"):
        train(recipe(text), output)
    with pytest.raises(ValueError, match=r"training\.seed differ"):
        train(recipe(text, seed=3), output, resume=True)
    assert (output / "metrics.jsonl").read_text() == before

    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty\. Choose another\."):
        train(recipe(text), tmp_path)
    with pytest.raises(ValueError, match=r"no recipe\.yaml"):
        train(recipe(text), tmp_path, resume=True)
    with pytest.raises(ValueError, match="A file is in the way"):
        train(recipe(text), tmp_path / "other.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_a_finished_run_is_resumed_to_itself(trained, text, tmp_path):
    model, output = trained
    shutil.copytree(output, tmp_path / "copy")
    again = train(recipe(text), tmp_path / "copy", resume=True)
    for a, b in zip(again.weights, model.weights):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))
    for name in ("metrics.jsonl", "samples.txt"):
        assert (tmp_path / "copy" / name).read_text() == (output / name).read_text()


def test_a_signal_saves_and_resume_goes_on_exactly(trained, text, tmp_path, monkeypatch):
    model, output = trained
    batches = {"left": 9}  # the second evaluation's second batch

    class Signal(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            batches["left"] -= 1
            if batches["left"] == 0:
                signal.raise_signal(signal.SIGTERM)

    chosen = run._callbacks
    monkeypatch.setattr(run, "_callbacks", lambda *arguments: [Signal(), *chosen(*arguments)])
    with pytest.raises(Interrupted) as interruption:
        train(recipe(text), tmp_path / "run")
    assert interruption.value.signal == signal.SIGTERM
    assert not (tmp_path / "run/model.safetensors").exists()

    resumed = train(recipe(text), tmp_path / "run", resume=True)
    for a, b in zip(resumed.weights, model.weights):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))
    histories = [read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "run", output)]
    for history in histories:
        for record in history:
            for key in TIMING & record.keys():
                del record[key]
    assert histories[0] == histories[1]
    assert (tmp_path / "run/samples.txt").read_text() == (output / "samples.txt").read_text()


def test_nan_ends_the_run_and_keeps_the_checkpoints(text, tmp_path):
    with pytest.raises(FloatingPointError, match=r"Training stopped at step \d: `loss` became"):
        train(recipe(text, learning_rate=1e30, warmup_steps=0), tmp_path / "run")
    for checkpoint in (tmp_path / "run/checkpoints").glob("step-*"):
        assert np.isfinite(json.loads((checkpoint / "state.json").read_text())["history"].get("loss", [])).all()
    assert not (tmp_path / "run/model.safetensors").exists()


def test_a_full_disk_loses_nothing(text, tmp_path, monkeypatch):
    def full(self, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JSONLLogger, "add", full)
    with pytest.raises(OSError, match=r"No space left on device\..*make room and resume") as error:
        train(recipe(text), tmp_path / "run")
    assert error.value.errno == errno.ENOSPC
    assert latest(tmp_path / "run/checkpoints") is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file or folder"),
        (b"", "empty"),
        (b"short", "sequence"),
        (b"\x00\xff\xfe" * 100, "UTF-8"),
    ],
)
def test_bad_text_leaves_nothing_behind(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(recipe(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_text_asks_for_it(tmp_path):
    with pytest.raises(ValueError, match=r"needs a text \(tiny Shakespeare.*--data PATH"):
        train("shakespeare-char-cpu", tmp_path / "run")
    with pytest.raises(ValueError, match="'tiny' needs a text: give it with --data PATH"):
        train(recipe(None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.one_backend
def test_a_finished_run_says_so_and_can_be_extended(trained, text, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(trained[1], output)
    said = io.StringIO()
    run.train(recipe(text), output, resume=True, console=Console(file=said, width=300))
    assert "the run is finished: give it more with --set training.steps=..." in said.getvalue()
    assert len(read_metrics(output / "metrics.jsonl")) == 2
    for training, message in (
        ({"steps": 3}, r"has made 6 steps already. Received: steps=3"),
        ({"steps": 12, "evaluate_every": 6}, r"with --set training.evaluate_every=3\. Received: steps=12"),
        ({"steps": 9, "seed": 3}, r"training.seed differ"),
    ):
        with pytest.raises(ValueError, match=message):
            train(recipe(text, **training), output, resume=True)
    train(recipe(text, steps=9), output, resume=True)
    assert [record["step"] for record in read_metrics(output / "metrics.jsonl")] == [3, 6, 9]
    assert load_recipe(output / "recipe.yaml").training.steps == 9
