"""Compare & vote: two models on one prompt, side by side, without their names."""

from html import escape

import gradio as gr

from playground import limits, scripts, votes
from playground.models import family
from playground.page import DEVICE, LIGHT, Page, code_panel, guarded
from playground.views import panels
from playground.writing import MOST_NEW_TOKENS, options_of, sampler_of

VOTES_FILE = "votes.jsonl"


def build(page: Page, tab: gr.Tab) -> None:
    """Lays the tab out, and wires it."""
    gr.HTML(
        panels.hint(
            "Which is better?",
            "Two models of the sidebar answer the prompt. Their sides are shuffled, and "
            "their names hidden until you have voted. Votes are kept as preference data.",
        )
    )
    with gr.Row():
        temperature = gr.Slider(0, 2, value=0.8, step=0.05, label="Temperature")
        top_p = gr.Slider(0.05, 1, value=0.95, step=0.05, label="Top-p, share")
        length = gr.Slider(1, MOST_NEW_TOKENS, value=40, step=1, label="New tokens")
        seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=80)
    ask = gr.Button("Let both answer", variant="primary", elem_id="ask")
    answers = gr.HTML(panels.empty("No answers yet", "Press “Let both answer”."), elem_id="answers", min_height=150)
    with gr.Row():
        buttons = {vote: gr.Button(words, size="md", elem_id=f"vote-{vote}") for vote, words in votes.CHOICES.items()}
    standing = gr.HTML(elem_id="standing", min_height=110)
    with gr.Row():
        download = gr.DownloadButton("Download the votes (JSONL)", interactive=False, elem_id="download-votes")

    shared = [page.session_id, page.model, page.other, page.prompt]
    knobs = [temperature, top_p, length, seed]

    def sides(session_id, model, other):
        a, b = page.choice(session_id, model), page.choice(session_id, other)
        if a.key == b.key:
            raise ValueError("Both sides are the same model. Choose another one under “Compare with”.")
        return a, b

    def both(session_id, model, other, prompt, temperature, top_p, length, seed):
        prompt, chosen = limits.checked_prompt(prompt), sides(session_id, model, other)
        sampler = sampler_of(temperature, 0, top_p, 0, seed)
        length = limits.number("new tokens", length, 1, MOST_NEW_TOKENS, whole=True)
        texts = [_answer(page, choice, prompt, sampler, length) for choice in chosen]
        swapped = votes.swap()
        page.session(session_id).notes["ballot"] = {
            "prompt": prompt,
            "answers": tuple(texts),
            "models": tuple(choice.key for choice in chosen),
            "titles": tuple(choice.title for choice in chosen),
            "sampler": {"temperature": sampler.temperature, "top_p": sampler.top_p, "max_new_tokens": length},
            "seed": sampler.seed,
            "swapped": swapped,
        }
        return _pair(prompt, texts[::-1] if swapped else texts, ("Left", "Right"))

    def vote(session_id, choice):
        session = page.session(session_id)
        ballot = session.notes.pop("ballot", None)
        if ballot is None:
            raise ValueError("There is nothing to vote on. Let both answer first.")
        made = votes.record(
            *(ballot[n] for n in ("prompt", "answers", "models", "sampler", "seed")), choice, ballot["swapped"]
        )
        votes.add(session.folder / VOTES_FILE, made)
        texts, titles = list(ballot["answers"]), list(ballot["titles"])
        if ballot["swapped"]:
            texts, titles = texts[::-1], titles[::-1]
        return _pair(ballot["prompt"], texts, titles), count(session_id, *ballot["models"]), packed(session_id)

    def count(session_id, model, other):
        session = page.session(session_id)
        found = votes.read(session.folder / VOTES_FILE)
        result = votes.standing(found, (model, other))
        rate = panels.DASH if result["rate"] is None else f"{result['rate']:.0%}"
        between = "" if result["rate"] is None else f" ({result['low']:.0%} to {result['high']:.0%})"
        figures = {
            "votes in all": len(found),
            "model wins": result["wins"],
            "the other wins": result["losses"],
            "ties": result["ties"],
            "both bad": result["neither"],
            "win rate, 95 % interval": rate + between,
        }
        return panels.heading("How the two stand") + panels.facts(figures)

    def packed(session_id):
        file = page.session(session_id).folder / VOTES_FILE
        if not file.is_file():
            return gr.skip()
        return gr.DownloadButton(value=page.offered(session_id, file), interactive=True)

    def script(session_id, model, other, prompt, temperature, top_p, length, seed):
        chosen = [(page.class_of(c), str(c.directory)) for c in sides(session_id, model, other)]
        options = options_of(sampler_of(temperature, 0, top_p, 0, seed))
        return scripts.comparison(chosen, limits.checked_prompt(prompt), int(length), options)

    page.shows(tab, packed, [page.session_id], download, **LIGHT)
    page.shows(tab, count, [page.session_id, page.model, page.other], standing, **LIGHT)
    ask.click(guarded(both), [*shared, *knobs], answers, **DEVICE, api_name="compare")
    for name, button in buttons.items():
        button.click(
            guarded(lambda session_id, name=name: vote(session_id, name)),
            page.session_id,
            [answers, standing, download],
            **LIGHT,
            api_name=f"vote_{name}",
        )
    code_panel(page, script, [*shared, *knobs])


def _answer(page: Page, choice, prompt: str, sampler, length: int) -> str:
    with page.models.use(choice.directory) as model:
        if family(model) == "BERT":
            raise ValueError(f"{choice.title} fills masks and writes no text. Choose two models that write.")
        options = {} if family(model) == "T5" else {"truncation": True, "strip_prompt": True}
        return model.generate(prompt, length, sampler=sampler, **options)


def _pair(prompt: str, texts, names) -> str:
    sides = (
        f'{panels.heading(name)}<div class="answer" dir="auto"><span class="prompt">{escape(prompt)}</span>'
        f"{escape(text)}</div>"
        for name, text in zip(names, texts)
    )
    return panels.pair(*sides)
