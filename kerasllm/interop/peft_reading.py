"""What an adapter in peft's format means for a model of ours: equal to what `peft` computes, or refused by name.

Where a module of theirs holds several layers of ours, each layer gets the factor A, and its own columns of B.
"""

import dataclasses
import math

import keras
import numpy as np

from kerasllm.interop.peft_config import (
    CONFIG,
    MERGE,
    OURS,
    READ,
    check_config,
    is_named,
    is_saved,
    is_targeted,
    value_of,
)
from kerasllm.interop.peft_names import HEAD, Names, plain
from kerasllm.interop.peft_writing import PROMPT, TOKENS, reads_first_token
from kerasllm.tuning.delta import numpy
from kerasllm.tuning.lora import Kernel, LoRA
from kerasllm.tuning.model_adapters import base_value
from kerasllm.tuning.prompts import PrefixTuning, PromptTuning
from kerasllm.tuning.settings import Settings
from kerasllm.tuning.targets import LINEAR
from kerasllm.tuning.vectors import IA3

TYPES = tuple(READ)
Values = dict[tuple[str, str, str], np.ndarray]  # (layer, kind of delta, weight) → value
FACTORS = {  # end of a tensor's name → what it is
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_embedding_A": "lora_A",
    "lora_embedding_B": "lora_B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "ia3_l": "ia3_l",
    "weight": "weight",
    "bias": "bias",
}
WHOLE = {"weight", "bias"}


@dataclasses.dataclass
class Module:
    """What a file has of one module of theirs.

    Args:
        name: the module's, as peft's patterns are matched with it.
        tensors: kind of tensor → its value.
    """

    name: str
    tensors: dict[str, np.ndarray]


def from_peft(model: keras.Model, config: dict, tensors: dict[str, np.ndarray]) -> tuple[Settings, Values]:
    """The settings and weights that an adapter_config.json and its tensors mean for this model.

    Args:
        model: built.
        config: of one of the `TYPES`.
        tensors: name → value, in the type that the file has it in.

    Raises:
        ValueError: a module that the model lacks, a shape that does not fit, tensors that are missing or that the
            config does not speak of, or an option that is not supported.
    """
    check_config(config)
    names, tensors = Names(model), dict(tensors)
    prompt = tensors.pop(PROMPT, None)
    modules = _modules(model, names, tensors)
    _check_tied(model, config, names, modules)
    _check_saved(config, names, modules)
    kind = config["peft_type"]
    if kind in ("LORA", "IA3"):
        _check_targets(config, names, modules, "lora_A" if kind == "LORA" else "ia3_l")
        settings, values = (_lora_from_peft if kind == "LORA" else _ia3_from_peft)(config, names, modules)
    else:
        settings, values = _prompt_from_peft(model, config, prompt, _whole(names, modules))
        prompt = None
    left = [PROMPT] if prompt is not None else []
    left += [
        f"{module.name}.{kind}" for module in modules.values() for kind in set(module.tensors) - {"weight", "bias"}
    ]
    if left:
        raise ValueError(f"The adapter has {left[0]!r}, which its {CONFIG} does not speak of ({kind}).")
    return settings, values | _whole_values(model, names, modules)


def _modules(model, names: Names, tensors) -> dict[str, Module]:
    """The tensors of a file by the modules of our table; copies of what the base has are compared and left out."""
    modules: dict[str, Module] = {}
    for name, tensor in tensors.items():
        if ".original_module" in name:  # Some files have the head as it was, too.
            continue
        is_copy = name.endswith(".base_layer.weight")
        module, kind = _parsed(name)
        known = names.known(module)
        if known is None and plain(module) == HEAD and kind == "weight":
            _check_same(model.transformer.embedding.tokens, tensor, name)
            continue
        if known is None or (kind != "bias" and not names.reaches(known)):
            raise ValueError(f"The adapter has {name!r}, {_why_not(names, module, known, model)}.")
        if is_copy:
            _check_same(names.layers[names.modules[known][0]], tensor, name)
            continue
        values = modules.setdefault(known, Module(plain(module), {})).tensors
        value = np.asarray(tensor).astype("float32")
        if kind in values and not np.array_equal(values[kind], value):
            raise ValueError(
                f"The adapter has {name!r}, and another value for the same weight of this model. An embedding that is "
                f"one here cannot be changed at one of its uses alone. {MERGE}"
            )
        values[kind] = value
    for known in set(names.copies.values()) & set(modules):
        if plain(modules[known].name) == known:
            raise ValueError(
                f"The adapter has tensors of {known!r}, which in this family only names the embedding: transformers "
                f"reads its copies ({', '.join(names.copies)}). Train those."
            )
    return modules


