"""Exact resume: a run that was killed and resumed ends bit for bit where an uninterrupted one does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.training import Checkpoint, checkpoint

WORKER = Path(__file__).with_name("resume_worker.py")
REPOSITORY = WORKER.parents[2]


def train(directory, *arguments):
    directory.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, WORKER, directory, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def assert_same_end(one, other):
    one, other = np.load(one / "final.npz"), np.load(other / "final.npz")
    assert one.files == other.files
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    result = train(directory)
    assert result.returncode == 0, result.stderr
    return directory


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed(uninterrupted, tmp_path):
    step = int(np.random.default_rng(os.getpid()).integers(6, 51))
    killed = train(tmp_path, "--kill-at", str(step))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = train(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed at {step - 1 - (step - 1) % 13 + (step - 1) % 13 // 5 * 5}" in resumed.stdout, f"killed at {step}"
    assert_same_end(uninterrupted, tmp_path)


@pytest.mark.slow
def test_sigterm_saves_the_very_step(uninterrupted, tmp_path):
    stopped = train(tmp_path, "--kill-at", "17", "--signal", "SIGTERM")
    assert "Interrupted" in stopped.stderr and "SIGTERM" in stopped.stderr
    resumed = train(tmp_path)
    assert "resumed at 17" in resumed.stdout, resumed.stderr
    assert_same_end(uninterrupted, tmp_path)


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_the_checkpoint_before(uninterrupted, tmp_path):
    killed = train(tmp_path, "--during-save")
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "half").exists()
    resumed = train(tmp_path)
    assert "resumed at 5" in resumed.stdout, resumed.stderr
    assert_same_end(uninterrupted, tmp_path)


def small_fit(directory, epochs=1, width=16, callbacks=(), data=None, **options):
    config = kerasllm.TransformerConfig(
        vocabulary_size=11, max_sequence_length=8, num_layers=1, num_heads=1, hidden_dim=width
    )
    model = kerasllm.CausalLM(config)
    model.compile(keras.optimizers.SGD(0.1))
    ids = np.random.default_rng(0).integers(0, 11, (12, 9))
    callbacks = [*callbacks, Checkpoint(directory, **options)]
    model.fit(ids if data is None else data, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks)
    return model


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_are_kept(tmp_path):
    small_fit(tmp_path, epochs=3, every_steps=1, keep=2)
    assert names(tmp_path) == ["step-00000008", "step-00000009"]


def test_a_full_disk_loses_nothing_and_says_so(tmp_path, monkeypatch):
    small_fit(tmp_path)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"step-0.*No space left.*step-00000003, is whole"):
        small_fit(tmp_path, epochs=2, resume=True)
    assert names(tmp_path) == ["step-00000003"]
    checkpoint.read(tmp_path / "step-00000003")


def test_a_tampered_checkpoint_is_refused(tmp_path):
    small_fit(tmp_path)
    weights = tmp_path / "step-00000003" / "state.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged.*hash differs"):
        small_fit(tmp_path, epochs=2, resume=True)


def test_another_model_is_refused(tmp_path):
    small_fit(tmp_path)
    with pytest.raises(ValueError, match="of another model"):
        small_fit(tmp_path, epochs=2, width=32, resume=True)


def test_other_data_and_other_callbacks_are_refused(tmp_path):
    small_fit(tmp_path)
    with pytest.raises(ValueError, match="other data: num_rows"):
        small_fit(tmp_path, resume=True, data=np.ones((9, 9), "int32"))
    with pytest.raises(ValueError, match="other data: digest"):
        small_fit(tmp_path, resume=True, data=np.random.default_rng(1).integers(0, 11, (12, 9)))
    with pytest.raises(ValueError, match="0 other callbacks"):
        small_fit(tmp_path, resume=True, callbacks=[keras.callbacks.CSVLogger(tmp_path / "log.csv")])


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights([w * np.nan for w in self.model.get_weights()])

    small_fit(tmp_path, callbacks=[Spoil()])
    assert not tmp_path.exists() or names(tmp_path) == []


def test_steps_within_an_epoch_need_a_counted_order(tmp_path):
    def batches():
        while True:
            yield np.ones((4, 8), "int32"), np.ones((4, 8), "int32")

    with pytest.raises(ValueError, match="order is counted"):
        small_fit(tmp_path, data=batches(), every_steps=1)


# Other callbacks ----------------------------------------------------------------------------------------------


class Losses(keras.callbacks.Callback):
    """Gives each epoch the `val_loss` that it is told, before callbacks that look at it."""

    def __init__(self, *losses):
        super().__init__()
        self.losses = losses

    def get_state(self):
        return None

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = self.losses[epoch]


def test_the_best_model_stays_the_best_when_training_is_resumed(tmp_path):
    def fit(epochs, resume):
        best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True)
        small_fit(tmp_path / "run", epochs, callbacks=[Losses(1.0, 0.5, 0.9, 0.4), best], resume=resume)
        return (tmp_path / "best.keras").read_bytes()

    best = fit(2, resume=False)
    assert fit(3, resume=True) == best  # 0.9 is no better than 0.5,
    assert fit(4, resume=True) != best  # and 0.4 is.


@pytest.mark.one_backend
def test_what_keras_callbacks_know_is_kept_by_those_derived_from_them_too(tmp_path):
    class Mine(keras.callbacks.ReduceLROnPlateau):
        pass

    def fit(epochs, resume):
        mine = Mine(patience=9)
        log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
        losses = Losses(1.0, 0.5, 0.9)
        small_fit(tmp_path / "run", epochs, callbacks=[losses, mine, log], resume=resume)
        return mine

    fit(2, resume=False)
    mine = fit(3, resume=True)
    assert (mine.best, mine.wait) == (0.5, 1)
    assert [line.split(",")[0] for line in (tmp_path / "log.csv").read_text().split()] == ["epoch", "0", "1", "2"]


class Stop(keras.callbacks.Callback):
    """Ends training before a step, as a kill would."""

    def __init__(self, before=None):
        super().__init__()
        self.before = before

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.iterations == self.before:
            raise KeyboardInterrupt

    def get_state(self):
        return None


@pytest.mark.one_backend
def test_a_schedule_that_multiplies_the_rate_does_so_once_an_epoch(tmp_path):
    def fit(before=None, resume=False):
        halved = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
        return small_fit(tmp_path, 2, callbacks=[halved, Stop(before)], every_steps=1, resume=resume)

    with pytest.raises(KeyboardInterrupt):
        fit(before=5)
    assert float(fit(resume=True).optimizer.learning_rate) == pytest.approx(0.1 / 4)


@pytest.mark.one_backend
def test_averaged_weights_are_swapped_once(tmp_path):
    def fit(directory, before=None, resume=False):
        keras.utils.set_random_seed(0)
        model = kerasllm.CausalLM(kerasllm.TransformerConfig(11, 8, num_layers=1, num_heads=1, hidden_dim=16))
        model.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5))
        swap, save = keras.callbacks.SwapEMAWeights(swap_on_epoch=True), Checkpoint(directory, resume=resume)
        ids = np.random.default_rng(0).integers(0, 11, (12, 9))
        model.fit(ids, batch_size=4, epochs=3, verbose=0, callbacks=[swap, Stop(before), save])
        return model

    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", before=6)
    resumed = fit(tmp_path / "parts", resume=True)
    for one, other in zip(whole.get_weights(), resumed.get_weights()):
        np.testing.assert_array_equal(one, other)


@pytest.mark.one_backend
def test_a_callback_of_which_nothing_is_kept_is_named(tmp_path):
    class Counts(keras.callbacks.Callback):
        pass

    small_fit(tmp_path, callbacks=[Counts()])
    with pytest.warns(UserWarning, match=r"nothing of Counts.*get_state\(\) and set_state"):
        small_fit(tmp_path, epochs=2, callbacks=[Counts()], resume=True)


@pytest.mark.one_backend
def test_another_adapter_is_refused(tmp_path):
    def fit(alpha, **options):
        config = kerasllm.TransformerConfig(11, 8, num_layers=1, num_heads=1, hidden_dim=16)
        model = kerasllm.CausalLM(config)
        model.enable_lora(rank=2, alpha=alpha)
        model.compile("sgd")
        model.fit(np.ones((4, 9), "int32"), verbose=0, callbacks=[Checkpoint(tmp_path, **options)])

    fit(4.0)
    with pytest.raises(ValueError, match=r"other adapters.*'alpha': 4\.0.*'alpha': 8\.0"):
        fit(8.0, resume=True)
