"""How a job and its run stand: for the sidebar, and for the Train tab."""

from html import escape

from playground.jobs import Job
from playground.runs import Run
from playground.views.charts import Line, curve
from playground.views.panels import DASH, duration, empty, error, facts, number, samples

WORDS = {
    "queued": "Waiting",
    "running": "Running",
    "stopping": "Stopping",
    "done": "Done",
    "stopped": "Stopped",
    "failed": "Failed",
}


def badge(job: Job | None, place: int = 0, run: Run | None = None) -> str:
    """The sidebar's line about the newest job."""
    if job is None:
        return '<div class="job idle"><span class="lamp"></span>Nothing is running</div>'
    words = WORDS[job.state]
    if job.state == "queued":
        words = f"Waiting, {place} in line"
    details, share = "", 0.0
    if job.state in ("running", "stopping"):
        details = duration(job.elapsed)
        if run is not None and run.steps:
            share = run.step / run.steps
            details += f" · step {run.step:,} of {run.steps:,}" if run.step else " · getting ready"
    bar = f'<span class="bar-track"><span class="bar" style="width:{100 * share:.0f}%"></span></span>'
    return (
        f'<div class="job {job.state}"><span class="lamp"></span><strong>{words}</strong> {escape(job.title)}'
        f"<small>{escape(details)}&nbsp;</small>{bar if share or job.is_active else ''}</div>"
    )


def training(run: Run | None, job: Job | None, shipped: bool = False) -> str:
    """A run's curve, its figures and its samples."""
    if run is None:
        return empty("No run yet", "Press Train: the curve grows here while the model learns.")
    parts = []
    if job is not None and job.state == "failed":
        parts.append(error("Training stopped with an error", job.message))
    elif job is not None and job.message:
        parts.append(f'<div class="hint">{escape(job.message)}</div>')
    loss = [(r["step"], r["loss"]) for r in run.metrics if r.get("loss") is not None]
    held_out = [(r["step"], r["val_loss"]) for r in run.metrics if r.get("val_loss") is not None]
    best = run.best
    lines = [
        Line("training loss", loss, "line-muted" if shipped else "line-a"),
        Line("validation loss", held_out, "line-faint" if shipped else "line-b"),
    ]
    mark = (best["step"], best["val_loss"]) if best else None
    parts.append(curve(lines, "step", "loss, nats a token", mark, run.steps))
    parts.append(facts(_figures(run, job)))
    if run.samples:
        parts.append(samples(run.samples[:-6:-1], muted=shipped))
    elif run.task in ("causal-lm", "prefix-lm"):
        parts.append('<p class="note">Samples of what the model writes appear here at each evaluation.</p>')
    return f'<div class="training{" is-shipped" if shipped else ""}">{"".join(parts)}</div>'


def _figures(run: Run, job: Job | None) -> dict[str, str]:
    last = run.metrics[-1] if run.metrics else {}
    figures = {
        "step": f"{run.step:,} / {run.steps:,}",
        "training loss": number(last.get("loss")),
        "validation loss": number(last.get("val_loss")),
        "tokens / s": number(last.get("tokens_per_second") or None, 0),
    }
    if last.get("val_exact_match") is not None:
        figures["right answers"] = f"{last['val_exact_match']:.1%}"
    active = job is not None and job.is_active
    left = last.get("eta_seconds")
    figures["time left"] = ("about " + duration(left) if left else "getting ready") if active else DASH
    return figures
