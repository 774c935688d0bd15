"""Tokens a second with each engine and kind of weights, on a CPU: a GPT-2 of random weights, greedy, batch 1.

All in one process, which holds the model once for each kind; the engines take turns in a new order each round, and
ratios are taken within a round. Our own float32 is Keras's programs on the backend that is asked for.
"""

import os
import random
import statistics
from typing import Annotated, Any

import report
import typer

MODES = ("float32", "int8", "int4")
BARS = {"int8": 2.0, "int4": 2.5}  # the best engine's speed, in that of our own float32
LLAMA_CPP_BAR = 0.7  # in that of llama.cpp with the same weights
SHAPES = {"full": ("gpt2_small", {}), "quick": ("gpt2_tiny", {"vocabulary_size": 512, "num_layers": 1})}
QUICK_FOLDER = report.REPOSITORY / "build/benchmarks"


def contestants(size: str) -> dict[tuple[str, str], tuple[Any, Any]]:
    """(mode, engine) → the model, and what makes its tokens."""
    import keras

    import kerasllm
    from kerasllm.compression.engines import ENGINES, use_engine

    name, changes = SHAPES[size]
    found = {}
    for mode in MODES:
        keras.utils.set_random_seed(0)
        model = kerasllm.CausalLM(kerasllm.TransformerConfig.from_name(name, **changes))
        if mode != "float32":
            model.quantize(mode)
        for engine in ENGINES[1:]:
            try:
                use_engine(model, engine)
            except ImportError as error:
                typer.secho(str(error), fg="red", err=True)
                continue
            found[mode, engine] = model, model._programs
    return found


def measure(rounds: int, size: str) -> list[dict[tuple[str, str], float]]:
    """Tokens a second of every contestant, round by round; a first round compiles and is left out."""
    from kerasllm.compression.report import tokens_per_second

    taking_part, found = contestants(size), []
    for _ in range(rounds + 1):
        speeds = {}
        for key in random.sample(list(taking_part), len(taking_part)):
            model, model._programs = taking_part[key]
            speeds[key] = tokens_per_second(model)
            taking_part[key] = model, model._programs  # Keras's are made at first use.
        found.append(speeds)
    return found[1:]


def ratio(rounds: list[dict], above: tuple[str, str], below: tuple[str, str]) -> float:
    return statistics.median(speeds[above] / speeds[below] for speeds in rounds)


def bars(rounds: list[dict]) -> list[list[str]]:
    """What must hold, and whether it does."""
    rows = []
    for mode, bar in BARS.items():
        ratios = {key: ratio(rounds, key, ("float32", "keras")) for key in rounds[0] if key[0] == mode}
        best = max(ratios, key=ratios.get)
        rows.append((f"{mode}, {best[1]} ÷ our float32", ratios[best], bar))
        own = {key: value for key, value in ratios.items() if key[1] != "llama.cpp"}
        if (mode, "llama.cpp") in ratios and own:
            best = max(own, key=own.get)
            rows.append((f"{mode}, {best[1]} ÷ llama.cpp", ratio(rounds, best, (mode, "llama.cpp")), LLAMA_CPP_BAR))
    return [[what, f"{found:.2f}", f">= {bar}", "met" if found >= bar else "missed"] for what, found, bar in rows]


def main(
    backend: Annotated[str, typer.Option(help="tensorflow, jax or torch")] = "tensorflow",
    rounds: Annotated[int, typer.Option(min=1, help="how often each engine takes its turn")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="a toy model, into build/benchmarks/: does it run?")] = False,
    save: Annotated[bool, typer.Option(help="write benchmarks/results/")] = True,
) -> None:
    """Measure every engine that is installed."""
    os.environ["KERAS_BACKEND"] = backend
    found = measure(1 if quick else rounds, "quick" if quick else "full")
    rows = [
        [
            f"{mode}, {engine}",
            f"{statistics.median(speeds[mode, engine] for speeds in found):.1f}",
            f"{ratio(found, (mode, engine), ('float32', 'keras')):.2f}",
        ]
        for mode, engine in found[0]
    ]
    rows.sort(key=lambda row: (MODES.index(row[0].split(",")[0]), row[0]))
    tables = [
        (f"tokens a second, {backend}", ("weights, engine", "tokens/s", "÷ our float32"), rows),
        ("bars", ("what", "ratio", "bar", ""), bars(found)),
    ]
    for table in tables:
        report.show(*table)
    if save or quick:
        data = [{f"{mode} {engine}": speed for (mode, engine), speed in speeds.items()} for speeds in found]
        folder = QUICK_FOLDER if quick else report.RESULTS
        report.write(f"engines-{backend}", "Engines on a CPU", tables, {"rounds": data}, folder=folder)


if __name__ == "__main__":
    typer.run(main)
