"""Writes docs/compatibility.md from the tables that the tests walk: `python tests/compatibility.py`."""

import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "compatibility.md"
for folder in ("", "interop", "serving", "tuning"):
    sys.path.append(str(HERE / folder))

INTRODUCTION = """# Compatibility

What kerasllm reads and writes, from and to which tools. **Equal** means that a test computes the same with the tool
itself; what is not understood completely is **refused** with an error that names it. This page is made from the
tables of those tests by `python tests/compatibility.py`, and a test fails when it is out of date.
[export.md](export.md) has the formats for other programs.
"""
DIRECTORIES = """## Model directories of transformers

GPT-2, Llama, BERT, ELECTRA and T5, in and out. Any other `model_type` is refused by name, and so is a key of
config.json that changes the network and is not understood. Logits (or vectors) are compared with transformers' own
within 1e-4 of the largest.
"""
ADAPTERS = """## Adapters of peft

Logits are compared with transformers and peft; what is saved again opens in peft.
"""
TOKENIZERS = """## Tokenizers

Ids are compared with the format's own library on 2,000 odd texts. GGUF has a vocabulary where llama.cpp gives the
same ids, else none, and says so; a SavedModel reads text where TensorFlow's graph gives the same ids.
"""
SAVING = """## What comes back

"kept": all of it, with the optimizer; "answers": what the model answers and its options, as a preset has no
training state; "in the weights": merged into them; "refused": with a sentence that says what to do instead.
Adapters are saved beside a model by `save_adapter`.
"""
CLIENTS = """## OpenAI's clients

Keys of requests to `kerasllm serve`. "harmless": accepted, and the answer is the same; "refused": a 400 that names
the key, for the values in brackets.
"""


def page() -> str:
    """The page's text."""
    parts = (_directories, _adapters, _tokenizers, _saving, _clients)
    return INTRODUCTION + "".join(f"\n{part()}" for part in parts)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[*header], ["---"] * len([*header]), *([*row] for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _count(words: Iterable[str]) -> str:
    words = list(words)
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _directories() -> str:
    from odd_directories import DIRECTORIES as ROWS

    def verdict(row):
        return "refused" if row.refused else "equal"

    text = f"{DIRECTORIES}\n{len(ROWS)} directories: {_count(map(verdict, ROWS))}.\n"
    for (architecture, reader), rows in groupby(
        sorted(ROWS, key=lambda row: (row.architecture, row.reader)), lambda row: (row.architecture, row.reader)
    ):
        found = {"equal": [], "refused": []}
        for row in rows:
            found[verdict(row)].append(row.label or "as it is")
        text += f"\n**{architecture}** as `{reader}`"
        text += "".join(f"\n- {name}: {'; '.join(labels)}" for name, labels in found.items() if labels) + "\n"
    return text


def _adapters() -> str:
    from test_adapter_files import EQUAL, REFUSED

    return (
        f"{ADAPTERS}\n{len(EQUAL)} equal, {len(REFUSED)} refused.\n"
        f"\n- equal: {'; '.join(EQUAL)}\n- refused: {'; '.join(REFUSED)}\n"
    )


def _tokenizers() -> str:
    from test_tokenizer_formats import FORMATS, REFUSED

    rows = [
        (name, "equal", each.gguf or "no vocabulary", "equal" if each.graph is not False else "refused")
        for name, each in FORMATS.items()
    ]
    made = table(("format", "Tokenizer", "GGUF", "SavedModel"), rows)
    return f"{TOKENIZERS}\n{made}\nRefused: {'; '.join(REFUSED)}.\n"


def _saving() -> str:
    from saved_states import STATES, TRAINING_WAYS, WAYS, WEIGHTS_OR_COPIES, verdict

    ways = [*WAYS, *WEIGHTS_OR_COPIES, *TRAINING_WAYS]
    rows = [(state, *(verdict(state, way) for way in ways)) for state in STATES]
    return f"{SAVING}\n{table(('', *(f'`{way}`' for way in ways)), rows)}"


def _clients() -> str:
    from test_client_keys import REFUSED, ROUTES

    text = CLIENTS
    for route, (keys, *_) in ROUTES.items():
        found: dict[str, dict[str, list[str]]] = {}
        for key, value, verdict, *_ in keys:
            found.setdefault(key, {}).setdefault(verdict, []).append(str(value)[:60])
        rows = []
        for key, verdicts in sorted(found.items()):
            accepted = ", ".join(name for name in verdicts if name != REFUSED)
            rows.append((f"`{key}`", accepted or "refused", ", ".join(verdicts.get(REFUSED, [])) if accepted else ""))
        text += f"\n`{route}`\n\n{table(('key', '', 'refused values'), rows)}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
