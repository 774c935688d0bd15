"""What pruning, distilling and quantization-aware training cost and bring, on a small GPT that is trained first.

All in one process, on one text and from one trained model: structured pruning (speed and perplexity), zeros by each
method (perplexity), a student of half the blocks with and without its teacher, and four bits with and without training
for them. Perplexities are of the text's last tenth.
"""

import os
import random
import statistics
import sysconfig
import time
from pathlib import Path
from typing import Annotated, Any

import report
import typer

SHAPE = {"num_layers": 4, "num_heads": 10, "hidden_dim": 160, "intermediate_dim": 640, "positions": "rotary"}
LENGTH, BATCH_SIZE, VOCABULARY_SIZE = 64, 16, 512
SIZES = {  # steps of the base, and of what is trained after it; rows to look at; rounds of timing
    "full": {"base": 3000, "after": 400, "rows": 128, "rounds": 7},
    "quick": {"base": 5, "after": 3, "rows": 4, "rounds": 1},
}
PRUNED = 0.3
SPARSITIES = (0.5, "2:4")
# Python's own tests, eight megabytes: read hardly more than once, so that the base is not too sure of itself.
SOURCES = str(Path(sysconfig.get_paths()["stdlib"]) / "test" / "test_[a-r]*.py")
PIECE = 1000  # characters: the last tenth is to be like the rest, which whole files, in an order of any kind, are not
QUICK_FOLDER = report.REPOSITORY / "build/benchmarks"


