"""Generate: the next token's distribution, text as it is written, and roads not taken."""

from html import escape

import gradio as gr

from playground import limits, scripts, views
from playground.models import family
from playground.page import DEVICE, LIGHT, Page, code_panel, guarded
from playground.views import panels
from playground.views.charts import bars
from playground.views.chips import alternatives, written
from playground.writing import MOST_NEW_TOKENS, bars_of, branched, next_logits, options_of, sampler_of, stream

OPENING_TOKENS = 40
EVERY = 2  # tokens between two drawings
QUIET = {**DEVICE, "show_progress": "hidden"}


def build(page: Page, tab: gr.Tab) -> None:
    """Lays the tab out, and wires it."""
    gr.HTML(
        panels.hint(
            "Let the model write.",
            "The underline of a token tells how sure the model was: orange for "
            "hardly, blue for very. Click a token to see what else it could have been, and go on from there.",
        )
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            text = gr.HTML(written([], ""), js_on_load=views.asset("pick.js"), elem_id="written", min_height=150)
            with gr.Row():
                go = gr.Button("Write", variant="primary", elem_id="write")
                halt = gr.Button("Halt", size="lg", min_width=80, scale=0)
            others = gr.HTML(js_on_load=views.asset("pick.js"), elem_id="alternatives", min_height=60)
        with gr.Column(scale=5, min_width=300):
            ahead = gr.HTML(elem_id="next-token", min_height=330)
            temperature = gr.Slider(0, 2, value=0.8, step=0.05, label="Temperature (0: always the likeliest)")
            top_k = gr.Slider(0, 100, value=0, step=1, label="Top-k, tokens (0: all)")
            top_p = gr.Slider(0.05, 1, value=0.95, step=0.05, label="Top-p, share")
            min_p = gr.Slider(0, 0.5, value=0, step=0.01, label="Min-p, share of the likeliest")
            with gr.Row():
                length = gr.Slider(1, MOST_NEW_TOKENS, value=OPENING_TOKENS, step=1, label="New tokens", min_width=170)
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=80)

    knobs = [temperature, top_k, top_p, min_p]
    shared = [page.session_id, page.model, page.prompt]

    def next_token(session_id, model, prompt, *knobs):
        sampler, prompt = sampler_of(*knobs), limits.checked_prompt(prompt)
        session, choice = page.session(session_id), page.choice(session_id, model)
        key, kept = (choice.key, prompt), session.notes.get("next")
        if kept is None or kept[0] != key:
            with page.models.use(choice.directory) as opened:
                if family(opened) == "BERT":
                    return _no_distribution()
                session.notes["next"] = kept = (key, next_logits(opened, prompt), opened.tokenizer)
        _, logits, tokenizer = kept
        rows = bars_of(tokenizer, logits, sampler)
        count = sum(row[2] for row in bars_of(tokenizer, logits, sampler, shown=len(logits)))
        note = f"after the prompt · {count:,} of {tokenizer.vocabulary_size:,} tokens can be chosen"
        return panels.heading("The next token", note) + bars(rows)

    def write(session_id, model, prompt, length, seed, *knobs):
        sampler, prompt = sampler_of(*knobs, seed), limits.checked_prompt(prompt)
        length = limits.number("new tokens", length, 1, MOST_NEW_TOKENS, whole=True)
        session, choice = page.session(session_id), page.choice(session_id, model)
        with page.models.use(choice.directory) as opened:
            filled = _filled(opened, prompt) if family(opened) == "BERT" else None
        if filled is not None:
            yield filled, ""
            return
        yield from _shown(session, choice, opened, prompt, sampler, length, [])

    def branch(session_id, length, seed, temperature, top_k, top_p, min_p, event: gr.EventData):
        sampler = sampler_of(temperature, top_k, top_p, min_p, seed)
        length = limits.number("new tokens", length, 1, MOST_NEW_TOKENS, whole=True)
        session = page.session(session_id)
        _, model, prompt, pieces = session.notes.get("written") or (None, None, "", [])
        choice = page.choice(session_id, model)
        with page.models.use(choice.directory) as opened:
            if family(opened) == "T5":
                raise ValueError("A model with an encoder begins its answer anew: change the source instead.")
            before = branched(opened.tokenizer, pieces, event.place, event.token)
        yield from _shown(session, choice, opened, prompt, sampler, length, before)

    def _shown(session, choice, opened, prompt, sampler, length, before):
        start = prompt if family(opened) == "GPT" else f"{prompt}  →  "
        pieces = list(before)
        yield written(pieces, start), ""
        for pieces in page.models.in_turns(stream(opened, prompt, sampler, length, before)):
            session.notes["written"] = (start, choice.key, prompt, pieces)
            if len(pieces) % EVERY == 0:
                yield written(pieces, start), ""
        yield written(pieces, start), f'<p class="note">{len(pieces)} tokens written.</p>'

    def pick(session_id, event: gr.EventData):
        start, _, _, pieces = page.session(session_id).notes.get("written") or ("", None, "", [])
        if not isinstance(event.place, int) or not 0 <= event.place < len(pieces):
            raise ValueError("There is no such token any more. Press Write.")
        head = panels.heading(f"Instead of “{pieces[event.place]['text']}”", "click one to go on from there")
        return written(pieces, start, event.place), head + alternatives(
            pieces[event.place]["alternatives"], event.place
        )

    def script(session_id, model, prompt, length, seed, *knobs):
        choice, sampler = page.choice(session_id, model), sampler_of(*knobs, seed)
        cls = page.class_of(choice)
        return scripts.generation(
            cls, str(choice.directory), limits.checked_prompt(prompt), int(length), options_of(sampler)
        )

    writing = [*shared, length, seed, *knobs]
    page.shows(tab, next_token, [*shared, *knobs], ahead, **DEVICE)
    page.shows(tab, write, writing, [text, others], **DEVICE)
    gr.on(
        [k.change for k in knobs],
        guarded(next_token),
        [*shared, *knobs],
        ahead,
        **LIGHT,
        trigger_mode="always_last",
        api_name="next_token",
    )
    event = go.click(guarded(write), writing, [text, others], **QUIET, api_name="write")
    text.pick(guarded(pick), page.session_id, [text, others], **LIGHT)
    branching = others.branch(guarded(branch), [page.session_id, length, seed, *knobs], [text, others], **QUIET)
    halt.click(None, cancels=[event, branching])
    code_panel(page, script, writing)


def _filled(model, prompt: str) -> str:
    mask = model.tokenizer.role_tokens["mask_token"]
    if mask not in prompt:
        raise ValueError(f"A model like BERT fills masks: write {mask} in the prompt, in place of a word.")
    parts = [f'<div class="answer" dir="auto">{escape(prompt)}</div>']
    for number, mask in enumerate(model.predict_masks(prompt, 5), start=1):
        parts.append(panels.heading(f"Mask {number}", "the five likeliest"))
        parts.append(bars([(filled.token, filled.probability, True) for filled in mask]))
    return "".join(parts)


def _no_distribution() -> str:
    return panels.empty(
        "Not for this model",
        "A model like BERT has no next token: it fills masks from both sides. "
        "Press Write to see its five likeliest words for each.",
    )
