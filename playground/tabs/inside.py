"""Look inside: where heads look, what each layer would answer, and what happens without a head."""

import gradio as gr
import numpy as np

from playground import limits, scripts, views
from playground.looking import KINDS, Seen, attention_value, continuation, kinds_of, see
from playground.models import family
from playground.page import DEVICE, LIGHT, Page, code_panel, guarded
from playground.runs import checkpoint_steps
from playground.views import panels
from playground.views.charts import bars, scatter, visible
from playground.writing import bars_of, sampler_of

NOW = "Training: as it is now"
MOST_PROJECTED = 60
NONE_OFF = {"model": None, "heads": []}  # heads are off in one model


def build(page: Page, tab: gr.Tab) -> None:
    """Lays the tab out, and wires it."""
    gr.HTML(
        panels.hint(
            "See the model at work.",
            "A line goes from a token that is read to the tokens it looks at. "
            "Attention is not an explanation: to learn what a head is good for, switch it off.",
        )
    )
    off, chosen = gr.State(NONE_OFF), gr.State([0, 0])
    with gr.Row():
        kind = gr.Radio([(KINDS["decoder"], "decoder")], value="decoder", label="Attention", scale=3)
        back = gr.Slider(
            -1, 0, value=0, step=1, interactive=False, label=NOW, elem_id="checkpoint", scale=2, min_width=150
        )
        first = gr.Slider(
            0, 448, value=0, step=16, label=f"Window of {limits.MAX_SHOWN_TOKENS} tokens, from", scale=2, min_width=150
        )
    heads = gr.HTML(
        {},
        html_template='<div class="heads"></div>',
        js_on_load=views.asset("heads.js"),
        elem_id="heads",
        min_height=380,
    )
    with gr.Row():
        switch = gr.Button("Switch layer 0, head 0 off", elem_id="ablate", size="md")
        restore = gr.Button("All heads on", size="md")
    effect = gr.HTML(elem_id="effect", min_height=300)
    with gr.Accordion("Logit lens: what each layer would answer", open=False) as lens_panel:
        lens = gr.HTML(elem_id="lens", min_height=160)
    with gr.Accordion("Where tokens are: the embedding in two dimensions", open=False) as map_panel:
        places = gr.HTML(elem_id="places", min_height=300)

    shared = [page.session_id, page.model, page.prompt]

    def show(session_id, model, prompt, kind, back, first, off):
        prompt = limits.checked_prompt(prompt)
        first = limits.number("first", first, 0, 100_000, whole=True)
        choice = page.choice(session_id, model)
        steps = checkpoint_steps(choice.directory)
        back = limits.number("back", back, -100_000, 0, whole=True)
        step = steps[back] if -len(steps) <= back < 0 else None
        with page.models.use(choice.directory) as newest:
            written = continuation(newest, prompt)
        with page.models.use(choice.directory, step) as opened:
            kinds = kinds_of(opened)
            kind = kind if kind in kinds else kinds[-1]
            off = _heads(_off_in(off, model), opened)
            whole = see(opened, prompt, written=written)
            cut = see(opened, prompt, off, kind, written) if off else None
            value = attention_value(cut or whole, kind, first, off)
            shown = _effect(opened, whole, cut, off)
        return (
            value,
            shown,
            gr.update(choices=[(KINDS[k] if len(kinds) > 1 else "Self", k) for k in kinds], value=kind),
            gr.update(
                minimum=-max(1, len(steps)),
                value=0 if step is None else back,
                label=NOW if step is None else f"Training: at step {step:,}",
                interactive=bool(steps),
            ),
        )

    def toggled(off, chosen, model):
        heads, chosen = _off_in(off, model), list(chosen)
        heads = [head for head in heads if head != chosen] if chosen in heads else [*heads, chosen]
        return {"model": model, "heads": heads}

    def label(off, chosen, model):
        words = "on" if list(chosen) in _off_in(off, model) else "off"
        return f"Switch layer {chosen[0]}, head {chosen[1]} {words}"

    def headpick(off, model, event: gr.EventData):
        chosen = [limits.number("layer", event.layer, 0, 1000, True), limits.number("head", event.head, 0, 1000, True)]
        return chosen, label(off, chosen, model)

    def lens_of(session_id, model, prompt):
        from kerasllm.inspection import logit_lens

        with page.models.use(page.choice(session_id, model).directory) as opened:
            return _lens_table(logit_lens(opened, limits.checked_prompt(prompt), 1))

    def projected(session_id, model, prompt):
        from kerasllm.inspection import embedding_projection

        with page.models.use(page.choice(session_id, model).directory) as opened:
            ids = list(dict.fromkeys(opened.tokenizer.encode(limits.checked_prompt(prompt))))[:MOST_PROJECTED]
            if len(ids) < 3:
                return panels.empty("Too few tokens", "Write a prompt of at least three different tokens.")
            found = embedding_projection(opened, ids)
        share = ", ".join(f"{part:.0%}" for part in found.explained)
        points = [(float(x), float(y), token) for (x, y), token in zip(found.points, found.tokens)]
        return scatter(points, f"The prompt's tokens on their two principal components ({share} of the variance)")

    def script(session_id, model, prompt, kind, off):
        choice = page.choice(session_id, model)
        limits.one_of("attention", kind, KINDS)
        return scripts.looking(
            page.class_of(choice), str(choice.directory), limits.checked_prompt(prompt), _off_in(off, model), kind
        )

    inputs, outputs = [*shared, kind, back, first, off], [heads, effect, kind, back]
    page.shows(tab, show, inputs, outputs, **DEVICE)
    changes = [kind.input, back.input, first.release]
    gr.on(changes, guarded(show), inputs, outputs, trigger_mode="always_last", **DEVICE)
    heads.headpick(guarded(headpick), [off, page.model], [chosen, switch], **LIGHT)
    changed = switch.click(toggled, [off, chosen, page.model], off, **LIGHT)
    changed.then(label, [off, chosen, page.model], switch, **LIGHT).then(guarded(show), inputs, outputs, **DEVICE)
    cleared = restore.click(lambda: NONE_OFF, None, off, **LIGHT)
    cleared.then(label, [off, chosen, page.model], switch, **LIGHT).then(guarded(show), inputs, outputs, **DEVICE)
    lens_panel.expand(guarded(lens_of), shared, lens, **DEVICE)
    map_panel.expand(guarded(projected), shared, places, **DEVICE)
    code_panel(page, script, [*shared, kind, off])


