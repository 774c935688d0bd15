"""Tokens: how a text is cut, and what a model in training sees of it."""

from html import escape

import gradio as gr

from playground import corpus, limits, scripts
from playground.page import DEVICE, LIGHT, Page, code_panel, guarded
from playground.reading import CORRUPTIONS, KINDS, corrupted, cut, trained
from playground.views import panels
from playground.views.chips import chips

MOST_SHOWN = 400


def build(page: Page, tab: gr.Tab) -> None:
    """Lays the tab out, and wires it."""
    gr.HTML(
        panels.hint(
            "A model reads numbers, not letters.",
            "Each chip is one token, with its number in the vocabulary below. ␣ is a blank, ⏎ the end of a line.",
        )
    )
    own = gr.HTML(elem_id="own-tokens", min_height=110)
    with gr.Accordion("The same text, cut in three ways", open=True):
        ways = gr.HTML(elem_id="three-ways", min_height=260)
    with gr.Accordion("What a model in training sees", open=True):
        with gr.Row():
            kind = gr.Radio(
                [(name, key) for key, name in CORRUPTIONS.items()], value="masked", label="Objective", scale=3
            )
            draw = gr.Slider(0, 30, value=1, step=1, label="Another draw", scale=2)
        hidden = gr.HTML(elem_id="hidden-tokens", min_height=90)

    def of_model(session_id, model, prompt):
        from kerasllm.tokenizers import Tokenizer

        choice = page.choice(session_id, model)
        return _block(cut(Tokenizer.from_preset(choice.directory), limits.checked_prompt(prompt), choice.title), prompt)

    def in_three_ways(prompt):
        text, file = limits.checked_prompt(prompt), corpus.builtin_text(page.root)
        return "".join(_block(cut(trained(kind, file), text, name), text) for kind, name in KINDS.items())

    def in_training(prompt, kind, draw):
        limits.one_of("objective", kind, CORRUPTIONS)
        draw = limits.number("draw", draw, 0, 2**31, whole=True)
        text, file = limits.checked_prompt(prompt), corpus.builtin_text(page.root)
        tokenizer = trained("wordpiece" if kind == "masked" else "unigram", file)
        note = "[seen→true]: the model sees the left, and has to tell the right."
        if kind == "span":
            note = "The encoder sees the text with holes; the decoder has to write what was in each."
        shown = corrupted(kind, text, tokenizer, draw)
        return f'<div class="answer" dir="auto">{escape(shown)}</div><p class="note">{note}</p>'

    def script(session_id, model, prompt):
        return scripts.tokens(str(page.choice(session_id, model).directory), limits.checked_prompt(prompt))

    shared = [page.session_id, page.model, page.prompt]
    page.shows(tab, of_model, shared, own, **LIGHT)
    page.shows(tab, in_three_ways, [page.prompt], ways, **DEVICE)
    page.shows(tab, in_training, [page.prompt, kind, draw], hidden, **DEVICE)
    gr.on([kind.change, draw.release], guarded(in_training), [page.prompt, kind, draw], hidden, **LIGHT)
    code_panel(page, script, shared)


def _block(made, text: str) -> str:
    count = len(made.tokens)
    note = f"{count:,} tokens · {len(text) / max(1, count):.1f} characters a token"
    if made.unknown:
        note += f" · {made.unknown} unknown"
    if count > MOST_SHOWN:
        note += f" · the first {MOST_SHOWN} are shown"
    return panels.heading(made.name, note) + chips(made.tokens[:MOST_SHOWN], made.ids)
