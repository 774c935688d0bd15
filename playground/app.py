"""The page put together: sidebar, tabs, and the clock that keeps what is running in sight."""

import os
from pathlib import Path

import gradio as gr

from playground import views
from playground.jobs import Jobs
from playground.models import Choice, Models, family_of
from playground.page import LIGHT, Page, guarded, only_in
from playground.sessions import Sessions, is_session_id
from playground.tabs import adapt, compare, export, generate, inside, tokens, train
from playground.views import status
from playground.warming import Warming

PROMPTS = {"GPT": "The function returns", "BERT": "Return the [MASK] of the list.", "T5": "3rd of May 2021"}
TABS = {
    "Tokens": tokens.build,
    "Generate": generate.build,
    "Look inside": inside.build,
    "Adapt": adapt.build,
    "Compare & vote": compare.build,
    "Evaluate & export": export.build,
}
FOLD_ON_PHONES = "() => { if (innerWidth < 720) document.querySelector('.sidebar .toggle-button')?.click() }"
TICK_SECONDS = 1.0
UPLOAD_LIFE = (3600, 3600)  # seconds between looks, and of life, of uploaded files


def build(page: Page, warming: Warming) -> gr.Blocks:
    """All of the page."""
    with gr.Blocks(
        title="kerasllm playground", fill_width=True, analytics_enabled=False, delete_cache=UPLOAD_LIFE
    ) as demo:
        page.session_id = gr.BrowserState("", storage_key="kerasllm-playground", secret="kerasllm-playground")
        seen, page.tab = gr.State({}), gr.State("train")
        with gr.Sidebar(width=300):
            gr.HTML('<div class="brand"><b>kerasllm</b><span>playground</span></div>')
            device = gr.HTML(warming.badge(), elem_id="device")
            choices = _listed(page.models.choices(None))
            page.model = gr.Dropdown(choices, value=_first(choices), label="Model", elem_id="model")
            page.prompt = gr.Textbox(
                PROMPTS["GPT"],
                label="Prompt",
                lines=3,
                max_lines=6,
                elem_id="prompt",
                info="Read by every tab, when you leave the box.",
                submit_btn=False,
            )
            page.other = gr.Dropdown(choices, value=_second(choices), label="Compare with", elem_id="other")
            job = gr.HTML(status.badge(None), elem_id="job", min_height=80)
            stop = gr.Button("Stop", variant="stop", size="sm", interactive=False, elem_id="stop")
        with gr.Tabs():
            with gr.Tab("Train", id="train") as first:
                shown = train.build(page)
            first.select(lambda: "train", None, page.tab, **LIGHT)
            for name, build_tab in TABS.items():
                with gr.Tab(name, id=name) as tab:
                    build_tab(page, tab)
                tab.select(lambda name=name: name, None, page.tab, **LIGHT)

        def open_session(session_id):
            session_id = session_id if is_session_id(session_id) else Sessions.new_id()
            page.session(session_id)
            return session_id, {}

        def tick(session_id, shown_run, model, other, seen):
            if not is_session_id(session_id):
                return [gr.skip()] * 9
            session = page.session(session_id)
            running, run = page.job(session)
            view, can_resume, runs = train.look(page, session, shown_run)
            listed = _listed(page.models.choices(session))
            finished = running is not None and not running.is_active and seen.get("active") == running.number
            model = _after(running, listed, model) if finished else model
            values = {
                "device": warming.badge(),
                "job": status.badge(running, running and page.jobs.place(running), run),
                "stop": gr.update(interactive=running is not None and running.is_active),
                "model": gr.update(choices=listed, value=_valid(model, listed, 0)),
                "other": gr.update(choices=listed, value=_valid(other, listed, 1)),
                "view": view,
                "runs": gr.update(
                    choices=runs, value=shown_run if shown_run in dict(map(reversed, runs)) else train.NEWEST
                ),
                "resume": gr.update(interactive=can_resume),
            }
            prints = {name: hash(str(value)) for name, value in values.items()}
            prints["active"] = running.number if running is not None and running.is_active else None
            if prints == seen:
                return [gr.skip()] * 9
            return [*(gr.skip() if prints[n] == seen.get(n) else v for n, v in values.items()), prints]

        def stop_job(session_id):
            page.jobs.stop(page.session(session_id).key)

        def suited_prompt(session_id, model, prompt):
            if not is_session_id(session_id) or model is None:
                return gr.skip()
            family = family_of(page.choice(session_id, model).directory)
            return PROMPTS[family] if prompt in PROMPTS.values() and prompt != PROMPTS[family] else gr.skip()

        watched = [device, job, stop, page.model, page.other, shown.view, shown.runs, shown.resume, seen]
        looked_at = [page.session_id, shown.runs, page.model, page.other, seen]
        entered = demo.load(open_session, page.session_id, [page.session_id, seen], **LIGHT, api_name="open")
        entered.then(tick, looked_at, watched, **LIGHT)
        for function, inputs, outputs in page.opened:
            entered.then(guarded(function), inputs, outputs, **LIGHT)
        gr.Timer(TICK_SECONDS).tick(tick, looked_at, watched, **LIGHT)
        shown.runs.change(tick, looked_at, watched, **LIGHT)
        suited = [page.session_id, page.model, page.prompt]
        prompted = page.model.change(guarded(suited_prompt), suited, page.prompt, **LIGHT)
        for tab_id, function, inputs, outputs, options in page.applied:
            only_there = guarded(only_in(tab_id, function, outputs))
            # A tab may be opened before there is a session, which `entered` waits for.
            for event in (page.tab.change, entered.then, prompted.then, page.prompt.submit, page.prompt.blur):
                event(only_there, [page.tab, page.session_id, *inputs], outputs, **options)
        stopped = stop.click(guarded(stop_job), page.session_id, None, **LIGHT, api_name="stop")
        stopped.then(tick, looked_at, watched, **LIGHT)
        demo.load(None, js=FOLD_ON_PHONES)
    return demo


