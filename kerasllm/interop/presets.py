"""Hugging Face directories: what we save, transformers loads; what it saved, we load.

Reading executes nothing: JSON and safetensors only, sizes and shapes checked before a weight is allocated.
"""

import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np

from kerasllm.config import TransformerConfig
from kerasllm.files import written_aside
from kerasllm.interop import gpt2
from kerasllm.tokenizers import Tokenizer

FAMILIES = {gpt2.MODEL_TYPE: gpt2}
OWN_TYPE = "kerasllm"
MAX_JSON_BYTES = 1 << 20
FLOATS = ("F32", "F16", "BF16", "F64")


class _Own:
    """The format of configs that no family covers: our own names, our own config."""

    MODEL_TYPE = OWN_TYPE
    ARCHITECTURE = "KerasLLMForCausalLM"

    @staticmethod
    def from_hf(values):
        if not isinstance(values.get("transformer"), dict):
            raise ValueError("config.json of model_type 'kerasllm' lacks its 'transformer' section.")
        return TransformerConfig.from_dict(values["transformer"])

    @staticmethod
    def to_hf(config):
        return {"transformer": config.to_dict(), "vocab_size": config.vocabulary_size}

    @staticmethod
    def tensors(config):
        return {path.replace("/", "."): [path] for path in _shapes(config)}

    @staticmethod
    def ignored(name, config):
        return False

    @staticmethod
    def standard_name(name):
        return name


def save_to_preset(model, directory) -> None:
    """See `LanguageModel.save_to_preset`."""
    import safetensors.numpy

    family = next((f for f in FAMILIES.values() if f.covers(model.config)), _Own)
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"A file is in the way of the directory to save to: {str(directory)!r}")
    variables = variables_by_path(model)
    weights = {}
    for name, paths in family.tensors(model.config).items():
        parts = [_array(variables, path) for path in paths]
        weights[name] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    weights = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    end = model.tokenizer.end_token_id if model.tokenizer else None
    start = model.tokenizer.start_token_id if model.tokenizer else None
    tokens = {"bos_token_id": end if start is None else start, "eos_token_id": end}
    config = {
        "architectures": [family.ARCHITECTURE],
        "model_type": family.MODEL_TYPE,
        "dtype": keras.backend.standardize_dtype(model.variable_dtype),
        **tokens,
        **family.to_hf(model.config),
    }
    # All files are written and on the disk before the first takes its place: what can fail comes first.
    shutil.rmtree(directory / ".preset", ignore_errors=True)  # What a killed save may have left.
    with written_aside(directory / ".preset") as aside:
        aside.mkdir(parents=True)
        safetensors.numpy.save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
        if model.tokenizer is not None:
            model.tokenizer.save_to_preset(aside)
        for name, content in (("generation_config.json", tokens), ("config.json", config)):
            (aside / name).write_text(json.dumps(content, indent=2) + "\n")
    for path in (directory / ".preset").iterdir():
        os.replace(path, directory / path.name)
    (directory / ".preset").rmdir()


def load_preset(cls, directory, dtype=None):
    """See `LanguageModel.from_preset`."""
    from safetensors import SafetensorError, safe_open

    directory = Path(directory)
    family, config = read_config(directory)
    path = directory / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{str(directory)!r} has no model.safetensors. Pickled weights (.bin) are never read.")
    try:
        with safe_open(path, framework="numpy") as file:
            names = _checked_names(file, family, config, path)
            tokenizer = Tokenizer.from_preset(directory) if (directory / "tokenizer.json").is_file() else None
            model = cls(config, tokenizer=tokenizer, dtype=dtype)
            variables = variables_by_path(model)
            for name, paths in family.tensors(config).items():
                _assign(variables, paths, file.get_tensor(names[name]))
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged or not a safetensors file: {error}") from None
    return model


