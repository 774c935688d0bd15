"""Open models: which there are, and the few that are in memory, shared and never changed."""

import collections
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from playground.runs import checkpoint_steps, read_run
from playground.sessions import Session

MAX_OPEN = 5
SHIPPED = {
    "gpt-tiny": "GPT · Python's documentation",
    "bert-tiny": "BERT · fills masked words",
    "t5-dates-tiny": "T5 · any date as 2021-05-03",
}


@dataclass(frozen=True)
class Choice:
    """A model that can be chosen.

    Attributes:
        key: "shipped/NAME", "given" or "run/NAME".
        title: for people.
        directory: of the model, or the run.
    """

    key: str
    title: str
    directory: Path


class Models:
    """The models of the server.

    Args:
        shipped: folder of the models that come with the playground.
        given: directory of a model from the command line.
    """

    def __init__(self, shipped: Path, given: Path | None = None):
        self.shipped, self.given = Path(shipped), given
        self.device = threading.RLock()  # one computation at a time
        self._open: collections.OrderedDict[tuple, object] = collections.OrderedDict()

    def choices(self, session: Session | None) -> list[Choice]:
        """What a session can choose: a given model, those that ship, and its own runs, newest first."""
        found = []
        if self.given is not None:
            found.append(Choice("given", self.given.name, self.given))
        for name, title in SHIPPED.items():
            if (self.shipped / name / "config.json").is_file():
                found.append(Choice(f"shipped/{name}", title, self.shipped / name))
        for directory in reversed(session.runs() if session else []):
            run = read_run(directory)
            adapter = run.recipe.get("tuning", {}).get("method", "full") != "full"
            if (run.is_finished or run.can_resume) and not adapter:
                found.append(Choice(f"run/{run.name}", f"{run.name} · {run.title}", directory))
        return found

    def choice(self, session: Session | None, key: object) -> Choice:
        """One of them.

        Raises:
            ValueError: there is no such model, for this session.
        """
        for choice in self.choices(session):
            if choice.key == key:
                return choice
        raise ValueError("Choose a model in the sidebar: the one that was chosen is not there any more.")

    @contextlib.contextmanager
    def use(self, directory: Path, step: int | None = None, adapter: Path | None = None):
        """A model in memory, for one computation at a time.

        Args:
            directory: of the model, or of a run that is not finished, whose newest checkpoint is then read.
            step: of a run's checkpoint.
            adapter: directory of a LoRA to load on it.
        """
        with self.device:
            key = (str(directory), _version(directory, step), step, adapter and (str(adapter), _version(adapter)))
            model = self._open.pop(key, None) or _opened(directory, step, adapter)
            self._open[key] = model
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            yield model

    def in_turns(self, items: Iterator) -> Iterator:
        """The items of an iterator that computes: between two of them others may compute, and a reader may leave."""
        end = object()
        while True:
            with self.device:
                item = next(items, end)
            if item is end:
                return
            yield item


def _version(directory: Path, step: int | None = None) -> object:
    """Changes when the files do."""
    files = (directory / "model.safetensors", directory / "adapter_model.safetensors")
    times = [path.stat().st_mtime_ns for path in files if path.is_file()]
    return tuple(times or checkpoint_steps(directory)[-1:])


def _opened(directory: Path, step: int | None, adapter: Path | None):
    from kerasllm.compression.command import saved_class

    if step is None and (directory / "config.json").is_file():
        model = saved_class(directory).from_preset(directory)
    else:
        model = open_checkpoint(directory, step)
    if adapter is not None:
        model.load_adapter(adapter)
    return model


def open_checkpoint(directory: Path, step: int | None = None):
    """The model of a run as it was at a checkpoint; the newest one when left out.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged.
    """
    import kerasllm
    from kerasllm.training.checkpoint import read
    from kerasllm.training.recipe import load_recipe
    from kerasllm.training.tasks import TASKS

    steps = checkpoint_steps(directory)
    if not steps or (step is not None and step not in steps):
        raise ValueError(f"The run has no checkpoint of step {step}. It has: {', '.join(map(str, steps)) or 'none'}")
    arrays, _ = read(directory / "checkpoints" / f"step-{steps[-1] if step is None else step:08d}")
    recipe = load_recipe(directory / "recipe.yaml")
    tokenizer = kerasllm.Tokenizer.from_preset(directory)
    model = getattr(kerasllm, TASKS[recipe.task].model)(recipe.config(tokenizer.vocabulary_size), tokenizer)
    for i, variable in enumerate(model.trainable_variables):
        variable.assign(arrays[f"trainable/{i:05d}"])
    return model


def family(model) -> str:
    """ "GPT" for what writes on, "BERT" for what fills masks, "T5" for what reads a source and writes a target."""
    if model.config.num_encoder_layers:
        return "T5"
    return "GPT" if model.config.causal else "BERT"


def family_of(directory: Path) -> str:
    """The same, from files alone."""
    from kerasllm.interop.presets import read_config

    directory = Path(directory)
    if (directory / "config.json").is_file():
        config = read_config(directory)[1]
        return "T5" if config.num_encoder_layers else "GPT" if config.causal else "BERT"
    task = read_run(directory).task
    return {"seq2seq": "T5", "span-corruption": "T5", "masked-lm": "BERT"}.get(task, "GPT")