def _off_in(off: dict, model: str) -> list[list[int]]:
    """The heads that are off, if it is in this model."""
    return [list(head) for head in off["heads"]] if off["model"] == model else []


def _heads(off, model) -> list[tuple[int, int]]:
    layers, count = model.config.num_layers, model.config.num_heads
    return [(a, b) for a, b in off if isinstance(a, int) and isinstance(b, int) and a < layers and b < count]


def _effect(model, whole: Seen, cut: Seen | None, off) -> str:
    name = "The word at the mask" if family(model) == "BERT" else "The next token"
    plain = sampler_of(1, 0, 1, 0)
    before = bars_of(model.tokenizer, whole.logits, plain, 8)
    facts = {"loss of the text, nats a token": panels.number(whole.loss)}
    if cut is None:
        note = "with all heads · switch one off to see what changes"
        return panels.heading(name, note) + bars(before) + panels.facts(facts)
    after = bars_of(model.tokenizer, cut.logits, plain, 8)
    gone = ", ".join(f"layer {layer} head {head}" for layer, head in off)
    moved = float(np.abs(_shares(whole.logits) - _shares(cut.logits)).sum() / 2)
    facts |= {
        "without them": panels.number(cut.loss),
        "probability that moved": f"{moved:.1%}",
    }
    left = panels.heading(name, "with all heads") + bars(before)
    return panels.pair(left, panels.heading(name, f"without {gone}") + bars(after)) + panels.facts(facts)


def _shares(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _lens_table(lens) -> str:
    count = min(len(lens.tokens), 24)
    places = range(len(lens.tokens) - count, len(lens.tokens))
    head = "".join(f"<th scope='col'>{visible(lens.tokens[i])}</th>" for i in places)
    rows = []
    for layer in reversed(range(len(lens.top_tokens))):
        name = "embeddings" if layer == 0 else f"layer {layer - 1}"
        cells = "".join(_cell(lens.top_tokens[layer, i, 0], lens.top_probabilities[layer, i, 0]) for i in places)
        rows.append(f"<tr><th scope='row'>{name}</th>{cells}</tr>")
    note = "The darker, the surer. Each column: what is read there; each row: the likeliest answer after that layer."
    table = f'<table class="lens"><tr><th></th>{head}</tr>{"".join(rows)}</table>'
    return f'<div class="scroll">{table}</div><p class="note">{note}</p>'


def _cell(token: str, probability: float) -> str:
    shade = f"background: color-mix(in srgb, var(--a) {60 * probability:.0f}%, transparent)"
    return f'<td style="{shade}" title="{probability:.1%}">{visible(token)}</td>'
