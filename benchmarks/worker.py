"""One contender in a process of its own: it reads a number of steps, takes them, answers, reads the next.

train_step.py starts it as `python benchmarks/worker.py CONTENDER SHAPE THREADS`; it answers in lines of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from peers import SHAPES, Shape

WARM_UP_STEPS = 3

Burst = Callable[[int], tuple[float, float]]


@dataclass(frozen=True)
class Contender:
    """Who is measured: a library, the backend it runs on, and whether torch.compile is used."""

    library: str
    backend: str
    compiled: bool = False

    @property
    def name(self) -> str:
        parts = [self.library] if self.library in ("plain", "transformers") else [self.library, self.backend]
        return "-".join([*parts, "compiled"] if self.compiled else parts)


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("plain", "torch"),
        Contender("plain", "torch", compiled=True),
        Contender("transformers", "torch"),
        Contender("transformers", "torch", compiled=True),
        Contender("kerashub", "torch"),
        Contender("kerasllm", "torch"),
        Contender("kerasllm", "torch", compiled=True),
        Contender("kerashub", "jax"),
        Contender("kerasllm", "jax"),
        Contender("kerashub", "tensorflow"),
        Contender("kerasllm", "tensorflow"),
    )
}


def limit_threads(threads: int, library_uses_torch: bool) -> None:
    """Give every contender the same cores and number of threads, before its libraries make their pools."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ[pool] = str(threads)
    if library_uses_torch:
        import torch

        torch.set_num_threads(threads)


def make_burst(contender: Contender, shape: Shape) -> Burst:
    """Build the contender's model and what takes its steps."""
    import peers

    if contender.library == "plain":
        return peers.make_step_burst(peers.make_train_step(shape, contender.compiled))
    if contender.library == "transformers":
        model = peers.make_transformers_gpt(shape)
        return peers.make_step_burst(peers.make_torch_step(model, shape, contender.compiled))
    if contender.library == "kerashub":
        model = peers.make_keras_hub_gpt(shape)
        return peers.make_fit_burst(
            model, lambda token_ids: {"token_ids": token_ids, "padding_mask": token_ids >= 0}, shape
        )
    model = peers.make_kerasllm_gpt(shape, contender.compiled)
    return peers.make_fit_burst(model, lambda token_ids: token_ids, shape)


def main() -> None:
    contender, shape, threads = CONTENDERS[sys.argv[1]], SHAPES[sys.argv[2]], int(sys.argv[3])
    # Libraries print where they like: the real standard output is kept for answers, stderr takes the rest.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["KERAS_BACKEND"] = contender.backend
    limit_threads(threads, library_uses_torch=contender.backend == "torch")

    started = time.perf_counter()
    burst = make_burst(contender, shape)
    _, loss = burst(WARM_UP_STEPS)
    print(json.dumps({"ready_seconds": time.perf_counter() - started, "loss": loss}), file=answers)
    for line in sys.stdin:
        seconds, loss = burst(int(line))
        print(json.dumps({"seconds": seconds, "loss": loss}), file=answers)


if __name__ == "__main__":
    main()
