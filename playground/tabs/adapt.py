"""Adapt: a LoRA on a text of one's own, on and off, more and less; and the model in fewer bits."""

import json
from html import escape

import gradio as gr

from playground import corpus, limits, presets, scripts
from playground.jobs import Job
from playground.looking import continuation
from playground.models import family, family_of
from playground.page import DEVICE, LIGHT, Page, code_panel, guarded
from playground.runs import read_run
from playground.views import panels
from playground.views.charts import bars
from playground.writing import bars_of, next_logits, sampler_of

MODES = ("fp32", "int8", "int4")
MOST_SCALE = 3
MOST_TOKENS = 40
SECONDS = 300
ARROW = "=>"


def build(page: Page, tab: gr.Tab) -> None:
    """Lays the tab out, and wires it."""
    gr.HTML(
        panels.hint(
            "Teach the model something new.",
            "A LoRA adds a few weights beside those of the chosen model, "
            "which stay as they are: so it can be switched off again, or turned up.",
        )
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            text = gr.Textbox(
                label="Text to learn (for a T5: lines of source => target)",
                lines=7,
                max_lines=12,
                elem_id="lora-text",
                placeholder="Paste a page in the style it shall write in.",
            )
            with gr.Row():
                steps = gr.Slider(12, 600, value=120, step=12, label="Steps", min_width=120)
                rank = gr.Slider(1, 32, value=8, step=1, label="Rank", min_width=120)
            start = gr.Button("Train the LoRA", variant="primary", elem_id="train-lora")
        with gr.Column(scale=7, min_width=320):
            adapter = gr.Dropdown([], label="LoRA", elem_id="adapter")
            with gr.Row():
                on = gr.Checkbox(True, label="LoRA on", elem_id="lora-on", scale=1, min_width=100)
                scale = gr.Slider(0, MOST_SCALE, value=1, step=0.1, label="How much of it", scale=3)
            sides = gr.HTML(elem_id="lora-sides", min_height=330)
    gr.HTML(panels.heading("In fewer bits", "the chosen model as it is, in int8 and in int4"))
    with gr.Row():
        shrink = gr.Button("Quantize and compare", elem_id="quantize", size="md", scale=0, min_width=240)
    table = gr.HTML(
        panels.empty(
            "Not measured yet",
            "Press “Quantize and compare”: size, speed, loss, and how often another token becomes the likeliest.",
        ),
        elem_id="quantized",
        min_height=150,
    )
    clock = gr.Timer(1.5, active=False)
    shared = [page.session_id, page.model, page.prompt]

    def begin(session_id, model, text, steps, rank):
        session, choice = page.session(session_id), page.choice(session_id, model)
        if family_of(choice.directory) == "BERT":
            raise ValueError("Choose a GPT, a Llama or a T5: here a LoRA is shown by what the model writes.")
        if not (choice.directory / "model.safetensors").is_file():
            raise ValueError("This run has not saved its model yet. Let it finish, or resume it.")
        pairs = family_of(choice.directory) == "T5"
        content = _pairs(text) if pairs else limits.checked_training_text(text)
        run = session.new_run()
        try:
            workplace = session.workplace(run)
            workplace.mkdir()
            file = workplace / ("pairs.jsonl" if pairs else "text.txt")
            file.write_text(content, encoding="utf-8")
            task = "seq2seq" if pairs else "causal-lm"
            title = f"LoRA on {' '.join(str(text).split())[:24]}"
            recipe = presets.lora_recipe(
                run.name, str(file), len(content), task, str(choice.directory), steps, rank, title
            )
            arguments = {"recipe": recipe.to_dict(), "output": str(run)}
            page.jobs.submit(Job(session.key, "train", title, workplace, arguments, SECONDS))
        except BaseException:
            session.delete_run(run.name)
            raise
        return gr.Timer(active=True)

    def adapters(session, choice):
        runs = [read_run(path) for path in reversed(session.runs())]
        fits = [run for run in runs if run.is_finished and run.recipe.get("start_from") == str(choice.directory)]
        return [(f"{run.name} · {run.title}", run.name) for run in fits]

    def show(session_id, model, prompt, adapter, on, scale):
        session, choice = page.session(session_id), page.choice(session_id, model)
        listed = adapters(session, choice)
        names = [name for _, name in listed]
        adapter = adapter if adapter in names else names[0] if names else None
        dropdown = gr.Dropdown(choices=listed, value=adapter)
        if adapter is None:
            told = panels.empty(
                "No LoRA for this model yet", "Paste a text on the left and train one: it takes seconds."
            )
            return told, dropdown
        scale = limits.number("scale", scale, 0, MOST_SCALE)
        prompt = limits.checked_prompt(prompt)
        with page.models.use(choice.directory, adapter=session.run(adapter)) as opened:
            with opened.disable_adapter():
                base = _shown(opened, prompt)
            opened.scale(scale if on else 0.0)
            tuned = _shown(opened, prompt)
            opened.scale(1.0)
        name = f"With the LoRA, {scale:g} times" if on else "With the LoRA switched off"
        return panels.pair(panels.heading("The base") + base, panels.heading(name) + tuned), dropdown

    def quantizing(session_id, model):
        session, choice = page.session(session_id), page.choice(session_id, model)
        if not (choice.directory / "model.safetensors").is_file():
            raise ValueError("This run has not saved its model yet. Let it finish, or resume it.")
        text = corpus.builtin_text(page.root).read_text(encoding="utf-8")[-1500:]
        arguments = {"directory": str(choice.directory), "modes": list(MODES), "text": text}
        page.jobs.submit(
            Job(session.key, "quantize", f"Quantizing {choice.title}", session.folder / "work", arguments, SECONDS)
        )
        return gr.Timer(active=True)

    def look(job, session_id, model, prompt, adapter, on, scale):
        if job.kind not in ("quantize", "train"):
            return gr.skip(), gr.skip(), gr.skip()
        if job.state != "done":
            return gr.skip(), gr.skip(), panels.error("This did not work", job.message or "It was stopped.")
        if job.kind == "quantize":
            return gr.skip(), gr.skip(), _table(job.result["rows"])
        return *show(session_id, model, prompt, None, on, scale), gr.skip()

    def script(session_id, model, prompt, adapter, on, scale):
        session, choice = page.session(session_id), page.choice(session_id, model)
        made = scripts.quantized(page.class_of(choice), str(choice.directory))
        if adapter in [name for _, name in adapters(session, choice)]:
            run = session.run(adapter)
            factor = limits.number("scale", scale, 0, MOST_SCALE) if on else 0.0
            made = scripts.scaled(
                page.class_of(choice),
                str(choice.directory),
                str(run),
                limits.checked_prompt(prompt),
                factor,
                MOST_TOKENS,
            )
        return made

    inputs = [*shared, adapter, on, scale]
    page.shows(tab, show, inputs, [sides, adapter], **DEVICE)
    gr.on([adapter.input, on.change, scale.release], guarded(show), inputs, [sides, adapter], **DEVICE)
    start.click(guarded(begin), [page.session_id, page.model, text, steps, rank], clock, **LIGHT, api_name="train_lora")
    shrink.click(guarded(quantizing), shared[:2], clock, **LIGHT, api_name="quantize")
    page.follows(tab, clock, look, inputs, [sides, adapter, table])
    code_panel(page, script, inputs)


def _shown(model, prompt: str) -> str:
    """What a model writes greedily, and its next token."""
    before = "" if family(model) == "T5" else prompt
    answer = escape(continuation(model, prompt))
    rows = bars_of(model.tokenizer, next_logits(model, prompt), sampler_of(1, 0, 1, 0), 6)
    return f'<div class="answer" dir="auto"><span class="prompt">{escape(before)}</span>{answer}</div>{bars(rows)}'


def _pairs(text: object) -> str:
    """Lines of source => target, as a table of pairs."""
    lines = [line for line in str(text or "").splitlines() if line.strip()]
    pairs = [tuple(part.strip() for part in line.split(ARROW, 1)) for line in lines]
    bad = next((line for line, pair in zip(lines, pairs) if len(pair) != 2 or not all(pair)), None)
    if bad is not None or len(pairs) < 8:
        raise ValueError(
            f"A T5 learns from at least 8 lines of source {ARROW} target. "
            + (f"This is none: {bad[:60]!r}" if bad is not None else f"There are {len(pairs)}.")
        )
    return "".join(json.dumps({"source": s, "target": t}, ensure_ascii=False) + "\n" for s, t in pairs)


def _table(rows: list[dict]) -> str:
    number = panels.number
    cells = [
        (
            r["mode"],
            number(r["megabytes"], 2),
            number(r["tokens_per_second"], 0),
            number(r["loss"]),
            f"{r['flips']:.1%}",
        )
        for r in rows
    ]
    return panels.table(
        ("precision", "weights, MB", "tokens / s", "loss, nats a token", "tokens that flip"),
        cells,
        "Flips: places where another token than in fp32 is the likeliest.",
    )
