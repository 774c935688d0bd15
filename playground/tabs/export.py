"""Evaluate & export: figures of models, curves of runs, and the ways out."""

import tempfile
from pathlib import Path

import gradio as gr

from playground import corpus, limits, scripts
from playground.exporting import FORMATS
from playground.jobs import Job
from playground.page import LIGHT, Page, code_panel, guarded
from playground.runfile import open_run, save_run
from playground.runs import read_run
from playground.views import panels
from playground.views.charts import Line, curve

STYLES = ("line-a", "line-b", "line-c", "line-d")
EVALUATION_CHARACTERS = 4_000
SECONDS = 300


def build(page: Page, tab: gr.Tab) -> None:
    """Lays the tab out, and wires it."""
    gr.HTML(
        panels.hint(
            "How good is it, and how do I take it away?",
            "Measure the models of the sidebar, lay the curves "
            "of your runs over one another, export for other programs, or keep a whole run in one file.",
        )
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            history = gr.HTML(elem_id="history", min_height=330)
            measure = gr.Button("Measure all models on the built-in text", elem_id="measure")
            results = gr.HTML(elem_id="results", min_height=60)
        with gr.Column(scale=4, min_width=300):
            gr.HTML(panels.heading("Export the model", "made in a job of its own"))
            form = gr.Dropdown(list(FORMATS.items()), value="tf_saved_model", label="Format", elem_id="format")
            export = gr.Button("Export", variant="primary", elem_id="export")
            exported = gr.DownloadButton("Download the export", interactive=False, elem_id="download-export")
            gr.HTML(panels.heading("One file for the whole run", "model, tokenizer, recipe, curve and samples"))
            save = gr.Button("Make the run file", elem_id="save-run")
            saved = gr.DownloadButton("Download the run file", interactive=False, elem_id="download-run")
            opening = gr.UploadButton("Open a run file", file_types=[".zip"], elem_id="open-run")
            note = gr.HTML(elem_id="run-note", min_height=60)
    clock = gr.Timer(1.5, active=False)

    shared = [page.session_id, page.model]

    def curves(session_id):
        session = page.session(session_id)
        runs = [run for run in map(read_run, session.runs()) if run.metrics][-3:]
        example = page.models.shipped / "gpt-tiny"
        found = [(STYLES[i], run.name, run) for i, run in enumerate(runs)]
        if (example / "metrics.jsonl").is_file():
            found.append(("line-muted", "gpt-tiny", read_run(example)))
        lines = [
            Line(name, [(r["step"], r["val_loss"]) for r in run.metrics if r.get("val_loss") is not None], style)
            for style, name, run in found
        ]
        if not lines:
            return panels.empty("No runs yet", "Train one: its curve is kept here.")
        return panels.heading("Your runs", "the last three") + curve(lines, "step", "validation loss, nats a token")

    def submit(session_id, kind, title, arguments):
        session = page.session(session_id)
        folder = session.folder / "work"
        page.jobs.submit(Job(session.key, kind, title, folder, arguments, SECONDS))
        return gr.Timer(active=True)

    def measuring(session_id):
        directories = {
            c.title: str(c.directory) for c in page.models.choices(page.session(session_id)) if _is_saved(c.directory)
        }
        text = corpus.builtin_text(page.root).read_text(encoding="utf-8")[-EVALUATION_CHARACTERS:]
        return submit(session_id, "evaluate", "Measuring", {"directories": directories, "text": text})

    def exporting(session_id, model, form):
        limits.one_of("format", form, FORMATS.values())
        choice = page.choice(session_id, model)
        if not _is_saved(choice.directory):
            raise ValueError("This run has not saved its model yet. Let it finish, or resume it.")
        return submit(
            session_id, "export", f"Export of {choice.title}", {"directory": str(choice.directory), "format": form}
        )

    def look(job, session_id):
        if job.kind not in ("evaluate", "export"):
            return gr.skip(), gr.skip(), gr.skip()
        if job.state != "done":
            return gr.skip(), gr.skip(), panels.error("This did not work", job.message or "It was stopped.")
        if job.kind == "evaluate":
            return _table(job.result["rows"]), gr.skip(), ""
        copy = page.offered(session_id, Path(job.result["file"]))
        return gr.skip(), gr.DownloadButton(value=copy, interactive=True), ""

    def saving(session_id, model):
        choice = page.choice(session_id, model)
        name = f"{choice.directory.name}.kerasllm.zip"
        with tempfile.TemporaryDirectory() as folder:
            copy = page.offered(session_id, save_run(choice.directory, Path(folder) / name))
        return gr.DownloadButton(value=copy, interactive=True)

    def loading(session_id, path):
        session = page.session(session_id)
        run = session.new_run()
        open_run(Path(str(path)), run)
        return panels.hint(f"Opened as {run.name}.", "Choose it as the model in the sidebar."), curves(session_id)

    def script(session_id, model, form):
        choice = page.choice(session_id, model)
        return scripts.exported(page.class_of(choice), str(choice.directory), f"saved_models/export-{form}", form)

    page.shows(tab, curves, [page.session_id], history, **LIGHT)
    measure.click(guarded(measuring), page.session_id, clock, **LIGHT, api_name="measure")
    export.click(guarded(exporting), [*shared, form], clock, **LIGHT, api_name="export")
    page.follows(tab, clock, look, [page.session_id], [results, exported, note])
    save.click(guarded(saving), shared, saved, **LIGHT, api_name="save_run")
    opening.upload(guarded(loading), [page.session_id, opening], [note, history], **LIGHT, api_name="open_run")
    code_panel(page, script, [*shared, form])


def _is_saved(directory: Path) -> bool:
    return (directory / "config.json").is_file() and (directory / "model.safetensors").is_file()


def _table(rows: list[dict]) -> str:
    number = panels.number
    cells = [
        (r["title"], number(r["loss"]), number(r["perplexity"], 1), number(r["bits_per_byte"]), f"{r['accuracy']:.1%}")
        for r in rows
    ]
    columns = ("model", "loss, nats a token", "perplexity", "bits a byte", "right tokens")
    note = "GPT: each next token. BERT: every seventh, hidden. T5: dates. So only models of one kind compare."
    return panels.table(columns, cells, note)
