"""The keys of peft's adapter_config.json: those that are read, those that change nothing here, those that are refused.

The lists are closed: a key that none of them has may only say nothing (null, false, empty). So an option of a later
`peft` is refused by its name, and never left out in silence.
"""

import math
import re
from collections.abc import Callable
from typing import Any

CONFIG = "adapter_config.json"
MERGE = "Merge it where it was trained (merge_and_unload), and open the model that is saved then."
PLAIN = (
    "Its file fits a base that was changed when the training began. Save it in peft as a plain LoRA: "
    "save_pretrained(directory, path_initial_model_for_weight_conversion=...), with the adapter as it began."
)
AS_IT_WAS = (
    "Its file fits a base that was changed when the training began. If that base is the model you have loaded, write "
    '"init_lora_weights": true into the adapter_config.json.'
)


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_names(value) -> bool:
    return (
        value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(x, str) for x in value))
    )


def _is_list(value) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value))


def _is_layers(value) -> bool:
    return value is None or _is_index(value) or (isinstance(value, list) and all(map(_is_index, value)))


def _is_index(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_flag(value) -> bool:
    return value is None or isinstance(value, bool)


def _of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A dict of patterns to values that pass a check."""
    return lambda value: (
        value is None
        or (isinstance(value, dict) and all(isinstance(key, str) and check(each) for key, each in value.items()))
    )


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


# What the base is called, who wrote the file, and how the training went: nothing that is computed.
HARMLESS = (
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
NAMES = "a name, a list of names, or null"
TARGETS = {
    "target_modules": (_is_names, NAMES),
    "exclude_modules": (_is_names, NAMES),
    "modules_to_save": (_is_list, "a list of names, or null"),
}
VECTORS = {
    "num_virtual_tokens": (_optional(_is_count), "a whole number of at least 1"),
    "token_dim": (_optional(_is_count), "a whole number of at least 1"),
    "num_layers": (_optional(_is_count), "a whole number of at least 1"),
    "num_attention_heads": (_optional(_is_count), "a whole number of at least 1"),
    "num_transformer_submodules": (_optional(_is_count), "a whole number of at least 1"),
    "modules_to_save": TARGETS["modules_to_save"],
}
# Of each kind: key → (check, what it must be).
READ = {
    "LORA": {
        **TARGETS,
        "r": (_is_count, "a whole number of at least 1"),
        "lora_alpha": (_is_number, "a number"),
        "lora_dropout": (lambda value: _is_number(value) and 0 <= value < 1, "in [0, 1)"),
        "bias": (lambda value: value in ("none", "all", "lora_only"), '"none", "all" or "lora_only"'),
        "use_rslora": (_is_flag, "true or false"),
        "use_dora": (_is_flag, "true or false"),
        "rank_pattern": (_of(_is_count), "a mapping of patterns to whole numbers of at least 1"),
        "alpha_pattern": (_of(_is_number), "a mapping of patterns to numbers"),
        "layers_to_transform": (_is_layers, "numbers of layers, or null"),
        "layers_pattern": (_is_names, NAMES),
        "ensure_weight_tying": (_is_flag, "true or false"),
    },
    "IA3": {**TARGETS, "feedforward_modules": (_is_names, NAMES)},
    "PROMPT_TUNING": VECTORS,
    "P_TUNING": VECTORS,
    "PREFIX_TUNING": VECTORS,
}
OLDER = {"fan_in_fan_out": "earlier versions of ours wrote it for prompts, too"}
# Of each kind: keys that change nothing in what the file's tensors mean, and why.
UNREAD = {
    "LORA": {
        "fan_in_fan_out": "which way a kernel of theirs lies; ours are known",
        "init_lora_weights": "read by `_check_beginning`",
        "megatron_core": "the name of a module, for megatron_config",
        "qalora_group_size": "for use_qalora",
        "loftq_config": "for init_lora_weights='loftq'",
        "eva_config": "for init_lora_weights='eva', which chooses A before training",
        "corda_config": "for init_lora_weights='corda'",
        "lora_ga_config": "for init_lora_weights='lora_ga'",
        "runtime_config": "where it is computed",
        "merge_weights": "of peft 0.2: whether evaluation merges",
    },
    "IA3": {"fan_in_fan_out": "which way a kernel of theirs lies", "init_ia3_weights": "what training began with"},
    "PROMPT_TUNING": {
        **OLDER,
        "prompt_tuning_init": "what training began with",
        "prompt_tuning_init_text": "what training began with",
        "tokenizer_name_or_path": "for prompt_tuning_init_text",
        "tokenizer_kwargs": "for prompt_tuning_init_text",
    },
    "P_TUNING": {
        **OLDER,
        # The file has what this network made, not the network.
        "encoder_reparameterization_type": "of the network that made the prompt",
        "encoder_hidden_size": "of the network that made the prompt",
        "encoder_num_layers": "of the network that made the prompt",
        "encoder_dropout": "of the network that made the prompt",
    },
    "PREFIX_TUNING": {
        **OLDER,
        "prefix_projection": "of the network that made the prefix",
        "encoder_hidden_size": "of the network that made the prefix",
        "init_weights": "what training began with",
    },
}
# Of each kind: keys that change what is computed, and what to do.
REFUSED = {
    "LORA": {
        "alora_invocation_tokens": "Adapters that begin at a token (aLoRA) are not computed here. Train a plain LoRA.",
        "arrow_config": MERGE,
        "enable_lora": MERGE,
        "kasa_config": MERGE,
        "layer_replication": MERGE,
        "lora_bias": MERGE,
        "megatron_config": "Save it from peft without megatron_config.",
        "monteclora_config": MERGE,
        "target_parameters": MERGE,
        "trainable_token_indices": MERGE,
        "use_bdlora": MERGE,
        "use_qalora": MERGE,
        "velora_config": MERGE,
    }
}
BEGINNINGS = ("gaussian", "eva", "orthogonal", "mica")  # These change the factors alone, as true and false do.
CHANGED_BASES = {"pissa": PLAIN, "olora": PLAIN, "corda": PLAIN, "loftq": AS_IT_WAS, "lora_ga": f"{PLAIN} {AS_IT_WAS}"}
OURS = "kerasllm"
OUR_KEYS = ("fingerprint", "labels", "ranks", "targets")


def check_config(config: dict) -> None:
    """Raises a ValueError for what an adapter_config.json of a kind in `READ` says and these layers do not compute."""
    kind = config["peft_type"]
    read, refused = READ[kind], REFUSED.get(kind, {})
    for key, value in config.items():
        if key in read:
            check, expected = read[key]
            if not check(value):
                raise ValueError(f"{key} in {CONFIG} must be {expected}. Received: {key}={_short(value)}")
        elif key not in (OURS, *HARMLESS, *UNREAD[kind]) and value not in (None, False, [], {}, ""):
            remedy = refused.get(key, f"This version does not know the key. {MERGE}")
            raise ValueError(f"This adapter is not supported: {CONFIG} says {key}={_short(value)}. {remedy}")
    if kind == "LORA":
        _check_beginning(config.get("init_lora_weights"))
    _check_ours(config.get(OURS))


def _check_beginning(value) -> None:
    name = value.lower() if isinstance(value, str) else value
    if name is None or isinstance(name, bool) or name in BEGINNINGS:
        return
    kind = next((each for each in CHANGED_BASES if isinstance(name, str) and name.startswith(each)), None)
    remedy = CHANGED_BASES.get(kind, f"This version does not know it. {MERGE}")
    raise ValueError(f"This adapter is not supported: {CONFIG} says init_lora_weights={_short(value)}. {remedy}")


def _check_ours(section) -> None:
    if section is None:
        return
    checks = {"ranks": _of(_is_count), "targets": _is_list}
    fits = isinstance(section, dict) and set(section) <= set(OUR_KEYS)
    if not fits or not all(check(section.get(key)) for key, check in checks.items()):
        raise ValueError(f"The section {OURS!r} in {CONFIG} is damaged. Received: {_short(section)}")


def is_targeted(config: dict, name: str) -> bool | None:
    """Whether a config says that a module of theirs has an adapter; `None` if it does not say."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    if targets is None or targets == "all-linear":
        return None
    if is_named(excluded, name):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or name in targets or layers is None or layers == []:
        return is_named(targets, name)
    if not is_named(targets, name):
        return False
    patterns = config.get("layers_pattern") or []
    patterns = [rf"(?:^|.*?\.){each}" for each in ([patterns] if isinstance(patterns, str) else patterns)]
    for pattern in patterns or [r".*?\.[^.]*"]:
        found = re.match(rf"{pattern}\.(?P<index>\d+)\.", name)
        if found:
            return int(found["index"]) in ([layers] if isinstance(layers, int) else layers)
    return False


def is_named(names: str | list[str], name: str) -> bool:
    """Whether a regular expression is a module's name, or one of several names is the end of it."""
    if isinstance(names, str):
        return _fullmatch(names, name)
    return any(name == end or name.endswith(f".{end}") for end in names)


def is_saved(config: dict, name: str) -> bool:
    """Whether a config says that a module of theirs, or what it is a part of, was trained whole."""
    return any(f".{each}." in f".{name}." for each in config.get("modules_to_save") or ())


def value_of(patterns: dict | None, name: str, default):
    """As peft reads its patterns: of the end of a name."""
    return next((value for key, value in (patterns or {}).items() if _fullmatch(rf"(.*\.)?({key})", name)), default)


def _fullmatch(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"A pattern in {CONFIG} is no regular expression: {error}. Received: {pattern!r}") from None


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