def _parsed(name: str) -> tuple[str, str]:
    """(module, kind) of a tensor's name."""
    plainly = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
    for end, kind in FACTORS.items():
        if plainly.endswith(f".{end}"):
            return plainly.removesuffix(f".{end}"), kind
    raise ValueError(f"The adapter has {name!r}, which belongs to no supported kind of adapter.")


def _why_not(names: Names, module: str, known: str | None, model) -> str:
    if plain(module) == HEAD:
        return "and a head over all tokens cannot carry an adapter here, tied or untied"
    if known is not None:
        return "and tables of positions and segments cannot carry an adapter here"
    return f"which is no layer of this {type(model).__name__}"


def _check_same(layer, tensor, name: str) -> None:
    """A file's copy of a table of the base must be what this base has."""
    is_head = name.endswith((f"{HEAD}.weight", f"{HEAD}.base_layer.weight"))
    head = getattr(layer, "reverse_embeddings", None) if is_head else None
    variable = layer.embeddings if head is None else head
    if getattr(layer, "quantization_mode", None):
        return  # There is nothing to compare with; the fingerprint of such a base is not checked, either.
    shape = tuple(variable.shape) if head is None else tuple(variable.shape)[::-1]
    if shape != tensor.shape:
        raise ValueError(
            f"The adapter has {name!r} for {tensor.shape[0]} tokens, and this model has {shape[0]}: shape "
            f"{tensor.shape} where the model has {shape}. The vocabulary was changed before training. Load the base "
            "that was saved with it."
        )
    base = numpy(variable) if head is None else numpy(variable).T
    own, half = np.asarray(tensor), keras.backend.standardize_dtype(variable.dtype)
    same = np.array_equal(base.astype(own.dtype), own) or np.array_equal(base, own.astype(half).astype("float32"))
    if not same:
        what = (
            "a head over all tokens cannot carry an adapter here" if is_head else "a target is not trained whole, too"
        )
        raise ValueError(
            f"The adapter has {name!r}, a copy of the base's weight that differs from this base's, and {what}. Load "
            "the base that it was trained on."
        )


def _check_targets(config: dict, names: Names, modules: dict[str, Module], kind: str) -> None:
    """What the config says is adapted must be what the file has tensors of, and the other way round."""
    for module in modules.values():
        if kind in module.tensors and is_targeted(config, module.name) is False:
            raise ValueError(
                f"The adapter has tensors of {module.name!r}, which is not among the target_modules of its {CONFIG}. "
                f"Received: target_modules={config.get('target_modules')!r}"
            )
    for known, layers in names.modules.items():
        name = plain(names.theirs(known))
        if known in modules or not names.reaches(known) or is_saved(config, name):
            continue
        if isinstance(names.layers[layers[0]], (*LINEAR, keras.layers.Embedding)) and is_targeted(config, name):
            raise ValueError(
                f"The adapter lacks tensors of {name!r}, which is among the target_modules of its {CONFIG}. "
                f"Received: target_modules={config.get('target_modules')!r}"
            )


def _check_saved(config: dict, names: Names, modules: dict[str, Module]) -> None:
    """Modules that were trained whole must be in the file."""
    for known in names.modules:
        name, found = plain(names.theirs(known)), modules[known].tensors if known in modules else {}
        if is_saved(config, name) and names.reaches(known) and "weight" not in found:
            raise ValueError(
                f"The adapter lacks the weights of {name!r}, which is among the modules_to_save of its {CONFIG}. "
                f"Received: modules_to_save={config['modules_to_save']!r}"
            )


def _check_tied(model, config: dict, names: Names, modules: dict[str, Module]) -> None:
    if not config.get("ensure_weight_tying") or not model.config.tie_embeddings:
        return
    touched = [module.name for known, module in modules.items() if names.modules[known] == [TOKENS]]
    if touched and getattr(model, "predicts_tokens", False):
        raise ValueError(
            f"This adapter is not supported: {CONFIG} says ensure_weight_tying=True, by which the head follows "
            f"{touched[0]!r}, and a head over all tokens cannot carry an adapter here. {MERGE}"
        )