def look() -> dict:
    """The theme and style, as `mount_gradio_app` takes them."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif"]
    mono = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    theme = gr.themes.Base(font=sans, font_mono=mono, text_size="sm", radius_size="md", spacing_size="sm").set(
        body_background_fill="var(--paper)",
        body_background_fill_dark="var(--paper)",
        body_text_color="var(--ink)",
        body_text_color_dark="var(--ink)",
        body_text_color_subdued="var(--muted)",
        body_text_color_subdued_dark="var(--muted)",
        block_background_fill="var(--panel)",
        block_background_fill_dark="var(--panel)",
        block_border_color="var(--line)",
        block_border_color_dark="var(--line)",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="var(--muted)",
        block_label_text_color_dark="var(--muted)",
        block_title_text_color="var(--muted)",
        block_title_text_color_dark="var(--muted)",
        block_title_text_size="12px",
        block_info_text_size="11px",
        border_color_primary="var(--line)",
        border_color_primary_dark="var(--line)",
        background_fill_primary="var(--panel)",
        background_fill_primary_dark="var(--panel)",
        background_fill_secondary="var(--wash)",
        background_fill_secondary_dark="var(--wash)",
        input_background_fill="var(--paper)",
        input_background_fill_dark="var(--paper)",
        input_border_color="var(--line)",
        input_border_color_dark="var(--line)",
        color_accent="var(--a)",
        color_accent_soft="var(--a-wash)",
        color_accent_soft_dark="var(--a-wash)",
        slider_color="var(--a)",
        slider_color_dark="var(--a)",
        button_primary_background_fill="var(--a)",
        button_primary_background_fill_dark="var(--a)",
        button_primary_background_fill_hover="var(--a)",
        button_primary_background_fill_hover_dark="var(--a)",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#12141a",
        button_secondary_background_fill="var(--wash)",
        button_secondary_background_fill_dark="var(--wash)",
        button_secondary_background_fill_hover="var(--line)",
        button_secondary_background_fill_hover_dark="var(--line)",
        button_secondary_text_color="var(--ink)",
        button_secondary_text_color_dark="var(--ink)",
        button_cancel_background_fill="var(--bad-wash)",
        button_cancel_background_fill_dark="var(--bad-wash)",
        button_cancel_text_color="var(--bad)",
        button_cancel_text_color_dark="var(--bad)",
        checkbox_label_background_fill="var(--wash)",
        checkbox_label_background_fill_dark="var(--wash)",
        checkbox_label_background_fill_selected="var(--a-wash)",
        checkbox_label_background_fill_selected_dark="var(--a-wash)",
        checkbox_label_text_color="var(--ink)",
        checkbox_label_text_color_dark="var(--ink)",
        checkbox_background_color_selected="var(--a)",
        checkbox_background_color_selected_dark="var(--a)",
        checkbox_border_color_selected="var(--a)",
        checkbox_border_color_selected_dark="var(--a)",
    )
    return {"theme": theme, "css": views.asset("style.css")}


def make_page(root: Path, shipped: Path, given: Path | None = None) -> Page:
    """The server's parts behind a page."""
    jobs = Jobs({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))})
    return Page(Sessions(root), jobs, Models(shipped, given), Path(root))


def _listed(choices: list[Choice]) -> list[tuple[str, str]]:
    return [(choice.title, choice.key) for choice in choices]


def _first(listed: list) -> str | None:
    return listed[0][1] if listed else None


def _second(listed: list) -> str | None:
    return listed[min(1, len(listed) - 1)][1] if listed else None


def _valid(key, listed: list, usual: int) -> str | None:
    keys = [k for _, k in listed]
    return key if key in keys else keys[min(usual, len(keys) - 1)] if keys else None


def _after(job, listed: list, model):
    """The model to choose after a job: the one that was trained."""
    made = f"run/{Path(job.arguments.get('output', '')).name}"
    return made if made in [key for _, key in listed] else model
