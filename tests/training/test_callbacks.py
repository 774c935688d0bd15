"""Callbacks: what they write, what they add to the logs, when they stop, what a checkpoint keeps of them."""

import io
import json
import math

import keras
import numpy as np
import pytest
from rich.console import Console

from kerasllm import CausalLM, Tokenizer, TransformerConfig
from kerasllm.data import TokenDataset, TokenShards
from kerasllm.training import callbacks as module
from kerasllm.training.callbacks import Figure, JSONLLogger, Progress, Samples, StopOnNaN, Throughput
from kerasllm.training.plots import plot_curves, read_metrics
from kerasllm.training.throughput import known_peak_flops, measured_peak_flops

TOKENIZER = Tokenizer.train("abcdefgh", kind="char")
SHARDS = TokenShards.from_arrays([np.arange(136) % 8])


def small_model(optimizer="adamw", **changes) -> CausalLM:
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}
    config = TransformerConfig(vocabulary_size=8, max_sequence_length=8, **sizes, **changes)
    model = CausalLM(config, TOKENIZER)
    model.compile(optimizer=optimizer)
    return model


def fit(model, *callbacks, epochs=2, **arguments):
    data = TokenDataset(SHARDS, sequence_length=8, batch_size=2, seed=0)  # 8 batches
    return model.fit(data, epochs=epochs, callbacks=list(callbacks), verbose=0, **arguments)


def quiet(**options) -> Console:
    return Console(file=io.StringIO(), width=120, **options)


def test_a_whole_set_of_callbacks_in_one_fit(tmp_path):
    terminal, log = quiet(force_terminal=True), quiet()
    history = fit(
        small_model(),
        StopOnNaN(),
        Throughput(peak_flops=1e12),
        Progress(terminal),
        Progress(log),
        JSONLLogger(tmp_path / "metrics.jsonl"),
        Samples(tmp_path / "samples.txt", prompt="ab", max_new_tokens=4, every=2, console=quiet()),
        validation_data=TokenDataset(SHARDS, 8, 2, shuffle=False),
    ).history

    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [8, 16]
    assert [record["epoch"] for record in records] == [0, 1]
    assert [record["loss"] for record in records] == history["loss"]
    assert {"val_loss", "learning_rate", "seconds", "peak_memory_gb", "eta_seconds"} <= records[0].keys()
    assert records[1]["eta_seconds"] == 0 and records[0]["eta_seconds"] > 0

    flops = 3 * TransformerConfig(8, 8, 1, 2, 16).flops_per_token()
    for record in records:
        assert record["tokens_per_second"] == pytest.approx(16 * record["steps_per_second"])
        assert record["flops_per_second"] == pytest.approx(flops * record["tokens_per_second"])
        assert record["mfu"] == pytest.approx(record["flops_per_second"] / 1e12)

    lines = log.file.getvalue().splitlines()
    assert len(lines) == 2 and lines[1].startswith("step 16/16  loss ") and "val_loss" in lines[1]
    assert "16/16" in terminal.file.getvalue()

    samples = (tmp_path / "samples.txt").read_text()
    assert samples.startswith("--- step 16\nab") and samples.count("---") == 1

    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_steps_are_updates_under_accumulation(tmp_path, monkeypatch):
    monkeypatch.setattr("kerasllm.training.throughput.device_name", lambda: None)
    optimizer = keras.optimizers.AdamW(1e-3, gradient_accumulation_steps=4)
    log = quiet()
    fit(small_model(optimizer), Throughput(), Progress(log), JSONLLogger(tmp_path / "metrics.jsonl"))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [2, 4]
    assert "step 4/4" in log.file.getvalue()
    ratio = records[0]["tokens_per_second"] / records[0]["steps_per_second"]
    assert ratio == pytest.approx(4 * 16)
    assert "mfu" not in records[0]  # no peak, no MFU


def test_records_are_what_the_checkpoint_knew(tmp_path):
    logger = JSONLLogger(tmp_path / "metrics.jsonl")
    model = small_model()
    fit(model, logger, epochs=1)
    state = json.loads(json.dumps(logger.get_state()))
    fit(model, logger, epochs=3)
    assert len(read_metrics(logger.path)) == 3  # a fit begins the file anew
    logger.set_state(state)
    assert [record["step"] for record in read_metrics(logger.path)] == [8]
    fit(model, JSONLLogger(logger.path), epochs=1, initial_epoch=1)  # a finished run, resumed
    assert [record["step"] for record in read_metrics(logger.path)] == [8]


