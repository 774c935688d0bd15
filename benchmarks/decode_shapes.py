"""What decode.py measures: the models, the batches, and the bars that kerasllm wants to clear."""

from dataclasses import dataclass, replace

from peers import Shape

PROMPT_LENGTH = 16
RAGGED_SLOTS = 8
FLOAT32 = 4  # bytes

KERASLLM = ("kerasllm-jax", "kerasllm-tensorflow", "kerasllm-torch")
PEERS = ("kerashub-jax", "kerashub-tensorflow", "kerashub-torch", "transformers", "llama.cpp")


@dataclass(frozen=True)
class Case:
    """One thing that is measured: `batch_size` prompts, and how many tokens follow each.

    In a ragged case the prompts are requests, and `new_tokens` is what the longest may be.
    """

    batch_size: int
    new_tokens: int
    ragged: bool = False

    @property
    def label(self) -> str:
        if self.ragged:
            return f"{self.batch_size} requests, 1 to {self.new_tokens} new tokens"
        return f"batch {self.batch_size}, {self.new_tokens} new tokens"


@dataclass(frozen=True)
class Workload:
    """A model, the cases it is measured in, and who takes part."""

    name: str
    architecture: str  # "gpt" or "t5"
    model: Shape
    cases: tuple[Case, ...]
    contestants: tuple[str, ...]

    @property
    def label(self) -> str:
        m = self.model
        kind = f"GPT-2, {m.num_layers}" if self.architecture == "gpt" else f"T5, {m.num_layers} + {m.num_layers}"
        return f"{self.name}: {kind} layers x {m.hidden_dim}, vocabulary {m.vocabulary_size}"

    @property
    def bytes_a_step(self) -> int:
        """Bytes of weights that one decoding step must read, whatever its batch.

        Of the embeddings that is the token table, which is the head too; of a T5 the decoder alone, without the keys
        and values of its cross-attention, which are made once for each source.
        """
        m, width = self.model, self.model.hidden_dim
        if self.architecture == "gpt":
            layer, final_norm = 12 * width**2 + 13 * width, 2 * width
        else:
            layer, final_norm = 14 * width**2 + 3 * width, width
        return FLOAT32 * (m.num_layers * layer + final_norm + m.vocabulary_size * width)

    def toy(self) -> "Workload":
        """The same with a model and answers so small that only the errors are of interest."""
        model = replace(self.model, num_layers=2, num_heads=2, hidden_dim=32, vocabulary_size=100, sequence_length=64)
        return replace(self, model=model, cases=tuple(replace(case, new_tokens=8) for case in self.cases))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("tiny", "gpt", Shape(4, 4, 128, 1000, 1, 512), (Case(1, 200), Case(16, 200)), KERASLLM + PEERS),
        Workload("124m", "gpt", Shape(12, 12, 768, 50257, 1, 1024), (Case(1, 64), Case(8, 64)), KERASLLM + PEERS),
        Workload("t5", "t5", Shape(6, 8, 512, 32128, 1, 512), (Case(1, 64), Case(8, 64)), (*KERASLLM, "transformers")),
        Workload("ragged", "gpt", Shape(6, 6, 384, 50257, 1, 1024), (Case(32, 128, ragged=True),), KERASLLM),
    )
}


@dataclass(frozen=True)
class Bar:
    """In this case, the contestant should make `factor` times the tokens a second of the reference."""

    workload: str
    batch_size: int
    contestant: str
    reference: str
    factor: float


# The references of the ragged case: the same engine, its batches padded to their longest; requests in a batch.
STATIC = {"one static batch": 32, "static batches of 8": RAGGED_SLOTS}
BARS = (
    Bar("tiny", 1, "kerasllm-jax", "kerashub-jax", 1.6),
    Bar("tiny", 1, "kerasllm-tensorflow", "kerashub-tensorflow", 5),
    Bar("tiny", 1, "kerasllm-torch", "transformers", 2),
    Bar("tiny", 1, "kerasllm-torch", "kerashub-torch", 15),
    Bar("124m", 1, "kerasllm-jax", "kerashub-jax", 1.2),
    Bar("124m", 1, "kerasllm-jax", "llama.cpp", 0.95),
    Bar("124m", 1, "kerasllm-tensorflow", "kerashub-tensorflow", 1.35),
    Bar("124m", 1, "kerasllm-torch", "transformers", 1.3),
    Bar("124m", 8, "kerasllm-jax", "kerashub-jax", 1.8),
    Bar("124m", 8, "kerasllm-tensorflow", "kerashub-tensorflow", 1.5),
    Bar("124m", 8, "kerasllm-torch", "transformers", 1.2),
    *(Bar("t5", batch_size, name, "transformers", 1.5) for batch_size in (1, 8) for name in KERASLLM),
    *(Bar("ragged", 32, name, reference, 1.8) for reference in STATIC for name in KERASLLM),
)


def ragged_lengths(case: Case) -> list[int]:
    """New tokens of each request of a ragged case: uniform from 1 to the longest, the same in every run."""
    import numpy as np

    return np.random.default_rng(0).integers(1, case.new_tokens + 1, case.batch_size).tolist()


def static_lengths(lengths: list[int], rows: int) -> list[int]:
    """The longest of each group of `rows` requests: the steps that static batches take."""
    return [max(lengths[i : i + rows]) for i in range(0, len(lengths), rows)]


def scheduled_steps(lengths: list[int]) -> int:
    """Steps until all requests are done, when each free slot at once takes the next that waits."""
    slots = [0] * RAGGED_SLOTS
    for length in lengths:
        slots[slots.index(min(slots))] += length
    return max(slots)
