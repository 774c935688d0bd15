"""One contestant of decode.py in a process of its own, or the measurement of the memory's bandwidth.

decode.py starts it as `python benchmarks/decode_worker.py CONTESTANT WORKLOAD THREADS full|toy`. It answers in lines of
JSON: first that it is ready, then to each {"case": index, "seconds": least seconds to measure}.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from decode_contestants import Contestant, backend_of, make
from decode_shapes import PROMPT_LENGTH, STATIC, WORKLOADS, Case, ragged_lengths
from loss_memory import peak_memory, reset_peak
from worker import limit_threads

BANDWIDTH = "bandwidth"
BANDWIDTH_BYTES = 2**30


def prompt_maker(vocabulary_size: int) -> Callable[[int], Any]:
    """A function that draws new prompts each time: random int32 tokens of shape (batch_size, PROMPT_LENGTH)."""
    import numpy as np

    random = np.random.default_rng(0)
    return lambda batch_size: random.integers(0, vocabulary_size, (batch_size, PROMPT_LENGTH)).astype("int32")


def timed(call: Callable[[Any], Any], make_prompts: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call, as many as fill `seconds`; each has new prompts, as remembering them is not measured."""
    taken: list[float] = []
    while sum(taken) < seconds or not taken:
        prompts = make_prompts()
        started = time.perf_counter()
        call(prompts)
        taken.append(time.perf_counter() - started)
    return taken


def checked(call: Callable[[Any], Any], lengths: list[int]) -> Callable[[Any], None]:
    """The call, with an error if an answer has not as many tokens as it should."""

    def run(prompts: Any) -> None:
        made = [len(tokens) for tokens in call(prompts)]
        if made != lengths:
            raise ValueError(f"Each answer must be as long as was asked. Received: {made}, expected {lengths}")

    return run


def measure(contestant: Contestant, draw: Callable[[int], Any], case: Case, seconds: float) -> dict[str, float]:
    """Tokens a second and peak memory in one case; with one prompt, also the time to its first token."""
    lengths = ragged_lengths(case) if case.ragged else [case.new_tokens] * case.batch_size

    def prompts() -> Any:
        return draw(case.batch_size)

    def tokens_a_second(answer: Callable[[Any, Any], Any], new_tokens: int | list[int]) -> float:
        taken = timed(checked(lambda prompts: answer(prompts, new_tokens), lengths), prompts, seconds)
        return len(taken) * sum(lengths) / sum(taken)

    reset_peak()
    if case.ragged:
        figures = {"tokens_per_second": tokens_a_second(contestant.ragged, lengths), "peak_bytes": peak_memory()}
        for reference, rows in STATIC.items():
            figures[reference] = tokens_a_second(partial(contestant.static, rows=rows), lengths)
        return figures
    figures = {
        "tokens_per_second": tokens_a_second(contestant.answer, case.new_tokens),
        "peak_bytes": peak_memory(),
    }
    if case.batch_size == 1:
        waits = timed(lambda prompts: contestant.first_token(prompts, case.new_tokens), prompts, seconds / 2)
        figures["first_token_seconds"] = statistics.median(waits)
    return figures


def make_bandwidth(threads: int) -> Callable[[], dict[str, float]]:
    """A function that reads a gigabyte on all cores, some times over; its best is the memory's bandwidth."""
    from concurrent.futures import ThreadPoolExecutor

    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each of our threads multiplies a part by itself
    import numpy as np

    parts = np.array_split(np.ones(BANDWIDTH_BYTES // 4, "float32"), threads)
    pool = ThreadPoolExecutor(threads)

    def run() -> dict[str, float]:
        taken = []
        for _ in range(8):
            started = time.perf_counter()
            list(pool.map(lambda part: np.dot(part, part), parts))
            taken.append(time.perf_counter() - started)
        return {"bytes_per_second": BANDWIDTH_BYTES / min(taken)}

    return run


def main() -> None:
    name, workload, threads = sys.argv[1], WORKLOADS[sys.argv[2]], int(sys.argv[3])
    if sys.argv[4] == "toy":
        workload = workload.toy()
    # Libraries print where they like: the real standard output is kept for answers, stderr takes the rest.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["KERAS_BACKEND"] = backend_of(name)
    limit_threads(threads, library_uses_torch=name != BANDWIDTH and name != "llama.cpp" and backend_of(name) == "torch")

    try:
        if name == BANDWIDTH:
            bandwidth = make_bandwidth(threads)
        else:
            contestant, draw = make(name, workload, threads), prompt_maker(workload.model.vocabulary_size)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        raise
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if name == BANDWIDTH:
                answer = bandwidth()
            else:
                answer = measure(contestant, draw, workload.cases[request["case"]], request["seconds"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
