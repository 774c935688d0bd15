"""What a directory says of the task: which classes can open it, and what its config.json has for their constructors."""

import inspect

from kerasllm.config import MAX_SIZE, TransformerConfig
from kerasllm.generation.cache import DTYPES as CACHE_DTYPES

LABELLING = ("TextClassifier", "TokenClassifier")  # Their heads go by the same name.
READERS = (*LABELLING, "TextEmbedder")  # of any single stack
PRETRAINED = ("MaskedLM", "PairedMaskedLM", "ReplacedTokenDetector")  # of a bidirectional one
TASKS = ("CausalLM", *PRETRAINED, "Seq2SeqLM", *READERS)
OWN_KEY = "kerasllm"  # of what transformers has no key for
# What every model's get_config has.
_SHARED = {"name", "trainable", "dtype", "config", "tokenizer", "generation_config", "structure"}


def task_of(cls: type) -> str:
    """The task that a class is, or is derived from."""
    names = [base.__name__ for base in cls.__mro__]
    task = next((name for name in names if name in TASKS), None)
    if task is None:
        raise TypeError(f"{cls.__name__} is no task with a saved format. Use one of {', '.join(TASKS)}.")
    return task


def check_task(task: str, config: TransformerConfig, architecture: str, directory) -> None:
    """Raises a ValueError that names the right classes if the network is not one that the task can drive."""
    if config.num_encoder_layers:
        kind, fitting = "an encoder and a decoder", ("Seq2SeqLM",)
    elif config.causal:
        kind, fitting = "a causal decoder", ("CausalLM", *READERS)
    else:
        kind, fitting = "a bidirectional encoder", (*PRETRAINED, *READERS)
    if task not in fitting:
        raise ValueError(
            f"{str(directory)!r} holds a {architecture}, {kind}, which no {task} is. "
            f"Open it with {' or '.join(f'{name}.from_preset' for name in fitting)}."
        )


def read_options(values: dict, cls: type, given: dict, usual: dict) -> dict:
    """Arguments of the task's constructor: those given, beside them what config.json has, else the `usual` ones."""
    known = set(inspect.signature(cls.__init__).parameters) - _SHARED
    ours = values.get(OWN_KEY) or {}
    options = ours.get(task_of(cls), {}) if isinstance(ours, dict) else None
    if not isinstance(options, dict) or not set(options) <= known - {
        "labels",
        "num_labels",
        "start_token_id",
        "multi_label",
    }:
        raise ValueError(f"Unknown settings of a {cls.__name__} in config.json's {OWN_KEY!r}: {str(ours)[:200]}")
    options = {**usual, **options}
    if "multi_label" in known:
        options |= _problem(values)
    if "dropout" in known and values.get("classifier_dropout") is not None:
        options.setdefault("dropout", values["classifier_dropout"])
    if "pad_token_id" in known:
        options.setdefault("pad_token_id", values.get("pad_token_id") if options.get("pooling") == "last" else None)
    if "labels" in known and values.get("id2label") is None and values.get("num_labels") is not None:
        options.setdefault("num_labels", values["num_labels"])
    if "labels" in known and "id2label" in values and not {"labels", "num_labels"} & set(given):
        labels = _labels(values["id2label"])
        options |= {"num_labels": len(labels), "labels": None if labels == _unnamed(len(labels)) else labels}
    if "start_token_id" in known and values.get("decoder_start_token_id") is not None:
        options["start_token_id"] = values["decoder_start_token_id"]
    return {**options, **given}


def _problem(values: dict) -> dict:
    """What `problem_type` and the labels' number say of a `TextClassifier`."""
    problem, labels = values.get("problem_type"), values.get("id2label")
    if problem == "regression" or (isinstance(labels, dict) and len(labels) == 1):
        raise ValueError(
            "This is a model of regression, which predicts a number and no labels: not supported. Received: "
            f"problem_type={problem!r}, id2label={str(labels)[:80]}"
        )
    if problem not in (None, "single_label_classification", "multi_label_classification"):
        raise ValueError(f"Unknown problem_type in config.json. Received: problem_type={problem!r}")
    return {} if problem is None else {"multi_label": problem == "multi_label_classification"}


def write_options(model) -> dict:
    """What config.json has of them: under transformers' key where there is one."""
    options = {key: value for key, value in model.get_config().items() if key not in _SHARED}
    values = {}
    if options.pop("multi_label", False):
        values["problem_type"] = "multi_label_classification"
    if options.get("pad_token_id") is not None:
        values["pad_token_id"] = options["pad_token_id"]
    if "num_labels" in options:
        labels = options.pop("labels") or _unnamed(options["num_labels"])
        options.pop("num_labels")
        values["id2label"] = {str(i): str(label) for i, label in enumerate(labels)}
        values["label2id"] = {label: int(i) for i, label in values["id2label"].items()}
    if "start_token_id" in options:
        values["decoder_start_token_id"] = options.pop("start_token_id")
    ours = {task_of(type(model)): options} if options else {}
    if model.cache_dtype is not None:
        ours["cache_dtype"] = model.cache_dtype
    return {**values, OWN_KEY: ours} if ours else values


def read_cache_dtype(values: dict) -> str | None:
    """`cache_dtype` of the model that was saved.

    Raises:
        ValueError: it is none that there is.
    """
    ours = values.get(OWN_KEY)
    dtype = ours.get("cache_dtype") if isinstance(ours, dict) else None
    if dtype is not None and dtype not in CACHE_DTYPES:
        raise ValueError(f"Unknown cache_dtype in config.json's {OWN_KEY!r}: {str(dtype)[:200]}")
    return dtype


def count_labels(options: dict) -> int:
    """How many labels a classifier made with these options has."""
    return options.get("num_labels") or len(options.get("labels") or _unnamed(2))


def _unnamed(count: int) -> list[str]:
    """What transformers calls labels without names."""
    return [f"LABEL_{i}" for i in range(count)]


def _labels(id2label) -> list[str]:
    keys = {str(i) for i in range(len(id2label))} if isinstance(id2label, dict) and len(id2label) <= MAX_SIZE else None
    if not keys or set(id2label) != keys or not all(isinstance(label, str) for label in id2label.values()):
        raise ValueError(f"id2label in config.json must name labels 0, 1, 2 … Received: {str(id2label)[:80]}")
    return [id2label[str(i)] for i in range(len(id2label))]
