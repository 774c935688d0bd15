"""What quantizing or pruning a model cost and brought: measured, printed, saved."""

import json
import math
import time
from pathlib import Path

import numpy as np
from keras import ops

from kerasllm.compression.engines import use_engine
from kerasllm.compression.evaluation import difference
from kerasllm.compression.schemes import float_weights, quantizable_layers, scheme_of
from kerasllm.files import written_aside

PROMPT, NEW_TOKENS, ROUNDS = 16, 32, 3


def compare(before, after, batches, engine: str = "keras") -> dict:
    """A report on two models: what was, and what it was quantized or pruned to.

    Args:
        before: with float weights.
        after: the same model, quantized or pruned.
        batches: of `evaluation_batches`.
        engine: that makes tokens with `after`; see `use_engine`. The float one has Keras's.

    Returns:
        what `json.dumps` takes: "size_bytes", "tokens_per_second", "perplexity" and "accuracy", each before and after;
        "kl", nats a token; "top1_changed", a share; "layers", the worst first; "engine"; "notes", in words.
    """
    found = difference(before, after, batches)
    sizes = {"before": num_bytes(before), "after": num_bytes(after)}
    speeds = {}
    if hasattr(after, "generate"):
        speeds["before"] = tokens_per_second(before)
        engine = use_engine(after, engine)
        speeds["after"] = tokens_per_second(after)
    report = {
        "engine": engine,
        "size_bytes": sizes,
        "size_ratio": sizes["after"] / sizes["before"],
        "tokens_per_second": speeds,
        "perplexity": {"before": found.perplexity_before, "after": found.perplexity_after},
        "accuracy": {"before": found.accuracy_before, "after": found.accuracy_after},
        "kl": found.kl,
        "top1_changed": found.top1_changed,
        "tokens": found.tokens,
        "layers": layer_errors(before, after),
    }
    report["notes"] = _notes(report)
    return report


def num_bytes(model) -> int:
    """What the weights of a model take, in memory and on disk."""
    return sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in model.weights)


def tokens_per_second(model) -> float:
    """Of a greedy answer to one short prompt, after a first one that compiles: the median of a few."""
    new_tokens = min(NEW_TOKENS, model.config.max_sequence_length // 2)
    prompt = [i % model.config.vocabulary_size for i in range(1, 1 + min(PROMPT, new_tokens))]
    times = []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        model.generate(prompt, new_tokens, sampler="greedy", stop_token_ids=[])
        times.append(time.perf_counter() - began)
    return new_tokens / float(np.median(times[1:]))


def layer_errors(before, after) -> list[dict]:
    """How far each quantized layer's weights are from what they were, relative to their size, the worst first."""
    layers, errors = quantizable_layers(before), []
    for name, layer in quantizable_layers(after).items():
        scheme = scheme_of(layer)
        if scheme is None:
            continue
        squares = np.zeros(2)
        for old, new in zip(float_weights(layers[name]), float_weights(layer)):
            old, new = (ops.convert_to_numpy(ops.cast(part, "float32")) for part in (old, new))
            squares += [np.square(new - old).sum(dtype="float64"), np.square(old).sum(dtype="float64")]
        errors.append(
            {"layer": name, "scheme": scheme.policy, "error": float(np.sqrt(squares[0] / max(squares[1], 1e-30)))}
        )
    return sorted(errors, key=lambda row: -row["error"])


def rows_of(report: dict) -> dict[str, str]:
    """A report in words, for a table."""
    size, speed, perplexity = report["size_bytes"], report["tokens_per_second"], report["perplexity"]
    rise = perplexity["after"] / perplexity["before"] - 1
    rows = {"size": f"{size['before'] / 1e6:,.2f} → {size['after'] / 1e6:,.2f} MB ({report['size_ratio']:.3f})"}
    if speed:
        rows[f"tokens/s ({report['engine']})"] = f"{speed['before']:,.1f} → {speed['after']:,.1f}"
    rows["perplexity"] = f"{perplexity['before']:.3f} → {perplexity['after']:.3f} ({rise:+.2%})"
    rows["accuracy"] = "{before:.2%} → {after:.2%}".format(**report["accuracy"])
    rows |= {"KL, nats a token": f"{report['kl']:.5f}", "top-1 changed": f"{report['top1_changed']:.2%}"}
    rows["worst layers"] = ", ".join(f"{row['layer']} {row['error']:.4f}" for row in report["layers"][:3])
    return rows | {"note" if i == 0 else f"note {i + 1}": note for i, note in enumerate(report["notes"])}


def save_report(report: dict, directory) -> None:
    """Writes quantization.json and, where matplotlib is there, quantization.png beside a model."""
    directory = Path(directory)
    with written_aside(directory / "quantization.json") as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = report["layers"][:40][::-1]
    figure = Figure(figsize=(7, 1.5 + 0.18 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([row["layer"] for row in rows], [row["error"] for row in rows], color="tab:blue")
    axes.tick_params(axis="y", labelsize=6)
    rise = report["perplexity"]["after"] / report["perplexity"]["before"] - 1
    axes.set(
        xlabel="error of the weights, relative", title=f"{report['size_ratio']:.3f} of the size, perplexity {rise:+.2%}"
    )
    axes.spines[["top", "right"]].set_visible(False)
    with written_aside(directory / "quantization.png") as aside:
        figure.savefig(aside, format="png", dpi=150)


def _notes(report: dict) -> list[str]:
    notes, speed = [], report["tokens_per_second"]
    if speed and speed["after"] < speed["before"]:
        share = speed["after"] / speed["before"]
        notes.append(f"Slower than before: {share:.2f} of the tokens a second, with {report['engine']}.")
    if any(row["scheme"] == "float8" for row in report["layers"]) and report["size_ratio"] > 0.95:
        notes.append("No smaller: float8 quantizes what is computed in training, and keeps the weights.")
    return notes