class Bench:
    """The text, and the model that all others are made from.

    Args:
        data: a text, as `kerasllm.data.read_texts` takes it.
        size: a key of `SIZES`.
    """

    def __init__(self, data: str, size: str) -> None:
        import keras
        import numpy as np

        import kerasllm

        self.size = SIZES[size]
        keras.utils.set_random_seed(0)
        texts = [text[i : i + PIECE] for text in kerasllm.data.read_texts(data) for i in range(0, len(text), PIECE)]
        random.Random(0).shuffle(texts)
        tokenizer = kerasllm.Tokenizer.train(texts, kind="bpe", vocabulary_size=VOCABULARY_SIZE)
        self.train, self.validation = kerasllm.data.from_text(
            texts, tokenizer, sequence_length=LENGTH, batch_size=BATCH_SIZE
        )
        if size == "quick":
            self.validation.steps_per_epoch = 2
        batches = [self.train[i][0]["token_ids"] for i in range(-(-self.size["rows"] // BATCH_SIZE))]
        self.rows = np.concatenate(batches)[: self.size["rows"]]
        config = kerasllm.TransformerConfig(VOCABULARY_SIZE, LENGTH, **SHAPE)
        self.base = kerasllm.CausalLM(config, tokenizer)
        self.seconds = self.fit(self.base, self.size["base"], 0.003, optimizer="muon")

    def fit(self, model: Any, steps: int, rate: float = 1e-3, optimizer: str = "adamw") -> float:
        """Train for so many steps, always on the same batches: seconds."""
        from kerasllm.training.optimizers import OPTIMIZERS

        started = time.perf_counter()
        self.train.resume(0, 0)
        self.train.steps_per_epoch = steps
        network = getattr(model, "student", model)
        model.compile(OPTIMIZERS[optimizer](rate, total_steps=steps, warmup_steps=steps // 10, model=network))
        model.fit(self.train, epochs=1, verbose=0)
        return time.perf_counter() - started

    def perplexity(self, model: Any) -> float:
        model.compile()
        return model.evaluate(self.validation, verbose=0, return_dict=True)["perplexity"]

    def copy(self) -> Any:
        from kerasllm.compression.reshaping import rebuilt

        return rebuilt(self.base)

    def structured(self) -> dict[str, float]:
        """30 % of heads and neurons: perplexities at once, tuned, and tuned by what the whole model says; speeds."""
        from kerasllm.compression import Distiller, prune_structure
        from kerasllm.compression.reshaping import rebuilt

        smaller = prune_structure(self.base, heads=PRUNED, neurons=PRUNED, calibration=self.rows)
        found, taught = {"at once": self.perplexity(smaller)}, rebuilt(smaller)
        self.fit(smaller, self.size["after"])
        found["tuned"] = self.perplexity(smaller)
        self.fit(Distiller(taught, self.base), self.size["after"])
        found["tuned, distilled"] = self.perplexity(taught)
        ratios = {"evaluate": [], "generate": []}
        models = {"base": self.base, "smaller": smaller}
        for round_ in range(self.size["rounds"] + 1):
            seconds = {}
            for name in random.sample(list(models), 2):
                seconds[name] = {"evaluate": self._seconds_of_evaluate(models[name])}
                seconds[name]["generate"] = self._seconds_of_generate(models[name])
            for kind in ratios if round_ else ():  # The first round compiles.
                ratios[kind].append(seconds["base"][kind] / seconds["smaller"][kind])
        found |= {f"speed of {kind}": statistics.median(values) for kind, values in ratios.items() if values}
        return {**found, "parameters": smaller.count_params() / self.base.count_params()}

    def _seconds_of_evaluate(self, model: Any) -> float:
        if not model.compiled:
            model.compile()
        started = time.perf_counter()
        model.evaluate(self.validation, verbose=0)
        return time.perf_counter() - started

    def _seconds_of_generate(self, model: Any) -> float:
        prompts = [[int(i) for i in row[:8]] for row in self.rows[:16]]
        started = time.perf_counter()
        model.generate(prompts, LENGTH - 8, stop_token_ids=[])
        return time.perf_counter() - started

    def sparse(self) -> dict[str, dict[str, float]]:
        """Perplexities with zeros, untrained: sparsity → method → perplexity; and trained on, of the best."""
        from kerasllm.compression import Magnitude, SparseGPT, Wanda, prune, sparsity

        found = {}
        for share in SPARSITIES:
            here = found[str(share)] = {}
            methods = {
                "magnitude": Magnitude(share),
                "Wanda": Wanda(share, self.rows),
                "Wanda, by layers": Wanda(share, self.rows, scope="layer"),
                "SparseGPT": SparseGPT(share, self.rows),
            }
            for name, method in methods.items():
                model = self.copy()
                prune(model, method)
                here[name] = self.perplexity(model)
            self.fit(model, self.size["after"])
            here["SparseGPT, tuned"] = self.perplexity(model)
            if abs(sparsity(model).total - 0.5) > 0.01:
                raise ValueError(f"Half of the weights must be zero still. Received: {sparsity(model).total}")
        return found

    def distilled(self) -> dict[str, float]:
        """Perplexities of a student of half the blocks after the same steps, with and without its teacher."""
        from kerasllm.compression import Distiller, student_from

        half, found = SHAPE["num_layers"] // 2, {}
        for name in ("at once", "alone", "distilled", "distilled, hidden states too"):
            student = student_from(self.base, half)
            if name == "alone":
                self.fit(student, self.size["after"])
            elif name.startswith("distilled"):
                hidden = {"hidden": 0.01} if name != "distilled" else {}
                self.fit(Distiller(student, self.base, **hidden), self.size["after"])
            found[name] = self.perplexity(student)
        return found

    def four_bits(self) -> dict[str, float]:
        """Perplexities with one scale an output: rounded, and rounded after the same steps with and without knowing."""
        from kerasllm.compression import quantization_aware

        found = {}
        for name in ("rounded", "tuned, then rounded", "trained for it"):
            model = self.copy()
            if name == "trained for it":
                quantization_aware(model, "int4", group_size=-1)
            if name != "rounded":
                self.fit(model, self.size["after"])
            model.quantize("int4", group_size=-1)
            found[name] = self.perplexity(model)
        return found


def bars(results: dict[str, Any]) -> list[list[str]]:
    """What must hold, and whether it does."""
    base, structured, students = results["base"], results["structured"], results["students"]
    rise = structured["tuned, distilled"] / base - 1
    speed = structured["speed of evaluate"]
    rows = [
        ("30 % of heads and neurons: speed", f"{speed:.2f}", ">= 1.2", speed >= 1.2),
        ("30 % of heads and neurons, tuned, distilled: perplexity", f"{rise:+.1%}", "<= +5 %", rise <= 0.05),
    ]
    for share, found in results["sparse"].items():
        # Magnitude goes by layers, too: Wanda by outputs is in the table above.
        names = ("SparseGPT", "Wanda, by layers", "magnitude")
        figures = [found[name] for name in names]
        better = figures == sorted(figures)
        rows.append((f"{share}: {' < '.join(names)}", ", ".join(f"{f:.2f}" for f in figures), "rising", better))
    figure = f"{students['distilled']:.2f} and {students['alone']:.2f}"
    rows.append(("half the blocks: distilled < alone", figure, "less", students["distilled"] < students["alone"]))
    bits = results["int4"]
    figure = f"{bits['trained for it']:.2f} and {bits['tuned, then rounded']:.2f}"
    better = bits["trained for it"] < bits["tuned, then rounded"]
    rows.append(("int4: trained for it < tuned, then rounded", figure, "less", better))
    return [[what, figure, bar, "met" if met else "missed"] for what, figure, bar, met in rows]


def main(
    data: Annotated[str, typer.Option(help="a file, folder, glob, or builtin:NAME")] = SOURCES,
    backend: Annotated[str, typer.Option(help="tensorflow, jax or torch")] = "tensorflow",
    quick: Annotated[
        bool, typer.Option("--quick", help="a few steps, into build/benchmarks/: does it all run?")
    ] = False,
    save: Annotated[bool, typer.Option(help="write benchmarks/results/")] = True,
) -> None:
    """Train a small GPT, then prune it, distil it and quantize it."""
    os.environ["KERAS_BACKEND"] = backend
    bench = Bench(data, "quick" if quick else "full")
    results: dict[str, Any] = {
        "backend": backend,
        "data": "Python's own tests" if data == SOURCES else Path(data).name,
        "base": bench.perplexity(bench.base),
    }
    rows = [["base", f"{bench.seconds:.0f} s of training", f"{results['base']:.2f}"]]
    for name, measured in (
        ("structured", bench.structured),
        ("sparse", bench.sparse),
        ("students", bench.distilled),
        ("int4", bench.four_bits),
    ):
        results[name] = measured()
        groups = results[name] if name == "sparse" else {"": results[name]}
        for group, found in groups.items():
            rows += [[f"{name} {group}".strip(), what, f"{figure:.2f}"] for what, figure in found.items()]
    tables = [
        ("Perplexities, speeds and sizes", ("model", "what", "figure"), rows),
        ("Bars", ("what", "figure", "bar", ""), bars(results)),
    ]
    for table in tables:
        report.show(*table)
    if save or quick:
        folder = QUICK_FOLDER if quick else report.RESULTS
        report.write("compression", "Pruning, distilling, training for four bits", tables, results, folder=folder)


if __name__ == "__main__":
    typer.run(main)
