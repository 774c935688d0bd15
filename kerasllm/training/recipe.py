"""Recipes: a training run told by a small YAML file with a closed schema.

Imports no backend, so that names, tables and errors come at once.
"""

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kerasllm.config import TransformerConfig
from kerasllm.training.schema import build, limited, near
from kerasllm.training.tasks import TASKS

MAX_BYTES = 1 << 16
# What fine-tuning does unless told otherwise: few steps, and the learning rate of `METHODS`.
FINETUNING = {"steps": 500, "evaluate_every": 100, "warmup_steps": 50}
# How a saved model is trained further, with a learning rate that usually suits: fewer weights bear a higher one.
METHODS = {
    "full": 1e-4,
    "last-n": 3e-4,
    "features": 1e-3,
    "lora": 1e-3,
    "dora": 1e-3,
    "adapter": 1e-3,
    "prompt": 1e-2,
    "prefix": 1e-2,
    "ia3": 1e-2,
    "bitfit": 3e-3,
}
WHOLE_MODEL = ("full", "last-n", "features")  # These save a model, and the others an adapter.
TOKENIZER_KINDS = ("char", "byte", "bpe", "wordpiece", "unigram")
DTYPES = ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the text comes from and how it is cut.

    Attributes:
        source: what `kerasllm.data.read_texts` takes; `None` asks for `--data`.
        wanted: the text that a recipe without a source is made for, in words.
        column: the text's, in tables.
        source_column, target_column: the two of tables of pairs.
        validation_fraction: the last part of the text, kept for validation.
        sequence_length: tokens in a row.
        batch_size: rows in a batch.
        packing: "stream" or "documents".
        cache_dir: folder for the token shards of large texts.
    """

    source: str | None = None
    wanted: str | None = None
    column: str | None = None
    source_column: str = "source"
    target_column: str = "target"
    validation_fraction: float = limited(0.1, least=0, below=1)
    sequence_length: int = limited(128, least=1)
    batch_size: int = limited(16, least=1)
    packing: str = limited("stream", choices=("stream", "documents"))
    cache_dir: str | None = None


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokenizer: trained on the text, or read from a directory.

    Attributes:
        kind, vocabulary_size: of `Tokenizer.train`.
        preset: a directory with a `tokenizer.json`, which is then used as it is.
    """

    kind: str = limited("bpe", choices=TOKENIZER_KINDS)
    vocabulary_size: int | None = limited(None, least=1)
    preset: str | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """How the model is trained. All counts of steps are updates of the optimizer.

    Attributes:
        steps, evaluate_every: `steps` must be a multiple of the other, or smaller.
        evaluate_steps: batches of the validation set to evaluate on; `None` for all.
        optimizer: "adamw" or "muon".
        learning_rate, final_fraction, warmup_steps, weight_decay, beta_2, clipnorm, accumulation: see
            `kerasllm.training.adamw`.
        neftune_alpha: noise on the token vectors, see `TokenEmbedding.add_noise`; 0 for none.
        dtype: a Keras dtype policy.
        seed: of weights, dropout and the order of the data.
        early_stopping: evaluations without a lower validation loss before training ends; `None` for never.
        checkpoint_every: steps between checkpoints; there is one at each evaluation anyway.
        keep_checkpoints: how many.
        sample_prompt: what the model continues at each evaluation; `None` for no samples.
        sample_tokens: how many tokens it writes.
        tensorboard, csv: whether Keras's callbacks write their files, too.
    """

    steps: int = limited(1000, least=1)
    evaluate_every: int = limited(250, least=1)
    evaluate_steps: int | None = limited(None, least=1)
    optimizer: str = limited("adamw", choices=("adamw", "muon"))
    learning_rate: float = limited(1e-3, least=0)
    final_fraction: float = limited(0.1, least=0)
    warmup_steps: int = limited(0, least=0)
    weight_decay: float = limited(0.1, least=0)
    beta_2: float = limited(0.95, least=0, below=1)
    clipnorm: float | None = limited(1.0, least=0)
    accumulation: int = limited(1, least=1)
    neftune_alpha: float = limited(0.0, least=0)
    dtype: str = limited("float32", choices=DTYPES)
    seed: int = limited(1337, least=0)
    early_stopping: int | None = limited(None, least=1)
    checkpoint_every: int | None = limited(None, least=1)
    keep_checkpoints: int = limited(2, least=1)
    sample_prompt: str | None = "\n"
    sample_tokens: int = limited(100, least=1)
    tensorboard: bool = False
    csv: bool = False

    @property
    def steps_per_evaluation(self) -> int:
        return min(self.evaluate_every, self.steps)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What is trained of a model that training starts from; see `kerasllm.tuning`.

    Attributes:
        method: "full" is all of it, "last-n" its last blocks, "features" what is above the blocks and the last blocks,
            from cached outputs of those below; the others are adapters, which are saved alone.
        rank, alpha: of "lora" and "dora".
        targets: of adapters: patterns of layers' names, with commas; what the method's paper chose when left out.
        prompt_length: of "prompt" and "prefix", in tokens.
        bottleneck_dim: of "adapter".
        trained_blocks: of "last-n" and "features".
        layer_decay: each block's learning rate is this times that of the one above it; 1 for none.
        anchor: strength of the pull back to the weights at the start, see `kerasllm.tuning.anchor`; 0 for none.
    """

    method: str = limited("full", choices=tuple(METHODS))
    rank: int = limited(8, least=1)
    alpha: float = limited(16.0, least=0)
    targets: str | None = None
    prompt_length: int = limited(16, least=1)
    bottleneck_dim: int = limited(16, least=1)
    trained_blocks: int = limited(1, least=0)
    layer_decay: float = limited(1.0, least=0)
    anchor: float = limited(0.0, least=0)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Attributes:
        name, description: for people.
        task: what is learned, a key of `kerasllm.training.tasks.TASKS`.
        expected: figures that the run was seen to reach, such as `val_loss`, `minutes`, `memory_gb`, with
            `hardware` in words.
        start_from: a model's directory, whose weights, sizes and tokenizer training starts from; `tokenizer` and
            `model` then say nothing.
        data, tokenizer, training: see `Data`, `Vocabulary`, `Training`.
        tuning: what of `start_from` is trained, see `Tuning`.
        model: `name`, one of the named sizes, and any field of `TransformerConfig`. Unless they are given,
            the vocabulary size is the tokenizer's, and the context `data.sequence_length`.

    Raises:
        ValueError: a value of the wrong type or out of range, or two that disagree.
    """

    name: str
    task: str = limited("causal-lm", choices=tuple(TASKS))
    description: str = ""
    expected: dict[str, Any] = dataclasses.field(default_factory=dict)
    start_from: str | None = None
    data: Data = dataclasses.field(default_factory=Data)
    tokenizer: Vocabulary = dataclasses.field(default_factory=Vocabulary)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    tuning: Tuning = dataclasses.field(default_factory=Tuning)
    training: Training = dataclasses.field(default_factory=Training)

    def __post_init__(self):
        training = self.training
        if training.steps % training.steps_per_evaluation:
            raise ValueError(
                "`training.steps` must be a multiple of `training.evaluate_every`, or smaller. "
                f"Received: steps={training.steps}, evaluate_every={training.evaluate_every}"
            )
        if training.warmup_steps >= training.steps:
            raise ValueError(
                "`training.warmup_steps` must be less than `training.steps`. "
                f"Received: warmup_steps={training.warmup_steps}, steps={training.steps}"
            )
        if training.early_stopping and not self.data.validation_fraction:
            raise ValueError("`training.early_stopping` needs validation text: `data.validation_fraction` is 0.")
        if self.start_from is not None:
            if self.model or self.tokenizer != Vocabulary():
                raise ValueError(
                    "The model and the tokenizer are those of `start_from`: leave `model` and `tokenizer` out. "
                    f"Received: start_from={self.start_from!r}"
                )
            return
        if self.tuning != Tuning():
            raise ValueError("`tuning` is of a model that training starts from: say which with `start_from`.")
        # Any vocabulary size will do to find out whether the rest of the model makes sense.
        config = self.config(self.tokenizer.vocabulary_size or 256)
        writes_target = TASKS[self.task].model == "Seq2SeqLM"
        if writes_target != bool(config.num_encoder_layers):
            needs = "a model with an encoder and a decoder" if writes_target else "a model of one stack"
            raise ValueError(
                f"The task {self.task!r} needs {needs}. Received: model.num_encoder_layers={config.num_encoder_layers}"
            )

    def config(self, vocabulary_size: int) -> TransformerConfig:
        """The model's config, with a tokenizer's vocabulary size unless the recipe has its own.

        Raises:
            ValueError: an unknown size or field, or a value out of range.
        """
        sizes = {"vocabulary_size": vocabulary_size, "max_sequence_length": self.data.sequence_length}
        values = {**sizes, **self.model}
        name = values.pop("name", None)
        if name is None:
            config = TransformerConfig.from_dict(values)
        else:
            config = TransformerConfig.from_name(name, **values)
        if config.max_sequence_length < self.data.sequence_length:
            raise ValueError(
                "`data.sequence_length` is longer than the model reads. Received: sequence_length="
                f"{self.data.sequence_length}, model.max_sequence_length={config.max_sequence_length}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """The recipe with every default written out."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Builds a recipe from nested dicts whose keys must all be known.

        Raises:
            ValueError: an unknown key, with near ones, or a value of the wrong type or out of range.
        """
        return build(cls, values)


SECTIONS: dict[str, tuple[str, ...]] = {
    "data": tuple(f.name for f in dataclasses.fields(Data)),
    "tokenizer": tuple(f.name for f in dataclasses.fields(Vocabulary)),
    "model": ("name", *(f.name for f in dataclasses.fields(TransformerConfig))),
    "tuning": tuple(f.name for f in dataclasses.fields(Tuning)),
    "training": tuple(f.name for f in dataclasses.fields(Training)),
}


def load_recipe(name_or_path: str | os.PathLike, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """Reads a recipe and replaces some of its values.

    Args:
        name_or_path: the name of a recipe of kerasllm's own, or the path of a YAML file.
        overrides: `"training.steps=10"` strings, or a dict from such keys to values. A key that only one
            section has may go without the section: `"steps=10"`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown recipe or key, with near ones, a damaged file, or a value of the wrong type.

    Example:

    ```python
    recipe = load_recipe("quickstart", ["steps=100", "model.num_layers=2"])
    ```
    """
    path = _find(name_or_path)
    try:
        return Recipe.from_dict({"name": path.stem, **override(_read(path), overrides)})
    except ValueError as error:
        raise ValueError(f"Recipe {str(name_or_path)!r}: {error}") from None


def override(values: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's nested dict with some of its values replaced; see `load_recipe`."""
    values = copy.deepcopy(values)
    for key, value in _pairs(overrides):
        if key in ("task", "start_from"):
            values[key] = value
            continue
        section, name = _locate(key)
        part = values.setdefault(section, {})
        if not isinstance(part, dict):
            raise ValueError(f"`{section}` must be a mapping of keys to values. Received: {part!r}")
        part[name] = value
    return values


def recipe_names() -> list[str]:
    """The names of kerasllm's own recipes, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def differing_keys(a: Recipe, b: Recipe) -> list[str]:
    """Dotted keys whose values differ; words for people (`description`, `expected`) do not count."""
    differing = [name for name in ("task", "start_from") if getattr(a, name) != getattr(b, name)]
    for section in SECTIONS:
        left, right = a.to_dict()[section], b.to_dict()[section]
        differing += [f"{section}.{k}" for k in left | right if left.get(k) != right.get(k)]
    return differing


def _folder() -> Path:
    """In a wheel the recipes are in the package; in a checkout they are beside it."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _find(name_or_path: str | os.PathLike) -> Path:
    text = os.fspath(name_or_path)
    if text.endswith((".yaml", ".yml")) or os.sep in text or "/" in text:
        if not Path(text).is_file():
            raise FileNotFoundError(f"There is no recipe file {text!r}. Recipes: {', '.join(recipe_names())}")
        return Path(text)
    if text not in recipe_names():
        raise ValueError(
            f"Unknown recipe {text!r}.{near(text, recipe_names())} Recipes: {', '.join(recipe_names())}. "
            "For a file of your own, give a path that ends in .yaml."
        )
    return _folder() / f"{text}.yaml"


def _read(path: Path) -> dict[str, Any]:
    import yaml

    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {MAX_BYTES}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of keys to values. Received: {type(values).__name__}")
    return values


def _pairs(overrides: Iterable[str] | Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    import yaml

    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"An override is `key=value`. Received: {item!r}")
        try:
            # An empty value is an empty string; `null` is how to say nothing.
            yield key.strip(), yaml.safe_load(value) if value.strip() else value
        except yaml.YAMLError:
            yield key.strip(), value


def _locate(key: str) -> tuple[str, str]:
    """(section, name) of an override's key."""
    section, dot, name = key.partition(".")
    if dot:
        if section not in SECTIONS:
            raise ValueError(f"Unknown recipe key {key!r}.{near(section, SECTIONS)}")
        if name not in SECTIONS[section]:
            raise ValueError(f"Unknown recipe key {key!r}.{near(name, SECTIONS[section])}")
        return section, name
    found = [section for section, names in SECTIONS.items() if key in names]
    if len(found) > 1:
        choices = " or ".join(f"`{section}.{key}`" for section in found)
        raise ValueError(f"The recipe key {key!r} is not unique: say {choices}.")
    if not found:
        names = [name for names in SECTIONS.values() for name in names]
        raise ValueError(f"Unknown recipe key {key!r}.{near(key, names)}")
    return found[0], key
