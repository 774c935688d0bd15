"""The names and shapes that `peft` saves adapters in, and ours: LoRA, (IA)³ and prompts, both ways.

A module of theirs may hold several layers of ours side by side, as GPT-2's fused `c_attn` does. What ours add then is
one LoRA of theirs: the factors A side by side, and the factors B on the diagonal. In the other direction each layer
gets A, and its own columns of B.
"""

import collections
import math

import keras
import numpy as np

from kerasllm.interop import own
from kerasllm.interop.presets import FAMILIES, head_table
from kerasllm.interop.tasks import TASKS, task_of
from kerasllm.tuning.delta import numpy
from kerasllm.tuning.lora import Kernel, LoRA
from kerasllm.tuning.model_adapters import Adapter
from kerasllm.tuning.offset import WEIGHT_NAMES
from kerasllm.tuning.prompts import PrefixDelta, PrefixTuning, PromptDelta, PromptTuning
from kerasllm.tuning.settings import Settings
from kerasllm.tuning.targets import named_layers
from kerasllm.tuning.vectors import IA3

PREFIX, PROMPT = "base_model.model.", "prompt_embeddings"
TYPES = ("LORA", "IA3", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
TASK_TYPES = {
    "CausalLM": "CAUSAL_LM",
    "Seq2SeqLM": "SEQ_2_SEQ_LM",
    "TextClassifier": "SEQ_CLS",
    "TokenClassifier": "TOKEN_CLS",
    "TextEmbedder": "FEATURE_EXTRACTION",
}
UNSUPPORTED = {  # what an adapter_config.json may ask for and these layers do not compute
    "layer_replication": None,
    "lora_bias": False,
    "megatron_config": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_qalora": False,
    "exclude_modules": None,
}
Values = dict[tuple[str, str, str], np.ndarray]  # (layer, kind of delta, weight) → value


class Names:
    """Which layers of ours each module of theirs holds.

    Args:
        model: one of ours in a family of transformers, or any other Keras model, whose layers keep their names.
    """

    def __init__(self, model: keras.Model):
        self.layers = named_layers(model, tuple(WEIGHT_NAMES))
        self.task = task_of(type(model)) if {base.__name__ for base in type(model).__mro__} & set(TASKS) else None
        family = None
        if self.task:
            family = next((f for f in FAMILIES.values() if f.covers(model, self.task)), own.FAMILY)
        self.model_type = family.model_type if family else None
        self._standard = family.standard_name if family else lambda name: name
        self.modules: dict[str, list[str]] = {}
        self.embeds_only = bool(family) and family.architectures[self.task] == "BertModel"
        if family in (None, own.FAMILY):
            self.modules = {name: [name] for name in self.layers}
        else:
            for name, paths in {**family.tensors(model.config), **head_table(family, self.task, model.config)}.items():
                parts = [path.removesuffix(".T").rpartition("/") for path in paths]
                if parts[0][2] in ("kernel", "embeddings", "gamma", "scale"):
                    self.modules[name.removesuffix(".weight")] = [part[0].replace("/", ".") for part in parts]

    def theirs(self, module: str) -> str:
        """As it stands in a file."""
        return PREFIX + (module.removeprefix("bert.") if self.embeds_only else module)

    def known(self, module: str) -> str | None:
        """The module of our table that a name in a file means."""
        name = module.removeprefix(PREFIX).removeprefix("base_model.")
        name = name if name in self.modules else self._standard(f"{name}.weight").removesuffix(".weight")
        return name if name in self.modules else None

    def widths(self, module: str) -> list[int]:
        return [_width(self.layers[name]) for name in self.modules[module]]


def to_peft(model: keras.Model, adapter: Adapter) -> tuple[dict, dict[str, np.ndarray]]:
    """adapter_config.json and the tensors of a `LoRA`, an `IA3` or a prompt."""
    names = Names(model)
    tensors, config = {}, {"task_type": TASK_TYPES.get(names.task), "inference_mode": True, "revision": None}
    config["base_model_name_or_path"] = None
    config["fan_in_fan_out"] = names.model_type == "gpt2"
    deltas = {(part.name, type(part.delta).__name__): part.delta for part in adapter.parts}
    whole = []
    for module, layers in names.modules.items():
        found = {name: deltas[name, "Offset"] for name in layers if (name, "Offset") in deltas}
        for attribute in ("kernel", "bias", "gamma", "beta", "scale"):
            if any(attribute in delta.attributes for delta in found.values()):
                kind = "bias" if attribute in ("bias", "beta") else "weight"
                fused = [_moved(names.layers[name], found.get(name), attribute) for name in layers]
                fused = np.concatenate(fused, axis=-1)
                transposed = attribute == "kernel" and names.model_type != "gpt2"
                tensors[f"{names.theirs(module)}.{kind}"] = fused.T if transposed else fused
        if any(delta.name.startswith("whole_") for delta in found.values()):
            whole.append(names.theirs(module).removeprefix(PREFIX))
    config["modules_to_save"] = whole or None
    write = next(write for kind, write in WRITERS.items() if isinstance(adapter.settings, kind))
    more, written = write(adapter.settings, names, deltas)
    for name in [n for n in tensors if n.removesuffix(".bias") in {w.rpartition(".lora_")[0] for w in written}]:
        tensors[name.removesuffix("bias") + "base_layer.bias"] = tensors.pop(name)
    return {**config, **more}, {**tensors, **written}


def _lora_to_peft(settings: LoRA, names: Names, deltas):
    tensors, ranks, alphas, ours = {}, {}, {}, {}
    for module, layers in names.modules.items():
        parts = [deltas.get((name, "LoRADelta")) for name in layers]
        if not any(parts):
            continue
        key, widths = names.theirs(module), names.widths(module)
        factors = [part and part.factors() for part in parts]
        ours |= {name: factor[0].shape[1] for name, factor in zip(layers, factors) if factor}
        rank = sum(factor[0].shape[1] for factor in factors if factor)
        scaling = next(part.scaling for part in parts if part)
        a = np.concatenate([factor[0] for factor in factors if factor], axis=1)
        b, row, column = np.zeros((rank, sum(widths)), "float32"), 0, 0
        for part, factor, width in zip(parts, factors, widths):
            if factor:
                size = len(factor[1])
                b[row : row + size, column : column + width] = factor[1] * (part.scaling / scaling)
                row += size
            column += width
        if isinstance(names.layers[layers[0]], keras.layers.Embedding):
            tensors[f"{key}.lora_embedding_A"], tensors[f"{key}.lora_embedding_B"] = a.T, b.T
        else:
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a.T, b.T
        if settings.dora:
            lengths = [
                numpy(part.magnitude) if part else np.linalg.norm(numpy(names.layers[name].kernel), axis=0)
                for part, name in zip(parts, layers)
            ]
            tensors[f"{key}.lora_magnitude_vector"] = np.concatenate(lengths)
        module = key.removeprefix(PREFIX)
        ranks[module], alphas[module] = rank, scaling * (math.sqrt(rank) if settings.rslora else rank)
    common, alpha = (collections.Counter(x.values()).most_common(1)[0][0] for x in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": alpha,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != common},
        "alpha_pattern": {module: each for module, each in alphas.items() if each != alpha},
        "target_modules": _short(list(ranks), names),
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "init_lora_weights": True,
        "bias": settings.bias,
        "kerasllm": {"ranks": ours},
    }
    return config, tensors


def _ia3_to_peft(settings: IA3, names: Names, deltas):
    tensors, on_input = {}, []
    for module, layers in names.modules.items():
        parts = [deltas.get((name, "IA3Delta")) for name in layers]
        if not any(parts):
            continue
        key = names.theirs(module)
        if any(part and part.on_input for part in parts):
            if len(parts) > 1:
                raise ValueError(f"{key!r} is one module in this format: its input cannot be multiplied for a part.")
            on_input.append(key.removeprefix(PREFIX))
            tensors[f"{key}.ia3_l"] = numpy(parts[0].factor)[None, :]
            continue
        vectors = [numpy(p.factor) if p else np.ones(w, "float32") for p, w in zip(parts, names.widths(module))]
        tensors[f"{key}.ia3_l"] = np.concatenate(vectors)[:, None]
    modules = [name.removeprefix(PREFIX).removesuffix(".ia3_l") for name in tensors]
    config = {"target_modules": _short(modules, names), "feedforward_modules": _short(on_input, names)}
    ours = sorted(name for name, kind in deltas if kind == "IA3Delta")
    return {"peft_type": "IA3", "init_ia3_weights": True, **config, "kerasllm": {"targets": ours}}, tensors


def _prompt_to_peft(settings: PromptTuning, names: Names, deltas):
    (delta,) = (delta for delta in deltas.values() if isinstance(delta, PromptDelta))
    c = delta.site.layer.config
    # Only a prefix is for the decoder of two; they take it to be of both when it is.
    parts = 2 if c.num_encoder_layers and isinstance(delta, PrefixDelta) else 1
    config = {"num_virtual_tokens": settings.num_tokens, "num_transformer_submodules": parts}
    config["num_layers"] = c.num_layers
    if isinstance(delta, PrefixDelta):
        # A head's size is theirs divided; with fewer heads for keys, both shrink.
        heads = {"token_dim": c.num_kv_heads * c.head_dim, "num_attention_heads": c.num_kv_heads}
        return {"peft_type": "PREFIX_TUNING", "prefix_projection": False, **config, **heads}, {
            PROMPT: numpy(delta.prefix)
        }
    config |= {"token_dim": c.hidden_dim, "num_attention_heads": c.num_heads}
    return {"peft_type": "PROMPT_TUNING", **config}, {PROMPT: numpy(delta.vectors())}


WRITERS = {LoRA: _lora_to_peft, IA3: _ia3_to_peft, PromptTuning: _prompt_to_peft}


def from_peft(model: keras.Model, config: dict, tensors: dict[str, np.ndarray]) -> tuple[Settings, Values]:
    """The settings and weights that an adapter_config.json and its tensors mean for this model.

    Raises:
        ValueError: a module that the model lacks, a shape that does not fit, or an option that is not supported.
    """
    for key, value in UNSUPPORTED.items():
        if config.get(key, value) not in (value, []):
            raise ValueError(f"This adapter is not supported: its config says {key}={config[key]!r}.")
    names = Names(model)
    modules: dict[str, dict[str, np.ndarray]] = {}
    prompt = tensors.pop(PROMPT, None)
    for name, tensor in tensors.items():
        module, kind = _parsed(name)
        if ".original_module" in name:  # Some files carry the head as it was, too.
            continue
        known = names.known(module)
        if known is None or (kind != "bias" and not all(part in names.layers for part in names.modules[known])):
            raise ValueError(f"The adapter has {name!r}, which is no layer of this {type(model).__name__}.")
        modules.setdefault(known, {})[kind] = tensor
    if prompt is not None:
        settings, values = _prompt_from_peft(config, prompt, _whole(names, modules))
    else:
        settings, values = {"LORA": _lora_from_peft, "IA3": _ia3_from_peft}[config["peft_type"]](config, names, modules)
    return settings, values | _whole_values(names, modules)


def _parsed(name: str) -> tuple[str, str]:
    """(module, kind) of a tensor's name."""
    name = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
    for kind in ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"):
        if name.endswith(f".{kind}"):
            return name.removesuffix(f".{kind}"), kind.removesuffix(".weight").replace("embedding_", "")
    module, _, kind = name.rpartition(".")
    if kind not in ("ia3_l", "weight", "bias"):
        raise ValueError(f"The adapter has {name!r}, which no supported kind of adapter has.")
    return module, kind


def _lora_from_peft(config: dict, names: Names, modules):
    values, ranks, alphas = {}, {}, {}
    recorded = (config.get("kerasllm") or {}).get("ranks") or {}
    rslora, dora = bool(config.get("use_rslora")), bool(config.get("use_dora"))
    for module, found in modules.items():
        if not {"lora_A", "lora_B"} & set(found):
            continue
        layers, widths = names.modules[module], names.widths(module)
        if not {"lora_A", "lora_B"} <= set(found) or (dora and "lora_magnitude_vector" not in found):
            raise ValueError(f"The adapter lacks a factor of {module!r}. It has: {', '.join(found)}")
        a, b = found["lora_A"].T, found["lora_B"].T
        rank = a.shape[1]
        if b.shape != (rank, sum(widths)):
            raise ValueError(
                f"The factors of {module!r} do not fit the model: A is {a.shape[::-1]}, B is {b.shape[::-1]}, and the "
                f"layer makes {sum(widths)} numbers."
            )
        alpha = _pattern(config.get("alpha_pattern"), module, names, config.get("lora_alpha", 8))
        scaling = alpha / (math.sqrt(rank) if rslora else rank)
        row = column = 0
        for name, width in zip(layers, widths):
            columns = slice(column, column + width)
            column += width
            if recorded and name not in recorded:
                continue
            size = recorded.get(name, rank)
            rows = slice(row, row + size) if recorded else slice(None)
            row += size
            values[name, "lora", "lora_a"], values[name, "lora", "lora_b"] = a[:, rows], b[rows, columns]
            if dora:
                values[name, "lora", "magnitude"] = found["lora_magnitude_vector"].reshape(-1)[columns]
            ranks[name], alphas[name] = size, scaling * (math.sqrt(size) if rslora else size)
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


def _ia3_from_peft(config: dict, names: Names, modules):
    values, on_input = {}, []
    recorded = (config.get("kerasllm") or {}).get("targets")
    for module, found in modules.items():
        if "ia3_l" not in found:
            continue
        vector, layers, widths = found["ia3_l"], names.modules[module], names.widths(module)
        if vector.shape[0] == 1:
            on_input += layers
            values |= {(name, "ia3", "factor"): vector.reshape(-1) for name in layers}
            continue
        if vector.size != sum(widths):
            raise ValueError(f"The vector of {module!r} has {vector.size} numbers, and the layer makes {sum(widths)}.")
        parts = np.split(vector.reshape(-1), np.cumsum(widths)[:-1])
        kept = [(n, v) for n, v in zip(layers, parts) if recorded is None or n in recorded]
        values |= {(name, "ia3", "factor"): part for name, part in kept}
    targets = tuple(name for name, _, _ in values)
    return IA3(targets=targets, also_train=_whole(names, modules), on_input=tuple(on_input)), values


def _prompt_from_peft(config: dict, prompt: np.ndarray, whole: tuple[str, ...]):
    prefix = config["peft_type"] == "PREFIX_TUNING"
    method = PrefixTuning if prefix else PromptTuning
    # With an encoder, a file has vectors for two stacks, of which only the encoder's are read.
    prompt = prompt[: config.get("num_virtual_tokens", len(prompt))]
    settings = method(num_tokens=prompt.shape[0], also_train=whole or None)
    return settings, {("transformer", "prompt", "prefix" if prefix else "prompt"): prompt}


def _whole(names: Names, modules) -> tuple[str, ...]:
    """The layers of which a file has the whole kernel, or gains."""
    return tuple(layer for module, found in modules.items() if "weight" in found for layer in names.modules[module])


def _whole_values(names: Names, modules) -> Values:
    """Weights that the file has as they are, as what is added to the base's."""
    values = {}
    for module, found in modules.items():
        for kind in {"weight", "bias"} & set(found):
            column = 0
            for name in names.modules[module]:
                layer = names.layers[name]
                attribute = _attribute(layer, kind)
                base, tensor = numpy(getattr(layer, attribute)), found[kind]
                tensor = tensor.T if attribute == "kernel" and names.model_type != "gpt2" else tensor
                width = base.shape[-1]
                part = tensor[..., column : column + width]
                if part.shape != base.shape:
                    raise ValueError(f"{module}.{kind} in the adapter is {found[kind].shape}, and does not fit.")
                column += width
                where = "whole" if "weight" in found else "bias"
                if (part != base).any():
                    values[name, where, f"{attribute}_offset"] = part - base
    return values


def _attribute(layer, kind: str) -> str:
    choices = ("bias", "beta") if kind == "bias" else ("kernel", "embeddings", "gamma", "scale")
    return next(name for name in choices if getattr(layer, name, None) is not None)


def _moved(layer, delta, attribute: str) -> np.ndarray:
    """A weight of the base, with what a delta adds to it."""
    base = numpy(getattr(layer, attribute))
    return base if delta is None or attribute not in delta.attributes else base + delta.offsets()[attribute]


def _short(modules: list[str], names: Names) -> list[str]:
    """The last parts of module names, where they mean the same modules; else the whole names."""
    ends = sorted({module.split(".")[-1] for module in modules})
    every = [names.theirs(module).removeprefix(PREFIX) for module in names.modules]
    meant = {module for module in every if module.split(".")[-1] in ends}
    return ends if meant == set(modules) else modules


def _pattern(patterns: dict | None, module: str, names: Names, default):
    """As peft reads its patterns: of the end of a name."""
    import re

    for pattern, value in (patterns or {}).items():
        for name in (module, names.theirs(module).removeprefix(PREFIX)):
            if re.fullmatch(rf"(.*\.)?({pattern})", name):
                return value
    return default


def _one_or_all(values: dict):
    return next(iter(values.values())) if len(set(values.values())) == 1 else values


def _width(layer) -> int:
    """Numbers that a layer makes of one."""
    if isinstance(layer, keras.layers.Embedding):
        return layer.output_dim
    if isinstance(layer, keras.layers.Dense):
        return layer.units
    if isinstance(layer, keras.layers.EinsumDense):
        return Kernel(layer, layer.name).out_dim
    return next(getattr(layer, name) for name in ("gamma", "scale") if hasattr(layer, name)).shape[-1]
