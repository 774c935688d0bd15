"""“The code for this”: pure functions from what a tab shows to the script that does the same."""

import pprint
from dataclasses import asdict

from kerasllm.training.recipe import Data, Recipe, Training, Tuning, Vocabulary
from playground.corpus import CHARACTERS

BUILTIN = f"""
# Part of the documentation that comes with Python.
texts = [text for i, text in enumerate(kerasllm.data.read_texts("builtin:pydoc")) if i % 5 == 0]
Path({{path!r}}).write_text("\\n\\n".join(texts)[:{CHARACTERS}], encoding="utf-8")
"""
MOST_TEXT = 4_000


def training(recipe: Recipe, directory: str, text: str | None = None, builtin: bool = False) -> str:
    """Trains as a recipe says.

    Args:
        recipe: whose `data.source` is the file that the script reads, and writes first where it can.
        directory: where the run goes.
        text: what is in the file, if it is one's own.
        builtin: whether the file is the built-in text.
    """
    source = recipe.data.source
    lines = ["from pathlib import Path", "", "import kerasllm", "from kerasllm.training.recipe import Recipe"]
    if builtin:
        lines += BUILTIN.format(path=source).splitlines()
    elif text is not None and len(text) <= MOST_TEXT:
        lines += ["", f'Path({source!r}).write_text({text!r}, encoding="utf-8")']
    elif text is not None:
        lines += ["", f"# {source} holds the text of the page: {len(text):,} characters."]
    if "Path(" not in "\n".join(lines):
        del lines[:2]
    lines += ["", f"recipe = Recipe.from_dict({_literal(told(recipe))})"]
    lines += [f"model = kerasllm.training.train(recipe, {directory!r})"]
    return "\n".join(lines) + "\n"


def opened(cls: str, directory: str, adapter: str | None = None) -> str:
    """The lines that open a model."""
    lines = ["import kerasllm", "", f"model = kerasllm.{cls}.from_preset({directory!r})"]
    return "\n".join(lines + ([f"model.load_adapter({adapter!r})"] if adapter else [])) + "\n"


def tokens(directory: str, text: str) -> str:
    """Tokens of a text."""
    return (
        "import kerasllm\n\n"
        f"tokenizer = kerasllm.Tokenizer.from_preset({directory!r})\n"
        f"text = {text!r}\n"
        "for token, token_id in zip(tokenizer.tokens(text), tokenizer.encode(text)):\n"
        "    print(token_id, repr(token))\n"
    )


def generation(cls: str, directory: str, prompt: str, max_new_tokens: int, options: dict) -> str:
    """Writes on, answers, or fills masks."""
    start = opened(cls, directory)
    if cls == "MaskedLM":
        return start + (
            f"for mask in model.predict_masks({prompt!r}, top_k=5):\n"
            "    for filled in mask:\n"
            '        print(f"{filled.probability:6.1%}  {filled.token}")\n'
        )
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    return start + f"print(model.generate({prompt!r}, {max_new_tokens}{arguments}))\n"


def looking(cls: str, directory: str, prompt: str, heads: list[tuple[int, int]], stack: str = "decoder") -> str:
    """Traces a text, and switches heads off."""
    asked = [repr(prompt)]
    script = opened(cls, directory)
    if cls == "Seq2SeqLM":
        asked.append("answer")
        script += f"answer = model.generate({prompt!r})\n"
    arguments = ", ".join(asked)
    script += (
        f"trace = model.trace({arguments})\n"
        f"print(trace.attention_maps({stack!r}).weights.shape)  # (layers, heads, query, key)\n"
    )
    if heads:
        script += (
            "\nfrom kerasllm.inspection import ablate, text_loss\n\n"
            f"print(text_loss(model, {arguments}))\n"
            f"with ablate(model, heads={[tuple(head) for head in heads]}, stack={stack!r}):\n"
            f"    print(text_loss(model, {arguments}))\n"
        )
    return script


def scaled(cls: str, directory: str, adapter: str, prompt: str, factor: float, max_new_tokens: int) -> str:
    """The base and its LoRA on one prompt."""
    return opened(cls, directory, adapter) + (
        f"with model.disable_adapter():\n    print(model.generate({prompt!r}, {max_new_tokens}))\n"
        f"model.scale({factor!r})\n"
        f"print(model.generate({prompt!r}, {max_new_tokens}))\n"
    )


def quantized(cls: str, directory: str) -> str:
    """The model in several precisions."""
    return (
        "import kerasllm\nfrom kerasllm.compression.report import num_bytes\n\n"
        'for mode in ("fp32", "int8", "int4"):\n'
        f"    model = kerasllm.{cls}.from_preset({directory!r})\n"
        '    if mode != "fp32":\n        model.quantize(mode)\n'
        '    print(mode, f"{num_bytes(model) / 1e6:.2f} MB")\n'
    )


def comparison(sides: list[tuple[str, str]], prompt: str, max_new_tokens: int, options: dict) -> str:
    """Answers of two models; `sides` are (class, directory)."""
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    rows = "".join(f"    kerasllm.{cls}.from_preset({directory!r}),\n" for cls, directory in sides)
    return (
        f"import kerasllm\n\nmodels = [\n{rows}]\n"
        f"for model in models:\n    print(model.generate({prompt!r}, {max_new_tokens}{arguments}))\n"
    )


def exported(cls: str, directory: str, output: str, format: str) -> str:
    """Exports a model."""
    return opened(cls, directory) + f"model.export({output!r}, format={format!r})\n"


def told(recipe: Recipe) -> dict:
    """What of a recipe is not as it is when left out."""
    sections = {"data": Data(), "tokenizer": Vocabulary(), "tuning": Tuning(), "training": Training()}
    plain = {name: asdict(section) for name, section in sections.items()}
    told = {}
    for key, value in asdict(recipe).items():
        if isinstance(value, dict) and key != "model":
            value = {k: v for k, v in value.items() if v != plain[key].get(k)}
        if value not in ({}, "", None):
            told[key] = value
    return told


def _literal(values: dict) -> str:
    return pprint.pformat(values, width=100, sort_dicts=False, compact=True)