def test_seconds_go_on_after_a_resume():
    throughput, logs = Throughput(), {}
    throughput.on_train_begin()
    throughput.on_epoch_begin(0)
    throughput.set_state({"seconds": 1000.0})
    throughput.on_epoch_end(0, logs)
    assert 1000 < logs["seconds"] < 1001 and throughput.get_state()["seconds"] > 1000


def test_nan_stops_before_anything_is_saved(tmp_path):
    saved = []

    class Saver(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            saved.append(math.isfinite(logs["loss"]))

        def on_epoch_end(self, epoch, logs=None):
            saved.append(False)

    (tmp_path / "step-00000003").mkdir()
    model = small_model(keras.optimizers.SGD(1e30))
    with pytest.raises(FloatingPointError) as error:
        fit(model, StopOnNaN(tmp_path), Saver())
    assert all(saved) and len(saved) < 8
    assert f"at step {len(saved) + 1}" in str(error.value) and "step-00000003" in str(error.value)


def test_nan_in_validation_is_seen():
    stop = StopOnNaN()
    stop.set_model(small_model())
    with pytest.raises(FloatingPointError, match="`val_loss` became nan"):
        stop.on_epoch_end(0, {"loss": 1.0, "val_loss": float("nan")})


def test_values_json_does_not_have_are_null(tmp_path):
    logger = JSONLLogger(tmp_path / "metrics.jsonl")
    logger.set_model(small_model())
    logger.on_epoch_end(0, {"perplexity": float("inf")})
    assert read_metrics(logger.path)[0]["perplexity"] is None


def test_progress_redraws_at_most_four_times_a_second(monkeypatch):
    progress = Progress(quiet(force_terminal=True))
    model = small_model()
    model.train_data = None
    progress.set_model(model)
    progress.set_params({"steps": 1000, "epochs": 1})
    clock = iter(x * 0.01 for x in range(1, 10_000))
    progress.on_train_begin()
    progress.on_epoch_begin(0)
    redraws = []
    monkeypatch.setattr(progress.bar, "update", lambda *a, **k: redraws.append(k["completed"]))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    for batch in range(100):  # a second of steps
        progress.on_train_batch_end(batch, {"loss": 1.0})
    monkeypatch.undo()
    progress.close()
    assert 3 <= len(redraws) <= 4 and redraws == sorted(redraws)


def test_peaks_are_named(monkeypatch):
    monkeypatch.setattr("kerasllm.training.throughput.device_name", lambda: "NVIDIA H100 80GB HBM3")
    flops, name = known_peak_flops()
    assert flops == 989e12 and "989 TFLOP/s dense bf16" in name and "H100" in name
    monkeypatch.setattr("kerasllm.training.throughput.device_name", lambda: "Unheard-of 1")
    assert known_peak_flops() is None
    flops, name = measured_peak_flops(size=64, seconds=0.01)
    assert flops > 0 and name.startswith("a measured")


@pytest.mark.parametrize("peak", [0, -1.0, "guess"])
def test_bad_peaks_are_refused(peak):
    with pytest.raises(ValueError, match="peak_flops"):
        Throughput(peak_flops=peak)


@pytest.mark.parametrize("text", ["", '{"step": 1}\n'])
def test_no_losses_no_curves(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match="no loss"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_damaged_metrics_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step":')
    with pytest.raises(ValueError, match="Line 2"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "nothing.jsonl")


def test_curves_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"kerasllm\[plot\]"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")


@pytest.mark.one_backend
def test_a_sample_or_a_figure_that_fails_does_not_end_training(tmp_path):
    def fails(model):
        raise RuntimeError("no figure")

    console = quiet()
    samples = Samples(tmp_path / "samples.txt", prompt="☃ of no tokenizer", max_new_tokens=2, console=console)
    log = JSONLLogger(tmp_path / "metrics.jsonl")
    with pytest.warns(UserWarning, match="val_x cannot be computed, and training goes on.*no figure") as told:
        fit(small_model(), Figure("val_x", fails), log, samples, epochs=3)
    assert sum("val_x" in str(each.message) for each in told) == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    said = " ".join(console.file.getvalue().split())
    assert said.count("training.sample_prompt") == 1 and "There are no samples, and training goes on" in said
    assert "☃" in said and not (tmp_path / "samples.txt").read_text()


@pytest.mark.one_backend
def test_what_a_terminal_cannot_show_does_not_end_training(tmp_path):
    model = small_model()
    model.tokenizer = Tokenizer.train("ab☃defgh", kind="char")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    samples = Samples(tmp_path / "samples.txt", prompt="a☃", max_new_tokens=2, console=Console(file=terminal))
    fit(model, samples, epochs=1)
    terminal.flush()
    assert b"a?" in terminal.buffer.getvalue() and "a☃" in (tmp_path / "samples.txt").read_text("utf-8")