def _lora_from_peft(config: dict, names: Names, modules: dict[str, Module]):
    values, ranks, alphas = {}, {}, {}
    recorded = (config.get(OURS) or {}).get("ranks")
    rslora, dora = bool(config.get("use_rslora")), bool(config.get("use_dora"))
    wanted = ("lora_A", "lora_B", "magnitude") if dora else ("lora_A", "lora_B")
    for known, module in modules.items():
        if not {"lora_A", "lora_B"} & set(module.tensors):
            continue
        lacking = [kind for kind in wanted if kind not in module.tensors]
        if lacking:
            raise ValueError(f"The adapter lacks {lacking[0]} of {module.name!r}. It has: {', '.join(module.tensors)}")
        a, b, *magnitude = (module.tensors.pop(kind) for kind in wanted)
        layers, widths = names.modules[known], names.widths(known)
        rank = value_of(config.get("rank_pattern"), module.name, config.get("r", 8))
        expected = (rank, Kernel(names.layers[layers[0]], layers[0]).in_dim), (sum(widths), rank)
        if (a.shape, b.shape) != expected or any(each.size != sum(widths) for each in magnitude):
            raise ValueError(
                f"The factors of {module.name!r} do not fit: A is {a.shape} and B is {b.shape}, where this model and "
                f"r={rank} in {CONFIG} want {expected[0]} and {expected[1]}. Load the base that it was trained on."
            )
        alpha = value_of(config.get("alpha_pattern"), module.name, config.get("lora_alpha", 8))
        scaling = alpha / (math.sqrt(rank) if rslora else rank)
        rows = _rows(recorded, layers, widths, rank, b, module.name)
        column = 0
        for name, width in zip(layers, widths):
            columns = slice(column, column + width)
            column += width
            if name not in rows:
                continue
            factors = _fitting(a[rows[name]].T, b[columns, rows[name]].T)
            values[name, "lora", "lora_a"], values[name, "lora", "lora_b"] = factors
            if dora:
                values[name, "lora", "magnitude"] = magnitude[0].reshape(-1)[columns]
            ranks[name] = factors[0].shape[1]
            alphas[name] = scaling * (math.sqrt(ranks[name]) if rslora else ranks[name])
    if not ranks:
        raise ValueError("The adapter has no tensors of a LoRA.")
    settings = LoRA(
        rank=_one_or_all(ranks),
        alpha=_one_or_all(alphas),
        targets=tuple(ranks),
        also_train=_whole(names, modules),
        dropout=float(config.get("lora_dropout") or 0.0),
        rslora=rslora,
        dora=dora,
        bias=config.get("bias", "none"),
    )
    return settings, values


def _rows(recorded: dict | None, layers, widths, rank: int, b: np.ndarray, module: str) -> dict[str, slice]:
    """Which rows of A are each layer's: all of them, or those that we recorded when we put several LoRAs into one."""
    if recorded is None:
        return dict.fromkeys(layers, slice(None))
    rows, row, column, rest = {}, 0, 0, b.copy()
    for name, width in zip(layers, widths):
        if name in recorded:
            rows[name] = slice(row, row + recorded[name])
            row += recorded[name]
            rest[column : column + width, rows[name]] = 0
        column += width
    if row != rank or rest.any():
        raise ValueError(
            f"The ranks that {CONFIG} has for the parts of {module!r} are not those of its tensors, which were changed "
            f"since. Delete the section {OURS!r} there."
        )
    return rows


