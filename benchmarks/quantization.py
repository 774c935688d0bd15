"""What eight and four bits cost: perplexities of four small trained models, quantized in each way on each backend.

The models are those of recipes (about ten minutes of training on two cores, once: they stay in build/benchmarks), and
each is read and quantized by a process of its own backend. Perplexities are of text that was not trained on; gptq and
awq calibrate on text that was. Rounding, gptq and awq are compared with the same groups, and the embedding in int8.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import report
import typer

BACKENDS = ("tensorflow", "jax", "torch")
RECIPES = {"GPT": "quickstart", "BERT": "bert-mlm-cpu", "T5": "t5-dates-cpu", "Llama": "llama-tiny-cpu"}
MODES = {
    "int8": "int8",
    "int4": {"embedding.*": "int8", "*": "int4"},
    "gptq": "gptq",
    "awq": "awq",
}
LIMITS = {"int8": 0.01, "gptq": 0.04, "awq": 0.04}  # rise of the perplexity
TOKENS, ROWS = 20_000, 128  # evaluated, and rows of text to calibrate on
LOGS = report.REPOSITORY / "build/benchmarks"


def folder(quick: bool) -> Path:
    """Where the models are."""
    return LOGS / ("quantization-quick" if quick else "quantization")


def texts_of(model: Any, family: str) -> tuple[Any, Any]:
    """What to calibrate on and what to evaluate on."""
    import numpy as np

    import kerasllm

    if family == "T5":
        pairs = kerasllm.data.read_pairs("builtin:dates:train")[:4000]
        return [text for pair in pairs for text in pair], "builtin:dates:validation"
    length = model.config.max_sequence_length
    texts = list(kerasllm.data.read_texts("builtin:pydoc"))
    parts = kerasllm.data.from_text(texts, model.tokenizer, sequence_length=length, batch_size=8)
    rows = []
    for part in parts:
        batches = [part[i] for i in np.linspace(0, len(part) - 1, min(len(part), ROWS // 4)).astype(int)]
        rows.append(np.concatenate([(b[0]["token_ids"] if isinstance(b[0], dict) else b[0]) for b in batches]))
    return rows


def work(backend: str, quick: bool) -> None:
    """Quantizes every model in every way and prints a line of JSON for each."""
    os.environ["KERAS_BACKEND"] = backend
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Libraries print where they like.
    from kerasllm.compression.command import saved_class
    from kerasllm.compression.evaluation import difference, evaluation_batches
    from kerasllm.compression.report import num_bytes

    for family in RECIPES:
        cls = saved_class(folder(quick) / family)
        before = cls.from_preset(folder(quick) / family)
        calibration, evaluation = texts_of(before, family)
        batches = evaluation_batches(before, evaluation, 500 if quick else TOKENS)
        for name, mode in MODES.items():
            after = cls.from_preset(folder(quick) / family)
            after.quantize(mode, **({"calibration": calibration} if name in ("gptq", "awq") else {}))
            found = difference(before, after, batches)._asdict()
            size = num_bytes(after) / num_bytes(before)
            print(json.dumps({"family": family, "mode": name, "size": size, **found}), file=answers)


def bars(found: list[dict[str, Any]]) -> list[list[str]]:
    """What must hold, and whether it does."""
    by = {(one["backend"], one["family"], one["mode"]): one for one in found}
    rows = []
    for (backend, family, mode), one in by.items():
        if mode not in LIMITS:
            continue
        rise = one["perplexity_after"] / one["perplexity_before"] - 1
        rows.append([backend, family, mode, f"{rise:+.2%}", f"<= {LIMITS[mode]:+.0%}", rise <= LIMITS[mode]])
        if mode != "int8":
            rounded = by[backend, family, "int4"]
            figure = f"{one['kl']:.5f} and {rounded['kl']:.5f}"
            rows.append([backend, family, f"KL, {mode} < int4", figure, "less", one["kl"] < rounded["kl"]])
    return [[*row[:-1], "met" if row[-1] else "missed"] for row in rows]


def main(
    backends: Annotated[str, typer.Option(help="comma-separated")] = ",".join(BACKENDS),
    trained_with: Annotated[str, typer.Option(help="backend that trains the models")] = "jax",
    quick: Annotated[bool, typer.Option("--quick", help="models of three steps: does it all run?")] = False,
    save: Annotated[bool, typer.Option(help="write benchmarks/results/; without, build/benchmarks/")] = True,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Train four models if they are not there yet, and quantize them."""
    if worker:
        work(worker, quick)
        return
    for family, recipe in RECIPES.items():
        output = folder(quick) / family
        if not (output / "config.json").exists():
            options = ["--set", "training.steps=3", "--set", "training.evaluate_every=3"] if quick else []
            command = [sys.executable, "-m", "kerasllm", "train", recipe, *options, "--output", str(output)]
            subprocess.run(command, check=True, env={**os.environ, "KERAS_BACKEND": trained_with})
    found: list[dict[str, Any]] = []
    for backend in backends.split(","):
        command = [sys.executable, __file__, "--worker", backend, *(["--quick"] if quick else [])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            for line in process.stdout:
                found.append({"backend": backend, **json.loads(line)})
                typer.echo(line.rstrip())
        if process.returncode:
            raise typer.Exit(process.returncode)
    rows = [
        [
            *(one[name] for name in ("backend", "family", "mode")),
            f"{one['size']:.3f}",
            f"{one['perplexity_before']:.4f}",
            f"{one['perplexity_after']:.4f}",
            f"{one['kl']:.5f}",
            f"{one['top1_changed']:.2%}",
        ]
        for one in found
    ]
    columns = ("backend", "model", "weights", "size", "perplexity before", "after", "KL a token", "top-1 changed")
    tables = [
        ("Quantized models", columns, rows),
        ("Bars", ("backend", "model", "what", "figure", "bar", ""), bars(found)),
    ]
    for table in tables:
        report.show(*table)
    to = report.RESULTS if save and not quick else LOGS
    report.write("quantization", "What eight and four bits cost", tables, {"figures": found}, folder=to)


if __name__ == "__main__":
    typer.run(main)
