"""Train: from a text to a model, watched while it learns."""

from pathlib import Path
from typing import NamedTuple

import gradio as gr

from playground import corpus, limits, presets, scripts
from playground.jobs import Job
from playground.page import LIGHT, Page, code_panel, guarded
from playground.runs import read_run
from playground.views import panels
from playground.views.status import training

BUILTIN, OWN = "Built-in text", "My own text"
SHIPPED_RUN = "gpt-tiny"
NEWEST = "newest"


class Shown(NamedTuple):
    """What the page's clock keeps up to date."""

    view: gr.HTML
    runs: gr.Dropdown
    resume: gr.Button


def build(page: Page) -> Shown:
    """Lays the tab out, and wires it."""
    gr.HTML(
        panels.hint(
            "Train a small language model.",
            "Choose a text and a kind of model, press Train, and watch the "
            "loss fall. A run goes on when you leave the page.",
        )
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            source = gr.Radio([BUILTIN, OWN], value=BUILTIN, label="Text")
            with gr.Group(visible=False) as own:
                text = gr.Textbox(
                    label="Your text", lines=7, max_lines=12, placeholder="Paste a few pages: a story, letters, code …"
                )
                upload = gr.UploadButton("Upload a .txt file", size="sm", file_types=[".txt", ".md", ".text"])
            family = gr.Radio(list(presets.FAMILIES), value="GPT", label="Kind of model")
            length = gr.Radio(list(presets.LENGTHS), value="30 s", label="Time to train, on two cores")
            with gr.Accordion("More settings", open=False):
                layers = gr.Slider(1, 6, value=2, step=1, label="Layers")
                width = gr.Slider(32, 256, value=96, step=32, label="Width")
                rate = gr.Number(value=0.005, minimum=0, maximum=10, label="Learning rate")
                steps = gr.Number(
                    value=0, minimum=0, maximum=presets.MAX_STEPS, precision=0, label="Steps (0: as time allows)"
                )
                batch = gr.Slider(1, 64, value=8, step=1, label="Batch size, rows of 64 tokens")
                seed = gr.Number(value=1337, minimum=0, precision=0, label="Seed")
            about = gr.HTML(elem_classes="plain", min_height=66)
            start = gr.Button("Train", variant="primary", elem_id="train")
        with gr.Column(scale=7, min_width=320):
            with gr.Row():
                runs = gr.Dropdown([("Newest", NEWEST)], value=NEWEST, label="Run shown", scale=4, min_width=160)
                resume = gr.Button("Resume", size="sm", interactive=False, scale=1, min_width=80, elem_id="resume")
                delete = gr.Button("Delete", size="sm", scale=1, min_width=80)
            view = gr.HTML(training(None, None), elem_id="training-view", min_height=520)

    controls = [source, text, family, length, layers, width, rate, steps, batch, seed]

    def recipe(*values, name="run-1", path=None):
        chosen = choices(*values[2:])
        characters = corpus.CHARACTERS if values[0] == BUILTIN else len(values[1] or "")
        if values[0] == BUILTIN and chosen.family == "T5":
            path, characters = corpus.DATES, 4000
        return presets.training_recipe(chosen, name, str(path or "text.txt"), characters, title(*values))

    def describe(*values):
        with_text = values[0] == BUILTIN or bool(values[1])
        estimate = presets.estimate(recipe(*values))
        figures = {
            "parameters": f"{estimate.parameters:,}",
            "steps": f"{estimate.steps:,}",
            "time, about": panels.duration(estimate.seconds),
        }
        if values[0] == OWN:
            figures["characters"] = f"{len(values[1] or ''):,}"
        note = "" if with_text else '<p class="note">Paste or upload a text first.</p>'
        return panels.facts(figures) + note

    def begin(session_id, *values):
        session = page.session(session_id)
        limits.one_of("text", values[0], (BUILTIN, OWN))
        own_text = limits.checked_training_text(values[1]) if values[0] == OWN else None
        recipe(*values)  # Refuses what does not fit before anything is made.
        path = session.new_run()
        workplace = session.workplace(path)
        try:
            workplace.mkdir()
            file = workplace / "text.txt"
            if own_text is not None:
                file.write_text(own_text, encoding="utf-8")
            elif values[2] != "T5":
                file = corpus.builtin_text(page.root)
            made = recipe(*values, name=path.name, path=file)
            _submit(page, session, path, made)
        except BaseException:
            session.delete_run(path.name)
            raise
        return NEWEST

    def go_on(session_id, shown):
        session = page.session(session_id)
        path = _shown_directory(page, session, shown)
        from kerasllm.training.recipe import load_recipe

        _submit(page, session, path, load_recipe(path / "recipe.yaml"))
        return NEWEST

    def forget(session_id, shown):
        session = page.session(session_id)
        path = _shown_directory(page, session, shown)
        job = page.jobs.latest(session.key)
        if job is not None and job.is_active and job.arguments.get("output") == str(path):
            raise ValueError("This run is being trained. Stop it first.")
        session.delete_run(path.name)
        return NEWEST

    def script(*values):
        text = values[1] if values[0] == OWN else None
        built_in = values[0] == BUILTIN and values[2] != "T5"
        return scripts.training(recipe(*values), "saved_models/run-1", text, built_in)

    source.change(lambda chosen: gr.update(visible=chosen == OWN), source, own, **LIGHT)
    upload.upload(guarded(limits.read_upload), upload, text, **LIGHT)
    gr.on([c.change for c in controls], guarded(describe), controls, about, **LIGHT, trigger_mode="always_last")
    start.click(guarded(begin), [page.session_id, *controls], runs, **LIGHT, api_name="train")
    resume.click(guarded(go_on), [page.session_id, runs], runs, **LIGHT, api_name="resume")
    delete.click(guarded(forget), [page.session_id, runs], runs, **LIGHT, api_name="delete_run")
    code_panel(page, script, controls)
    page.opened.append((describe, controls, about))
    return Shown(view, runs, resume)


def look(page: Page, session, shown: str) -> tuple[str, bool, list]:
    """The view, whether the run shown can be resumed, and the runs to choose from."""
    names = [path.name for path in reversed(session.runs())]
    listed = [("Newest", NEWEST), *((f"{name} · {read_run(session.run(name)).title}", name) for name in names)]
    job, _ = page.job(session)
    if not names:
        example = page.models.shipped / SHIPPED_RUN
        if not (example / "metrics.jsonl").is_file():
            return training(None, job), False, listed
        note = '<p class="note">The run of the GPT that comes with the playground, until there is one of yours.</p>'
        return note + training(read_run(example), None, shipped=True), False, listed
    run = read_run(session.run(shown if shown in names else names[0]))
    of_run = job if job is not None and job.arguments.get("output") == str(run.directory) else None
    active = of_run is not None and of_run.is_active
    return training(run, of_run), run.can_resume and not active, listed


def choices(*values) -> presets.Choices:
    """The settings of the page; numbers from a browser may be whole or not."""
    family, length, *numbers = values
    layers, width, rate, steps, batch, seed = (
        int(v) if isinstance(v, float) and v == int(v) and i != 2 else v for i, v in enumerate(numbers)
    )
    return presets.Choices(family, length, layers, width, rate, steps or 0, batch, seed)


def title(*values) -> str:
    """What people will know the run by."""
    source, text, family = values[:3]
    begin = " ".join((text or "").split())[:24] if source == OWN else "dates" if family == "T5" else "Python docs"
    return f"{family} on {begin}"


def _shown_directory(page: Page, session, shown: object) -> Path:
    runs = session.runs()
    if shown == NEWEST and runs:
        return runs[-1]
    return session.run(shown)


def _submit(page: Page, session, path: Path, recipe) -> None:
    seconds = presets.time_limit(presets.estimate(recipe).seconds if recipe.start_from is None else 60)
    arguments = {"recipe": recipe.to_dict(), "output": str(path)}
    name = recipe.description or recipe.name
    page.jobs.submit(Job(session.key, "train", name, session.workplace(path), arguments, seconds))