def _fitting(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (in, rank) and (rank, out) of the same product, of a rank that is not above both dimensions."""
    if a.shape[1] <= min(a.shape[0], b.shape[1]):
        return a, b
    product = (a.astype("float64") @ b).astype("float32")
    if a.shape[0] <= b.shape[1]:
        return np.eye(a.shape[0], dtype="float32"), product
    return product, np.eye(b.shape[1], dtype="float32")


def _ia3_from_peft(config: dict, names: Names, modules: dict[str, Module]):
    values, on_input = {}, []
    recorded = (config.get(OURS) or {}).get("targets")
    for known, module in modules.items():
        if "ia3_l" not in module.tensors:
            continue
        vector, layers, widths = module.tensors.pop("ia3_l"), names.modules[known], names.widths(known)
        in_dim, inputs = Kernel(names.layers[layers[0]], layers[0]).in_dim, config.get("feedforward_modules")
        if inputs is not None and is_named(inputs, module.name) != (vector.shape[0] == 1):
            raise ValueError(
                f"The vector of {module.name!r} is {vector.shape}, and the feedforward_modules of its {CONFIG}, whose "
                f"inputs are multiplied, say otherwise. Received: feedforward_modules={inputs!r}"
            )
        if vector.shape == (1, in_dim):
            on_input += layers
            values |= {(name, "ia3", "factor"): vector.reshape(-1) for name in layers}
            continue
        if vector.shape != (sum(widths), 1):
            raise ValueError(
                f"The vector of {module.name!r} is {vector.shape}, and this model's layer wants {(sum(widths), 1)}, or "
                f"{(1, in_dim)} on its input. Load the base that it was trained on."
            )
        for name, part in zip(layers, np.split(vector.reshape(-1), np.cumsum(widths)[:-1])):
            if recorded is None or name in recorded:
                values[name, "ia3", "factor"] = part
            elif (part != 1).any():
                raise ValueError(
                    f"{name!r} is not among the targets that {CONFIG} has in its section {OURS!r}, and the tensors "
                    "change it. Delete that section."
                )
    targets = tuple(name for name, _, _ in values)
    if not targets:
        raise ValueError("The adapter has no tensors of an (IA)³.")
    return IA3(targets=targets, also_train=_whole(names, modules), on_input=tuple(on_input)), values


def _prompt_from_peft(model, config: dict, prompt: np.ndarray | None, whole: tuple[str, ...]):
    prefix = config["peft_type"] == "PREFIX_TUNING"
    if prompt is None or prompt.ndim != 2:
        raise ValueError(f"The adapter lacks {PROMPT!r}, vectors of two dimensions, which its kind has.")
    is_ours_alone = OURS in config or config.get("task_type") == "FEATURE_EXTRACTION"  # peft classifies nothing then.
    if not prefix and reads_first_token(model) and not is_ours_alone:
        raise ValueError(
            f"A {type(model).__name__} here classifies the first token of the text, and one of peft's the first vector "
            "of the prompt: the same file would mean another answer. Train the prompt here, or use LoRA or IA3."
        )
    if not prefix and TOKENS in whole and OURS not in config:
        raise ValueError(
            "The adapter has a prompt and a token embedding that was trained whole, which peft does not read beside a "
            "prompt: the same file would mean another answer. Take the embedding out of modules_to_save and the file."
        )
    # With an encoder, a file has vectors for two stacks, of which only the encoder's are read.
    count = config.get("num_virtual_tokens") or len(prompt)
    if len(prompt) not in (count, count * (config.get("num_transformer_submodules") or 1)):
        raise ValueError(f"{PROMPT!r} has {len(prompt)} vectors, and {CONFIG} says num_virtual_tokens={count}.")
    c = getattr(model, "config", None)
    if prefix and c is not None:
        expected = {"num_layers": c.num_layers, "num_attention_heads": c.num_kv_heads}
        for key, value in expected.items():
            if config.get(key, value) not in (None, value):
                raise ValueError(
                    f"{CONFIG} says {key}={config[key]}, and this model has {value}. Load the base that the prefix was "
                    "trained on."
                )
    settings = (PrefixTuning if prefix else PromptTuning)(num_tokens=count, also_train=whole or None)
    name = ("transformer", "prompt", "prefix" if prefix else "prompt")
    return settings, {name: np.asarray(prompt[:count]).astype("float32")}


def _whole(names: Names, modules: dict[str, Module]) -> tuple[str, ...]:
    """The layers of which a file has the whole kernel, table or gains."""
    return tuple(
        layer for known, module in modules.items() if "weight" in module.tensors for layer in names.modules[known]
    )


def _whole_values(model, names: Names, modules: dict[str, Module]) -> Values:
    """Weights that the file has as they are, as what is added to the base's."""
    values = {}
    for known, module in modules.items():
        layers = [names.layers[name] for name in names.modules[known]]
        for kind, tensor in module.tensors.items():
            attribute = _attribute(layers[0], kind)
            if attribute is None:
                raise ValueError(f"The adapter has {module.name}.{kind}, and the layer has no {kind} in this model.")
            is_turned = names.transposed(known, attribute)
            bases = [base_value(model, layer, attribute) for layer in layers]
            shape = (*bases[0].shape[:-1], sum(base.shape[-1] for base in bases))
            shape = shape[::-1] if is_turned else shape
            if tensor.shape != shape:
                raise ValueError(
                    f"{module.name}.{kind} in the adapter has shape {tensor.shape}, and in this model {shape}. Load "
                    f"the base that it was trained on{_resized(layers[0])}."
                )
            columns = np.cumsum([base.shape[-1] for base in bases])[:-1]
            parts = np.split(tensor.T if is_turned else tensor, columns, axis=-1)
            where = "whole" if "weight" in module.tensors else "bias"
            for name, part, base in zip(names.modules[known], parts, bases):
                if (part != base).any():
                    values[name, where, f"{attribute}_offset"] = part - base
    return values


def _resized(layer) -> str:
    return ", with its vocabulary as it was then" if isinstance(layer, keras.layers.Embedding) else ""


def _attribute(layer, kind: str) -> str | None:
    choices = ("bias", "beta") if kind == "bias" else ("kernel", "embeddings", "gamma", "scale")
    return next((name for name in choices if getattr(layer, name, None) is not None), None)


def _one_or_all(values: dict):
    return next(iter(values.values())) if len(set(values.values())) == 1 else values
