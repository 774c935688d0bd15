"""Jobs in processes: stopped within a second, gone on with, apart from the server."""

import json
import time

import pytest

from playground import jobs as jobs_module
from playground.jobs import Job, Jobs
from playground.models import Models, open_checkpoint
from playground.presets import Choices, training_recipe
from playground.runfile import open_run, save_run
from playground.runs import checkpoint_steps, read_run
from playground.sessions import Sessions

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]

TEXT = "the cat sat on the mat and looked at the moon. " * 100


@pytest.fixture(scope="module")
def queue():
    made = Jobs({"OMP_NUM_THREADS": "1"})
    yield made
    made.close()


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_a_run_is_stopped_resumed_looked_into_and_packed(queue, tmp_path):
    session = Sessions(tmp_path / "root").get("s" * 32)
    run = session.new_run()
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    recipe = training_recipe(Choices(steps=600, num_layers=1, hidden_dim=32), run.name, str(file), len(TEXT), "A cat")
    recipe_dict = recipe.to_dict()
    recipe_dict["training"]["sample_tokens"] = 4
    arguments = {"recipe": recipe_dict, "output": str(run)}

    def submitted():
        return queue.submit(Job(session.key, "train", "A cat", session.workplace(run), arguments, 300))

    job = submitted()
    with pytest.raises(ValueError, match="Stop it, or wait"):
        submitted()
    until(lambda: len(checkpoint_steps(run)) >= 2 or not job.is_active)
    asked = time.monotonic()
    queue.stop(session.key)
    until(lambda: not job.is_active)
    assert time.monotonic() - asked < 1.5 and job.state == "stopped", job.message
    stopped_at = read_run(run)
    assert stopped_at.can_resume and not stopped_at.is_finished and len(stopped_at.metrics) >= 1

    models = Models(tmp_path / "none")
    (choice,) = models.choices(session)
    steps = checkpoint_steps(run)
    with models.use(choice.directory) as model, models.use(choice.directory, steps[0]) as earlier:
        assert model.generate("the cat", 3).startswith("the cat") and earlier is not model
    with pytest.raises(ValueError, match="no checkpoint of step 7"):
        open_checkpoint(run, 7)
    with pytest.raises(ValueError, match="Let it finish"):
        save_run(run, tmp_path / "early.zip")

    job = submitted()
    until(lambda: not job.is_active)
    finished = read_run(run)
    assert job.state == "done" and finished.is_finished and finished.step == 600, job.message
    assert [r["step"] for r in finished.metrics] == list(range(50, 601, 50))  # No gap and no repeat.
    assert finished.metrics[: len(stopped_at.metrics)] == stopped_at.metrics and finished.samples

    other = Sessions(tmp_path / "other").get("t" * 32)
    opened = open_run(save_run(run, tmp_path / "run.zip"), other.new_run())
    assert read_run(opened).metrics == finished.metrics
    with Models(tmp_path / "none").use(opened) as model:
        assert model.generate("the cat", 3).startswith("the cat")


def test_nan_is_told_with_a_remedy_and_a_crash_with_its_last_words(queue, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    choices = Choices(steps=24, num_layers=1, hidden_dim=32, learning_rate=10.0)
    values = training_recipe(choices, "run-1", str(file), len(TEXT)).to_dict()
    values["training"] |= {"learning_rate": 1e30, "optimizer": "adamw", "clipnorm": None, "sample_prompt": None}
    job = queue.submit(
        Job("nan", "train", "NaN", tmp_path / "w", {"recipe": values, "output": str(tmp_path / "r")}, 300)
    )
    until(lambda: not job.is_active)
    assert job.state == "failed" and "became" in job.message and "lower learning rate" in job.message
    job = queue.submit(Job("nan", "nothing", "No such work", tmp_path / "w", {}, 60))
    until(lambda: not job.is_active)
    assert job.state == "failed" and "nothing" in job.message


def test_a_job_has_a_limit_of_time_and_waits_for_its_turn(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "MAX_WAITING_JOBS", 1)
    arguments = {"directories": {}, "text": ""}
    first = queue.submit(Job("a", "evaluate", "First", tmp_path / "a", arguments, 0.3))
    until(lambda: first.state != "queued")
    second = queue.submit(Job("b", "evaluate", "Second", tmp_path / "b", arguments, 60))
    with pytest.raises(ValueError, match="all there is room for"):
        queue.submit(Job("c", "evaluate", "Third", tmp_path / "c", arguments, 60))
    assert queue.place(second) == 1
    queue.stop("b")
    assert second.state == "stopped" and queue.place(second) == 0
    until(lambda: not first.is_active)
    assert first.state == "stopped" and "limit of 0.3 seconds" in first.message
    assert json.loads((tmp_path / "a" / "job.json").read_text())["kind"] == "evaluate"
