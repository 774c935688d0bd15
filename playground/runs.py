"""What a run's directory tells: its curve, its samples, where it stands."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

MOST_POINTS = 400
MAX_METRICS_BYTES = 4 << 20


@dataclass(frozen=True)
class Run:
    """One run, read from its directory.

    Attributes:
        name: the directory's.
        title: what its owner called it.
        recipe: as a dict; empty if there is none.
        metrics: records of metrics.jsonl, oldest first.
        samples: (step, text) pairs, oldest first.
        is_finished: whether it has saved its model.
        can_resume: whether training can go on.
    """

    directory: Path
    title: str
    recipe: dict = field(default_factory=dict)
    metrics: list[dict] = field(default_factory=list)
    samples: list[tuple[int, str]] = field(default_factory=list)
    is_finished: bool = False
    can_resume: bool = False

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def steps(self) -> int:
        """That the recipe asks for."""
        return int(self.recipe.get("training", {}).get("steps", 0))

    @property
    def step(self) -> int:
        """That it has come to."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def task(self) -> str:
        return self.recipe.get("task", "causal-lm")

    @property
    def best(self) -> dict | None:
        """The record with the lowest validation loss."""
        known = [record for record in self.metrics if record.get("val_loss") is not None]
        return min(known, key=lambda record: record["val_loss"]) if known else None


def read_run(directory: Path) -> Run:
    """Reads a run's directory; what is missing or half written is left out."""
    directory = Path(directory)
    recipe = _recipe(directory / "recipe.yaml")
    adapter = recipe.get("tuning", {}).get("method", "full") in ("lora", "dora")
    finished = (directory / ("adapter_model.safetensors" if adapter else "model.safetensors")).is_file()
    checkpoints = directory / "checkpoints"
    return Run(
        directory,
        recipe.get("description") or directory.name,
        recipe,
        read_metrics(directory / "metrics.jsonl"),
        read_samples(directory / "samples.txt"),
        finished,
        not finished and checkpoints.is_dir() and any(checkpoints.glob("step-*")),
    )


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl, at most `MOST_POINTS` of them; a line that is being written is left out."""
    if not path.is_file() or path.stat().st_size > MAX_METRICS_BYTES:
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    stride = -(-len(records) // MOST_POINTS) or 1
    return records[::-1][::stride][::-1]


def read_samples(path: Path) -> list[tuple[int, str]]:
    """(step, text) of each sample in a samples.txt."""
    if not path.is_file() or path.stat().st_size > MAX_METRICS_BYTES:
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    parts = re.split(r"^--- step (\d+)\n", text, flags=re.MULTILINE)[1:]
    return [(int(step), sample.rstrip("\n")) for step, sample in zip(parts[::2], parts[1::2])]


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps at which a run has checkpoints, in order."""
    return sorted(int(path.name[5:]) for path in Path(directory).glob("checkpoints/step-*") if path.name[5:].isdigit())


def _recipe(path: Path) -> dict:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
