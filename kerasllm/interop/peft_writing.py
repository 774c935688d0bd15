"""Adapters in the names and shapes that `peft` saves them in: LoRA, (IA)³ and prompts.

A module of theirs may hold several layers of ours side by side, as GPT-2's fused `c_attn` does. What ours add then is
one LoRA of theirs: the factors A side by side, and the factors B on the diagonal.
"""

import collections
import math

import keras
import numpy as np

from kerasllm.interop.peft_names import PLAIN_PREFIX, PREFIX, Names
from kerasllm.tuning.delta import numpy
from kerasllm.tuning.lora import LoRA
from kerasllm.tuning.model_adapters import Adapter, base_value
from kerasllm.tuning.offset import Offset
from kerasllm.tuning.prompts import PrefixDelta, PromptDelta, PromptTuning
from kerasllm.tuning.vectors import IA3

PROMPT, TOKENS = "prompt_embeddings", "embedding.tokens"
TASK_TYPES = {
    "CausalLM": "CAUSAL_LM",
    "Seq2SeqLM": "SEQ_2_SEQ_LM",
    "TextClassifier": "SEQ_CLS",
    "TokenClassifier": "TOKEN_CLS",
    "TextEmbedder": "FEATURE_EXTRACTION",
}


def fits_peft(model: keras.Model, adapter: Adapter) -> bool:
    """Whether peft's format can say what an adapter does, and peft computes the same from it."""
    if not isinstance(adapter.settings, tuple(WRITERS)):
        return False
    is_prompt = any(isinstance(part.delta, PromptDelta) and part.delta.vectors() is not None for part in adapter.parts)
    if is_prompt and (reads_first_token(model) or any(part.name == TOKENS for part in adapter.parts)):
        return False  # Beside a prompt, peft reads the base's table.
    names = Names(model)
    held = {
        layer for module, layers in names.modules.items() if module not in names.copies.values() for layer in layers
    }
    return all(part.name in held or isinstance(part.delta, PromptDelta) for part in adapter.parts)


def reads_first_token(model: keras.Model) -> bool:
    """Whether the first position is classified: a prompt's vector in peft, and the text's own token here."""
    return getattr(model, "pooling", None) in ("first", "pooler")


def to_peft(model: keras.Model, adapter: Adapter) -> tuple[dict, dict[str, np.ndarray]]:
    """adapter_config.json and the tensors of an adapter that `fits_peft`, the same while adapters are merged."""
    names = Names(model)
    tensors, config = {}, {"task_type": TASK_TYPES.get(names.task), "inference_mode": True, "revision": None}
    deltas = {(part.name, type(part.delta).__name__): part.delta for part in adapter.parts}
    whole = []
    for module, layers in names.modules.items():
        found = {name: deltas[name, "Offset"] for name in layers if (name, "Offset") in deltas}
        for attribute in dict.fromkeys(a for delta in found.values() for a in delta.attributes):
            kind = "bias" if attribute in ("bias", "beta") else "weight"
            fused = [_moved(model, names.layers[name], found.get(name), attribute) for name in layers]
            fused = np.concatenate(fused, axis=-1)
            tensors[f"{names.theirs(module)}.{kind}"] = fused.T if names.transposed(module, attribute) else fused
        if any(delta.name.startswith("whole_") for delta in found.values()):
            whole.append(names.theirs(module).removeprefix(PREFIX))
    config["modules_to_save"] = whole or None
    if any(isinstance(delta, PromptDelta) for delta in deltas.values()):  # peft puts no module of its own around these.
        tensors = {name.replace(PREFIX, PLAIN_PREFIX, 1): tensor for name, tensor in tensors.items()}
    write = next(write for kind, write in WRITERS.items() if isinstance(adapter.settings, kind))
    more, written = write(model, adapter.settings, names, deltas)
    for name in [n for n in tensors if n.removesuffix(".bias") in {w.rpartition(".lora_")[0] for w in written}]:
        tensors[name.removesuffix("bias") + "base_layer.bias"] = tensors.pop(name)
    return {**config, **more}, {**tensors, **written}


def _lora_to_peft(model, settings: LoRA, names: Names, deltas):
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
                numpy(part.magnitude)
                if part
                else np.linalg.norm(base_value(model, names.layers[name], "kernel"), axis=0)
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
        "fan_in_fan_out": names.fan_in_fan_out,
        "bias": settings.bias,
        "kerasllm": {"ranks": ours},
    }
    return config, tensors


def _ia3_to_peft(model, settings: IA3, names: Names, deltas):
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
    config |= {"init_ia3_weights": True, "fan_in_fan_out": names.fan_in_fan_out}
    return {"peft_type": "IA3", **config, "kerasllm": {"targets": ours}}, tensors


def _prompt_to_peft(model, settings: PromptTuning, names: Names, deltas):
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


def _moved(model, layer, delta: Offset | None, attribute: str) -> np.ndarray:
    """A weight of the base, with what a delta adds to it."""
    base = base_value(model, layer, attribute)
    return base if delta is None or attribute not in delta.attributes else base + delta.offsets()[attribute]


def _short(modules: list[str], names: Names) -> list[str]:
    """The last parts of module names, where they mean the same modules; else the whole names."""
    ends = sorted({module.split(".")[-1] for module in modules})
    every = [names.theirs(module).removeprefix(PREFIX) for module in names.modules]
    meant = {module for module in every if module.split(".")[-1] in ends}
    return ends if meant == set(modules) else modules
