"""Exact resume: a run that was killed and resumed ends bit for bit where an uninterrupted one does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
