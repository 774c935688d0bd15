"""From the few choices of the page to a recipe, and what it will cost."""

import math
from dataclasses import dataclass

from kerasllm.training.recipe import METHODS, Recipe
from playground.limits import MAX_PARAMETERS, number, one_of

FAMILIES = ("GPT", "BERT", "T5", "Llama")
LENGTHS = {"30 s": 30, "2 min": 120, "5 min": 300}
MAX_STEPS = 20_000
EVALUATIONS = 12
SEQUENCE_LENGTH = 64
FEW_PAIRS = {"sequence_length": SEQUENCE_LENGTH, "batch_size": 4, "validation_fraction": 0.0}
MOST_CHARACTERS_A_TOKEN = 8
LEAST_TO_VALIDATE = 4_000
START_SECONDS = 12  # reading, compiling
OPERATIONS_PER_SECOND = 5e10  # what two cores make of small models
LEAST_STEP_SECONDS = 0.012
TIMES_OF_ESTIMATE = 6  # a run that takes this much longer is stopped
LEAST_LIMIT_SECONDS = 120
LORA_TARGETS = "attention.query, attention.value"


@dataclass(frozen=True)
class Choices:
    """What can be chosen on the Train tab.

    Attributes:
        family: "GPT", "BERT", "T5" or "Llama".
        length: a key of `LENGTHS`, which sets the steps unless they are given.
        num_layers, hidden_dim, learning_rate, steps, batch_size, seed: as in a recipe; `steps` 0 follows `length`.
    """

    family: str = "GPT"
    length: str = "30 s"
    num_layers: int = 2
    hidden_dim: int = 96
    learning_rate: float = 0.005
    steps: int = 0
    batch_size: int = 8
    seed: int = 1337

    def __post_init__(self):
        one_of("family", self.family, FAMILIES)
        one_of("length", self.length, LENGTHS)
        number("layers", self.num_layers, 1, 6, whole=True)
        number("width", self.hidden_dim, 32, 256, whole=True)
        if self.hidden_dim % 32:
            raise ValueError(f"`width` must be a multiple of 32. Received: width={self.hidden_dim}")
        number("learning rate", self.learning_rate, 0, 10)
        number("steps", self.steps, 0, MAX_STEPS, whole=True)
        number("batch size", self.batch_size, 1, 64, whole=True)
        number("seed", self.seed, 0, 2**31 - 1, whole=True)


@dataclass(frozen=True)
class Estimate:
    """What a run will be: parameters, steps and seconds."""

    parameters: int
    steps: int
    seconds: float


