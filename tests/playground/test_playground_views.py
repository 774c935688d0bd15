"""What is drawn: escaped, bounded, with its units."""

import re

import pytest

from playground.jobs import Job
from playground.runs import Run, read_metrics, read_samples
from playground.views import charts, chips, panels, status

pytestmark = pytest.mark.one_backend

EVIL = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    "drawn",
    [
        panels.hint(EVIL, EVIL),
        panels.empty(EVIL, EVIL),
        panels.error(EVIL, EVIL),
        panels.facts({EVIL: EVIL}),
        panels.table([EVIL], [[EVIL]], EVIL),
        panels.heading(EVIL, EVIL),
        panels.samples([(1, EVIL)]),
        charts.bars([(EVIL, 0.5, True)]),
        charts.scatter([(0, 0, EVIL), (1, 1, "b")], EVIL),
        charts.curve([charts.Line(EVIL, [(0, 1)])], EVIL, EVIL),
        chips.chips([EVIL], [1]),
        chips.written([{"text": EVIL, "probability": 0.5}], EVIL),
        chips.alternatives([(EVIL, 1, 0.5)], 0),
        status.badge(Job("a", "train", EVIL, ".", {}, 1)),
    ],
)
def test_text_is_escaped(drawn):
    assert "<script" not in drawn and "&lt;script&gt;" in drawn


def test_a_curve_stays_small_and_marks_the_best():
    points = [(step, 5 / (1 + step)) for step in range(10_000)]
    drawn = charts.curve([charts.Line("loss", points), charts.Line("other", [])], "step", "loss, nats", (9_999, 0.0005))
    assert len(drawn) < 20_000 and "best 0.001 at 9,999" in drawn and "loss, nats" in drawn
    coordinates = [float(n) for pair in re.findall(r'points="([^"]*)"', drawn) for n in re.split("[ ,]", pair)]
    assert all(0 <= n <= charts.WIDTH for n in coordinates)


def test_a_curve_without_figures_is_drawn():
    drawn = charts.curve([charts.Line("loss", [(0, float("nan")), (1, float("inf"))])], "step", "loss")
    assert "<svg" in drawn and "nan" not in drawn


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.9, 6.1), (0, 0), (1e-6, 2e-6), (0, 1740), (5.1, 5.1)])
def test_ticks_enclose_their_range(low, high):
    found = charts.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 9 and len(set(found)) == len(found)


def test_a_run_is_read_while_it_is_written(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    (tmp_path / "samples.txt").write_text("--- step 5\none\n--- not\n\n--- step 10\ntwo\n\n")
    assert read_samples(tmp_path / "samples.txt") == [(5, "one\n--- not"), (10, "two")]
    assert read_metrics(tmp_path / "none") == [] == read_samples(tmp_path / "none")


def test_the_view_of_a_failed_run_says_why(tmp_path):
    job = Job("a", "train", "GPT", tmp_path, {}, 1)
    job.state, job.message = "failed", "Training stopped at step 3: `loss` became nan. Try a lower learning rate."
    drawn = status.training(Run(tmp_path, "GPT", {"training": {"steps": 10}}, [{"step": 2, "loss": 1.0}]), job)
    assert 'role="alert"' in drawn and "lower learning rate" in drawn and "2 / 10" in drawn
