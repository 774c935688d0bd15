"""What tuned models can do, for tuning.py: two tasks learnt from one small base, and adapters swapped.

It is started as `python benchmarks/tuning_quality.py BACKEND full|toy THREADS`. It trains the base, on a little of both
tasks, and answers {"method": …, "task": …} with the share of unseen examples that the tuned model gets right, and
{"swap": true} with how long switching between the adapters takes, and how much it compiles.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from worker import limit_threads

TASKS = ("dates", "number-words")
SIZES = {  # steps of the base and of each method, examples that are asked
    "full": {"base": 600, "tuning": 3000, "asked": 1000},
    "toy": {"base": 2, "tuning": 2, "asked": 4},
}
BATCH_SIZE, LENGTH = 64, 96
RATES = {"full": 1e-3}  # of the others: ADAPTER_RATE
ADAPTER_RATE, RANK = 3e-3, 16


class Quality:
    """The base, and what is tuned from it.

    Args:
        size: a key of `SIZES`.
        folder: for the base and the adapters.
    """

    def __init__(self, size: str, folder: Path) -> None:
        import keras

        import kerasllm
        from kerasllm.data.pairs import read_pairs

        self.size, self.folder = SIZES[size], folder
        self.train = {task: read_pairs(f"builtin:{task}") for task in TASKS}
        self.held_out = {task: read_pairs(f"builtin:{task}:validation") for task in TASKS}
        keras.utils.set_random_seed(0)
        mixed = [pair for pairs in zip(*(self.train[task][:5000] for task in TASKS), strict=True) for pair in pairs]
        texts = (text for pairs in self.train.values() for pair in pairs[:5000] for text in pair)
        tokenizer = kerasllm.Tokenizer.train(texts, "char", special_tokens=["<pad>", "</s>", "<unk>"])
        config = kerasllm.TransformerConfig.from_name(
            "t5_tiny",
            vocabulary_size=tokenizer.vocabulary_size,
            max_sequence_length=LENGTH,
            num_layers=2,
            num_encoder_layers=2,
            hidden_dim=128,
            num_heads=4,
            head_dim=32,
            intermediate_dim=512,
            dropout=0.0,
            attention_dropout=0.0,
        )
        model = kerasllm.Seq2SeqLM(config, tokenizer)
        self._fit(model, mixed, self.size["base"], 5e-3, "muon")
        model.save_to_preset(folder / "base")

    def tune(self, method: str, task: str) -> dict[str, float]:
        """Tune the base on a task: the share of unseen examples that it writes without a mistake."""
        import kerasllm
        from kerasllm.training.recipe import Tuning
        from kerasllm.training.tasks import exact_match
        from kerasllm.tuning.methods import prepare

        model = kerasllm.Seq2SeqLM.from_preset(self.folder / "base")
        targets = "attention.*,source_attention.*,feed_forward.*" if method in ("lora", "dora") else None
        prepare(model, Tuning(method=method, rank=RANK, alpha=2.0 * RANK, targets=targets))
        self._fit(model, self.train[task], self.size["tuning"], RATES.get(method, ADAPTER_RATE))
        if model.adapters:
            model.save_adapter(self.folder / f"{method}-{task}")
        return {"exact_match": exact_match(model, self.held_out[task][: self.size["asked"]])}

    def swap(self, method: str) -> dict[str, Any]:
        """Switch between the adapters of the two tasks in one model: median milliseconds, and what is compiled."""
        import kerasllm
        from kerasllm.generation.programs import programs_of

        model = kerasllm.Seq2SeqLM.from_preset(self.folder / "base")
        for task in TASKS:
            model.load_adapter(self.folder / f"{method}-{task}", task)
        sources = {task: self.held_out[task][0][0] for task in TASKS}
        milliseconds, answers = [], {}
        for turn in range(6):
            for task in TASKS:
                started = time.perf_counter()
                model.set_adapter(task)
                milliseconds.append(1000 * (time.perf_counter() - started))
                answers.setdefault(task, []).append(model.generate(sources[task], max_new_tokens=24))
            if turn == 0:
                compiled = programs_of(model).compilations
        if any(len(set(found)) != 1 for found in answers.values()):
            raise ValueError(f"An adapter's answer must be the same each time. Received: {answers}")
        return {"ms": statistics.median(milliseconds), "compilations": programs_of(model).compilations - compiled}

    @staticmethod
    def _fit(model: Any, pairs: list, steps: int, rate: float, optimizer: str = "adamw") -> None:
        from kerasllm.training.optimizers import OPTIMIZERS

        warmup_steps = steps // 20
        model.compile(
            OPTIMIZERS[optimizer](rate, total_steps=steps, warmup_steps=warmup_steps, weight_decay=0.01, model=model)
        )
        data = model.as_data(*map(list, zip(*pairs, strict=True)), batch_size=BATCH_SIZE, shuffle=True)
        data.steps_per_epoch = steps
        model.fit(data, epochs=1, verbose=0)


def main() -> None:
    backend, size, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["KERAS_BACKEND"] = backend
    limit_threads(threads, library_uses_torch=backend == "torch")
    with tempfile.TemporaryDirectory() as folder:
        quality = Quality(size, Path(folder))
        print(json.dumps({}), file=answers)
        for line in sys.stdin:
            request = json.loads(line)
            found = quality.swap(request["swap"]) if "swap" in request else quality.tune(**request)
            print(json.dumps(found), file=answers)


if __name__ == "__main__":
    main()
