"""Peak memory of the loss, forward and backward: the chunked linear cross-entropy beside the dense one.

Each figure comes from a fresh process. It first solves a tiny problem, so that libraries and thread pools are
loaded; then its memory is noted, the loss and its gradients are computed once, and the highest memory reached
meanwhile, less what was noted, is the figure. Compiling the computation is part of it, as it is for a user.
"""

import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import report
import typer

VOCABULARY_SIZE, HIDDEN_DIM, TOKENS = 50257, 768, 4 * 512
BACKENDS = ("tensorflow", "jax", "torch")
METHODS = ("dense", "chunked")
COLUMNS = ("backend", "dense, MB", "chunked, MB", "chunked ÷ dense", "difference of the losses")
MEGABYTE = 1e6


def current_memory() -> float:
    """This process's resident memory, in bytes."""
    import psutil

    return psutil.Process().memory_info().rss


def reset_peak() -> bool:
    """Make the system forget the highest memory so far; only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory() -> float:
    """The highest resident memory, in bytes, since `reset_peak` or, where that cannot be, since the start."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def dense_loss(hidden: Any, kernel: Any, targets: Any) -> Any:
    """The usual form: all logits at once, then the cross-entropy, summed over tokens."""
    import keras

    logits = keras.ops.matmul(hidden, kernel)
    return keras.ops.sum(keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True))


def chunked_loss(hidden: Any, kernel: Any, targets: Any) -> Any:
    """kerasllm's form: logits for one chunk of tokens at a time."""
    from kerasllm import losses

    return losses.linear_cross_entropy(hidden, kernel, targets)[0]


def value_and_gradients(loss: Callable[..., Any], hidden: Any, kernel: Any, targets: Any) -> Callable[[], float]:
    """A function that computes the loss and its gradients, compiled where `fit` would compile."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

        def run() -> float:
            value, _ = jax.block_until_ready(compiled(hidden, kernel, targets))
            return float(value)

    elif backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def compiled() -> Any:
            with tf.GradientTape() as tape:
                tape.watch((hidden, kernel))
                value = loss(hidden, kernel, targets)
            return value, tape.gradient(value, (hidden, kernel))

        def run() -> float:
            value, _ = compiled()
            return float(value)

    else:
        import torch

        leaves = (hidden.requires_grad_(), kernel.requires_grad_())

        def run() -> float:
            value = loss(*leaves, targets)
            torch.autograd.grad(value, leaves)
            return value.item()

    return run


def measure(method: str) -> dict[str, float]:
    """Measure one method on the backend of KERAS_BACKEND, in this process."""
    import keras
    import numpy as np

    def problem(tokens: int, dim: int, vocabulary_size: int) -> Callable[[], float]:
        generator = np.random.default_rng(0)
        arrays = (
            generator.standard_normal((tokens, dim), "float32"),
            np.float32(0.02) * generator.standard_normal((dim, vocabulary_size), "float32"),
            generator.integers(0, vocabulary_size, tokens).astype("int32"),
        )
        loss = dense_loss if method == "dense" else chunked_loss
        return value_and_gradients(loss, *map(keras.ops.convert_to_tensor, arrays))

    problem(64, 32, 128)()
    run = problem(TOKENS, HIDDEN_DIM, VOCABULARY_SIZE)
    gc.collect()
    exact = reset_peak()
    before = current_memory()
    value = run()
    return {"bytes": peak_memory() - before, "before": before, "loss": value, "peak_was_reset": exact}


def measure_in_fresh_process(backend: str, method: str) -> dict[str, float] | None:
    """Run `measure` in a new process; None, with its error shown, if it failed."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Freed blocks of a megabyte and more go back to the system at once: none hides in the baseline.
        "MALLOC_MMAP_THRESHOLD_": str(2**20),
        "MALLOC_TRIM_THRESHOLD_": str(2**20),
    }
    command = [sys.executable, __file__, "--worker", method]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        typer.secho(f"{backend}, {method}:\n{result.stderr.strip()[-800:]}", fg="red", err=True)
        return None
    return json.loads(result.stdout.strip().splitlines()[-1])


def main(
    backends: Annotated[str, typer.Option(help="comma-separated")] = ",".join(BACKENDS),
    save: Annotated[bool, typer.Option(help="write benchmarks/results/")] = True,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure the peak memory of the dense and the chunked loss on each backend."""
    if worker:
        print(json.dumps(measure(worker)))
        return
    data: dict[str, Any] = {}
    rows = []
    for backend in backends.split(","):
        found = {method: measure_in_fresh_process(backend, method) for method in METHODS}
        data[backend] = found
        sizes = [f"{found[method]['bytes'] / MEGABYTE:.0f}" if found[method] else "" for method in METHODS]
        comparison = ["", ""]
        if all(found.values()):
            dense, chunked = found["dense"], found["chunked"]
            comparison = [
                f"{chunked['bytes'] / dense['bytes']:.2f}",
                f"{abs(dense['loss'] / chunked['loss'] - 1):.0e}",
            ]
        rows.append([backend, *sizes, *comparison])
    title = f"Peak memory: vocabulary {VOCABULARY_SIZE}, hidden {HIDDEN_DIM}, {TOKENS} tokens"
    report.show(title, COLUMNS, rows)
    if save:
        report.write("loss_memory", "Peak memory of the loss", [(title, COLUMNS, rows)], data)


if __name__ == "__main__":
    typer.run(main)