def read_config(directory) -> tuple[object, TransformerConfig]:
    """(family, config) of a directory, from its config.json alone.

    Raises:
        FileNotFoundError, ValueError: what is missing or not supported.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{os.fspath(directory)!r} is no model directory: it has no config.json.")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{str(path)!r} is larger than {MAX_JSON_BYTES} bytes, which no config is.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} holds no JSON object.")
    kind = values.get("model_type")
    families = {**FAMILIES, OWN_TYPE: _Own}
    if not isinstance(kind, str) or kind not in families:
        raise ValueError(f"Unknown model_type {kind!r} in {str(path)!r}. Supported: {', '.join(families)}")
    return families[kind], families[kind].from_hf(values)


def variables_by_path(model) -> dict[str, keras.Variable]:
    """The transformer's weights under their paths, such as "block_0/attention/query/kernel"."""
    return {v.path.split("transformer/", 1)[1]: v for v in model.transformer.weights}


def _checked_names(file, family, config, path) -> dict[str, str]:
    """The file's own name of each tensor in the family's table, once all shapes agree with the config."""
    names = {family.standard_name(name): name for name in file.keys()}  # noqa: SIM118 (not a dict)
    shapes = _shapes(config)
    table = family.tensors(config)
    missing = [name for name in table if name not in names]
    extra = [n for n in names if n not in table and not family.ignored(n, config)]
    if missing or extra:
        what = f"lacks {_some(missing)}" if missing else f"has tensors the config knows nothing of: {_some(extra)}"
        raise ValueError(f"{str(path)!r} {what}.")
    for name, paths in table.items():
        tensor = file.get_slice(names[name])
        if tensor.get_dtype() not in FLOATS:
            raise ValueError(f"{name!r} in {str(path)!r} is {tensor.get_dtype()}, and weights are {', '.join(FLOATS)}.")
        found = tuple(tensor.get_shape())
        parts = [shapes[p.removesuffix(".T")] for p in paths]
        expected = (*parts[0][:-1], sum(part[-1] for part in parts))
        expected = expected[::-1] if paths[0].endswith(".T") else expected
        if found != expected:
            raise ValueError(f"{name!r} in {str(path)!r} has shape {found}, and config.json says {expected}.")
    return names


def _shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, under its path, from the config alone."""
    d, f = config.hidden_dim, config.intermediate_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {"embedding/tokens/embeddings": (config.vocabulary_size, d)}
    if not config.tie_embeddings:
        shapes["embedding/tokens/reverse_embeddings"] = (d, config.vocabulary_size)
    if config.positions == "learned":
        shapes["embedding/positions/embeddings"] = (config.max_sequence_length, d)
    norms = ["final_norm"] if config.norm_position == "pre" else []
    for i in range(config.num_layers):
        dense = {
            "attention/query": (d, q),
            "attention/key": (d, kv),
            "attention/value": (d, kv),
            "attention/output_dense": (q, d),
            "feed_forward/up": (d, f),
            "feed_forward/down": (f, d),
        }
        if config.gated:
            dense["feed_forward/gate"] = (d, f)
        for name, shape in dense.items():
            shapes[f"block_{i}/{name}/kernel"] = shape
            if config.use_bias:
                shapes[f"block_{i}/{name}/bias"] = shape[-1:]
        norms += [f"block_{i}/attention_norm", f"block_{i}/feed_forward_norm"]
    for name in norms:
        shapes[f"{name}/{'scale' if config.norm == 'rms_norm' else 'gamma'}"] = (d,)
        if config.norm == "layer_norm" and config.use_bias:
            shapes[f"{name}/beta"] = (d,)
    return shapes


def _array(variables, path) -> np.ndarray:
    value = keras.ops.convert_to_numpy(variables[path.removesuffix(".T")].value)
    return value.T if path.endswith(".T") else value


def _assign(variables, paths, tensor) -> None:
    if paths[0].endswith(".T"):
        tensor = tensor.T
    start = 0
    for path in paths:
        variable = variables[path.removesuffix(".T")]
        stop = start + variable.shape[-1]
        variable.assign(tensor[..., start:stop])
        start = stop


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