def training_recipe(choices: Choices, name: str, source: str, characters: int, title: str = "") -> Recipe:
    """The recipe of a run.

    Args:
        choices: of the page.
        name: of the run.
        source: path of the text, or "builtin:dates" for T5's pairs.
        characters: of the text.
        title: what people call the run.

    Raises:
        ValueError: a choice is out of range, or the model too large for the playground.
    """
    dates = source.startswith("builtin:dates")
    vocabulary = max(320, min(2048, characters // 40))
    steps = _rounded(choices.steps or _affordable_steps(choices, vocabulary))
    recipe = Recipe.from_dict(
        {
            "name": name,
            "task": "seq2seq" if dates else TASKS[choices.family],
            "description": title,
            "data": {"source": source, **_cut(choices.batch_size, characters, dates)},
            "tokenizer": _tokenizer(choices.family, dates, vocabulary),
            "model": _model(choices),
            "training": {
                "steps": steps,
                "evaluate_every": max(1, steps // EVALUATIONS),
                "evaluate_steps": 8,
                "optimizer": "muon",
                "learning_rate": choices.learning_rate,
                "warmup_steps": min(20, steps // 4),
                "keep_checkpoints": EVALUATIONS,
                "sample_prompt": "The ",
                "sample_tokens": 40,
                "seed": choices.seed,
            },
        }
    )
    parameters = recipe.config(vocabulary).num_parameters()
    if parameters > MAX_PARAMETERS:
        raise ValueError(
            f"The model would have {parameters:,} parameters, and the playground trains at most {MAX_PARAMETERS:,}. "
            "Choose fewer layers or a smaller width."
        )
    return recipe


def lora_recipe(
    name: str, source: str, characters: int, task: str, start_from: str, steps: int, rank: int, title: str = ""
) -> Recipe:
    """The recipe of a LoRA of a saved model.

    Args:
        source, characters: path of the text, or of a table of pairs, and how long it is.
        task: of `kerasllm.training.tasks.TASKS`.
        start_from: the model's directory.
    """
    steps = _rounded(number("steps", steps, EVALUATIONS, 2000, whole=True))
    return Recipe.from_dict(
        {
            "name": name,
            "task": task,
            "description": title,
            "start_from": start_from,
            "data": {"source": source, **(FEW_PAIRS if task == "seq2seq" else _cut(8, characters, False))},
            "tuning": {"method": "lora", "rank": number("rank", rank, 1, 64, whole=True)},
            "training": {
                "steps": steps,
                "evaluate_every": max(1, steps // EVALUATIONS),
                "evaluate_steps": 8,
                "learning_rate": 5 * METHODS["lora"],
                "warmup_steps": min(10, steps // 4),
                "keep_checkpoints": 2,
                "sample_prompt": "The ",
                "sample_tokens": 40,
            },
        }
    )


def estimate(recipe: Recipe) -> Estimate:
    """Parameters, steps and about how many seconds, on two cores."""
    vocabulary = recipe.tokenizer.vocabulary_size or 96
    config = recipe.config(vocabulary)
    tokens = recipe.data.batch_size * recipe.data.sequence_length
    seconds = START_SECONDS + recipe.training.steps * _step_seconds(config, tokens)
    return Estimate(config.num_parameters(), recipe.training.steps, seconds)


def time_limit(seconds: float) -> float:
    """After how many seconds a run of this estimate is stopped."""
    return max(LEAST_LIMIT_SECONDS, TIMES_OF_ESTIMATE * seconds)


TASKS = {"GPT": "causal-lm", "Llama": "causal-lm", "BERT": "masked-lm", "T5": "span-corruption"}


def _cut(batch_size: int, characters: int, dates: bool) -> dict:
    """How the text is cut into rows; a short one into short rows, without a part for validation."""
    if dates:
        return {"sequence_length": SEQUENCE_LENGTH, "batch_size": 4 * batch_size}
    tokens = characters * 9 // 10 // MOST_CHARACTERS_A_TOKEN
    length = min(SEQUENCE_LENGTH, max(8, tokens // 4))
    rows = max(1, tokens // length - 1)
    fraction = 0.1 if characters >= LEAST_TO_VALIDATE else 0.0
    return {"sequence_length": length, "batch_size": min(batch_size, rows), "validation_fraction": fraction}


def _tokenizer(family: str, dates: bool, vocabulary: int) -> dict:
    if dates:
        return {"kind": "char"}
    if family == "T5":  # a hundred of them are the sentinels of spans
        return {"kind": "unigram", "vocabulary_size": vocabulary + 200}
    return {"kind": "wordpiece" if family == "BERT" else "bpe", "vocabulary_size": vocabulary}


def _model(choices: Choices) -> dict:
    sizes = {
        "num_layers": choices.num_layers,
        "hidden_dim": choices.hidden_dim,
        "num_heads": max(1, choices.hidden_dim // 32),
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    if choices.family == "GPT":
        return sizes
    wide = 4 * choices.hidden_dim
    if choices.family == "BERT":
        return {"name": "bert_tiny", **sizes, "intermediate_dim": wide}
    if choices.family == "Llama":
        kv_heads = {"num_kv_heads": max(1, choices.hidden_dim // 64) if choices.hidden_dim % 64 == 0 else None}
        kv_heads = {name: value for name, value in kv_heads.items() if value} or {"num_kv_heads": sizes["num_heads"]}
        return {"name": "llama_tiny", **sizes, **kv_heads, "intermediate_dim": wide, "tie_embeddings": True}
    return {
        "name": "t5_tiny",
        **sizes,
        "num_encoder_layers": choices.num_layers,
        "head_dim": 32,
        "intermediate_dim": wide,
    }


def _affordable_steps(choices: Choices, vocabulary: int) -> int:
    from kerasllm.config import TransformerConfig

    values = dict(_model(choices))
    name, sizes = values.pop("name", None), {"vocabulary_size": vocabulary, "max_sequence_length": SEQUENCE_LENGTH}
    config = TransformerConfig.from_name(name, **values, **sizes) if name else TransformerConfig(**values, **sizes)
    seconds = LENGTHS[choices.length]
    return min(MAX_STEPS, int(seconds / _step_seconds(config, SEQUENCE_LENGTH * choices.batch_size)))


def _step_seconds(config, tokens: int) -> float:
    return max(LEAST_STEP_SECONDS, 3 * config.flops_per_token() * tokens / OPERATIONS_PER_SECOND)


def _rounded(steps: int) -> int:
    """Steps that divide into the evaluations."""
    return steps if steps < EVALUATIONS else math.floor(steps / EVALUATIONS) * EVALUATIONS
