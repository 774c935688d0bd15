"""Hugging Face directories: what we save, transformers loads; what it saved, we load.

Reading executes nothing: JSON and safetensors only, sizes and shapes checked before a weight is allocated.
"""

import json
import math
import warnings
from pathlib import Path

import keras
import numpy as np

from kerasllm.compression.fake_quantization import aware_layers
from kerasllm.compression.quantized_files import KEY as QUANTIZATION
from kerasllm.compression.quantized_files import describe, give_up, make_shells, read_section, stored_variables
from kerasllm.config import TransformerConfig
from kerasllm.files import check_together, written_together
from kerasllm.generation.defaults import READ, SPECIAL, check_config, config_of
from kerasllm.interop import bert, electra, gpt2, llama, own, t5
from kerasllm.interop.family import Family, Table, check_common
from kerasllm.interop.sentence_files import model_directory, read_sentence_options, write_sentence_files
from kerasllm.interop.shapes import Shapes, head_shapes, weight_shapes
from kerasllm.interop.structure import keras_lora
from kerasllm.interop.tasks import (
    LABELLING,
    OWN_KEY,
    READERS,
    TASKS,
    check_task,
    count_labels,
    read_cache_dtype,
    read_options,
    task_of,
    write_options,
)
from kerasllm.interop.tokenizer_files import tokenizer_of_directory
from kerasllm.interop.weight_files import (
    DTYPES,
    INTEGERS,
    Tensor,
    find_tensors,
    fresh_copy,
    read_json,
    stale_files,
    write_tensors,
)
from kerasllm.tokenizers import CHAT_TEMPLATE_FILE
from kerasllm.tuning.model_adapters import state_of

FAMILIES = {module.FAMILY.model_type: module.FAMILY for module in (gpt2, bert, electra, t5, llama, own)}
MARK = ".preset"  # the folder of a save that has not ended
MAX_JSON_BYTES = 1 << 20
HALVES = {"BF16": "bfloat16", "F16": "float16"}


def save_to_preset(model, directory, max_shard_bytes: int = 5_000_000_000) -> None:
    """See `LanguageModel.save_to_preset`."""
    check_saves_what_it_computes(model)
    task, family = task_of(type(model)), family_for(model)
    quantization = describe(model)
    directory = Path(directory)
    variables, changed = _weights(model), keras_lora(model)
    table = {**family.tensors(model.config), **head_table(family, task, model.config, model.get_config())}
    if quantization:
        variables = stored_variables(model, [path for paths in table.values() for path in paths])
        table = {path.replace("/", "."): [path] for path in variables}
    sizes = {name: sum(_num_bytes(variables[_plain(path)]) for path in paths) for name, paths in table.items()}
    tokens = _special_tokens(model)
    config = {
        "architectures": [family.architectures[task]],
        "model_type": family.model_type,
        "dtype": keras.backend.standardize_dtype(model.variable_dtype),
        **tokens,
        **family.to_hf(model.config),
        **write_options(model),
        **({QUANTIZATION: quantization} if quantization else {}),
    }
    started = {key: config[key] for key in ("decoder_start_token_id",) if key in config}
    generation = {**model.generation_config, **tokens, **started}

    def stale(written):
        # The tokenizer's config has the chat template; an earlier file would win over it.
        template = [] if model.tokenizer is None else [directory / CHAT_TEMPLATE_FILE]
        return [*stale_files(directory, written), *template]

    # All files are written and on the disk before the first takes its place: what can fail comes first.
    with written_together(directory, MARK, stale) as aside:
        write_tensors(aside, sizes, lambda name: _joined(variables, table[name], changed), max_shard_bytes)
        if model.tokenizer is not None:
            model.tokenizer.save_to_preset(aside)
        if task == "TextEmbedder" and not quantization and family is not own.FAMILY:
            write_sentence_files(model, aside)
        for name, content in (("generation_config.json", generation), ("config.json", config)):
            (aside / name).write_text(json.dumps(content, indent=2) + "\n")


def check_saves_what_it_computes(model) -> None:
    """Raises a ValueError if the weights of a preset, which has one of each, would answer otherwise than the model."""
    state = state_of(model)
    if state is not None and not state.computes_base:
        raise ValueError(
            f"A preset has one set of weights, and the adapters {', '.join(state.active)} are beside them. Save them "
            "with save_adapter(directory, name), or merge() first; inside `with model.disable_adapter():` the base "
            "alone is saved, and save(path) to a .keras file keeps all together."
        )
    rounded = next(iter(aware_layers(model)), None)
    if rounded is not None:
        raise ValueError(
            f"The model computes with rounded weights ({rounded!r} and others), and a preset has them as they are. "
            "Call quantize(...) with the arguments of `quantization_aware` first, or quantization_unaware(model)."
        )
    for path, layer in keras_lora(model).items():
        if layer.quantization_mode:
            raise ValueError(
                f"{path!r} is quantized and has a LoRA of Keras's own, which cannot be added to it. Use "
                "model.add_adapter(name, LoRA(...)), which save_adapter saves."
            )


def family_for(model) -> Family:
    """The format that a model is saved in: that of transformers, if it has such models; else our own."""
    if describe(model):
        return own.FAMILY
    task = task_of(type(model))
    return next((family for family in FAMILIES.values() if family.covers(model, task)), own.FAMILY)


def load_preset(cls, directory, dtype=None, **options):
    """See `LanguageModel.from_preset`."""
    directory, task = Path(directory), task_of(cls)
    if task == "TextEmbedder":
        whole, directory = directory, model_directory(directory)
    values = _read_values(directory)
    family = _family_of(values, directory)
    if family is not own.FAMILY:
        check_common(values)
    architecture = (values.get("architectures") or [family.model_type])[0]
    other_head = architecture in family.architectures.values() and architecture != family.architectures.get(task)
    if task in LABELLING and other_head:
        values.pop("id2label", None)
    config = family.from_hf(values)
    check_task(task, config, architecture, directory)
    tensors = {family.standard_name(name): tensor for name, tensor in find_tensors(directory).items()}
    config, tensors = family.settle(config, tensors, task)
    config = family.refine(config, tensors, task)
    tokenizer = tokenizer_of_directory(directory)
    usual = dict(family.options.get(task, {}))
    if family is not own.FAMILY and architecture == family.architectures.get(task) and task in READERS:
        usual["add_special_tokens"] = OWN_KEY not in values  # As transformers reads texts.
    if task == "TextEmbedder":
        options = {**read_sentence_options(whole, tokenizer, options), **options}
    options, cache_dtype = read_options(values, cls, options, usual), read_cache_dtype(values)
    head = head_table(family, task, config, options)
    if task in LABELLING and other_head:  # The head of another task may go by the same name.
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    generation = _read_generation(directory, values)
    check_config(generation, directory / "generation_config.json")
    if "start_token_id" in options:  # which says the same
        generation.pop("decoder_start_token_id", None)
    options.setdefault("generation_config", generation)

    if QUANTIZATION in values:
        options = {**options, "tokenizer": tokenizer}
        model = _load_quantized(cls, directory, values[QUANTIZATION], config, tensors, dtype, options)
        model.cache_dtype = cache_dtype
        return model
    table = {**family.tensors(config), **head}
    fresh = _check_names(table, tensors, family, config, directory)
    table = {name: paths for name, paths in table.items() if name not in fresh}
    shapes = {**weight_shapes(config), **head_shapes(task, config, count_labels(options))}
    sources = {}
    for name, paths in table.items():
        _check_tensor(name, tensors[name], paths, shapes)
        sources |= {_plain(path): _source(tensors[name], paths, path, shapes) for path in paths}
    _warn_of(fresh, architecture, task, directory)
    if task == "CausalLM" and architecture in {family.architectures.get(reader) for reader in READERS}:
        warnings.warn(
            f"{str(directory)!r} holds a {architecture}, which has no head: its token embedding is taken for the "
            "CausalLM's.",
            stacklevel=3,
        )
    dtype = dtype or _dtype_of(tensors[name] for name in table)
    model = _filled(lambda: cls(config, tokenizer=tokenizer, dtype=dtype, **options), sources)
    model.cache_dtype = cache_dtype
    return model


def _load_quantized(cls, directory: Path, section, config, tensors, dtype, options):
    """A model that was quantized when it was saved: its float weights never exist."""
    schemes = read_section(section)
    dtype = dtype or _dtype_of(tensor for tensor in tensors.values() if tensor.dtype in DTYPES)
    sources = {name.replace(".", "/"): lambda t=tensor: fresh_copy(t.read()) for name, tensor in tensors.items()}

    def make():
        model = cls(config, dtype=dtype, **options)
        try:
            make_shells(model, schemes, own.FRESH)
            _check_quantized(model, tensors, directory)
        except ValueError:
            give_up(model)
            raise
        return model

    return _filled(make, sources)


def _check_quantized(model, tensors, directory: Path) -> None:
    """The file has the weights that the model has, in their shapes and types; heads of other tasks may be missing."""
    expected = {path.replace("/", "."): variable for path, variable in variables_by_path(model).items()}
    fresh = [s for s in own.FRESH if not any(name.startswith(s) for name in tensors)]
    missing = [name for name in expected if name not in tensors]
    lacking = [name for name in missing if not name.startswith(tuple(fresh))]
    if lacking:
        raise ValueError(f"{str(directory)!r} lacks {_some(lacking)}.")
    extra = [name for name in tensors if name not in expected and not name.startswith(own.FRESH)]
    if extra:
        raise ValueError(f"{str(directory)!r} has tensors the config knows nothing of: {_some(extra)}.")
    for name, variable in expected.items():
        tensor, is_whole = tensors.get(name), "int" in variable.dtype
        if tensor is None:
            continue
        dtypes = [key for key, kind in INTEGERS.items() if kind == variable.dtype] if is_whole else [*DTYPES]
        if tensor.dtype not in dtypes or tensor.shape != tuple(variable.shape):
            raise ValueError(
                f"{name!r} in {str(tensor.path)!r} is {tensor.dtype} {tensor.shape}, and config.json says "
                f"{' or '.join(dtypes)} {tuple(variable.shape)}."
            )
    _warn_of(missing, "quantized model", task_of(type(model)), directory)


def _warn_of(fresh: list[str], architecture: str, task: str, directory: Path) -> None:
    if fresh:
        warnings.warn(
            f"{str(directory)!r} holds a {architecture}, which lacks {_some(fresh)}: these weights of the {task} start "
            "new, and are to be trained.",
            stacklevel=4,
        )


def _dtype_of(tensors) -> str | None:
    """The dtype policy of a model whose weights are all of one half-size type."""
    dtypes = {tensor.dtype for tensor in tensors}
    return HALVES.get(*dtypes) if len(dtypes) == 1 else None


def read_config(directory) -> tuple[Family, TransformerConfig]:
    """(family, config) of a directory, from its config.json alone.

    Raises:
        FileNotFoundError, ValueError: what is missing or not supported.
    """
    directory = Path(directory)
    values = _read_values(directory)
    family = _family_of(values, directory)
    return family, family.from_hf(values)


def stored_weights(model, directory: Path) -> dict[str, np.ndarray]:
    """A directory's tensors as maps of its files, under the paths of a model's weights that they would be read into.

    Raises:
        FileNotFoundError, ValueError, KeyError: the directory is not one of such a model.
    """
    task, family = task_of(type(model)), _family_of(_read_values(directory), directory)
    tensors = {family.standard_name(name): tensor for name, tensor in find_tensors(directory).items()}
    variables, stored = variables_by_path(model), {}
    config = model.transformer.config
    for name, paths in {**family.tensors(config), **head_table(family, task, config, model.get_config())}.items():
        start = 0
        for path in paths if name in tensors else ():
            mapped, variable = tensors[name].read(), variables[_plain(path)]
            part = mapped.T if path.endswith(".T") else mapped[..., start : start + variable.shape[-1]]
            start += variable.shape[-1]
            stored[variable.path] = part
    return stored


def variables_by_path(model) -> dict[str, keras.Variable]:
    """The weights under their paths, such as "block_0/attention/query/kernel" or "masked_head/bias"; those of the
    transformer without its name.

    Raises:
        ValueError: a layer has a LoRA of Keras's own, so that its kernel is not what it computes with.
    """
    changed = next(iter(keras_lora(model)), None)
    if changed is not None:
        raise ValueError(
            f"{changed!r} has a LoRA of Keras's own beside it. Save with save_to_preset, which adds it to the weights, "
            "and load that."
        )
    return _weights(model)


def _weights(model) -> dict[str, keras.Variable]:
    return {v.path.removeprefix("transformer/"): v for v in model.weights}


def _read_values(directory: Path) -> dict:
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{str(directory)!r} is no model directory: it has no config.json.")
    check_together(directory, MARK)
    values = read_json(path, MAX_JSON_BYTES)
    architectures = values.get("architectures")
    if architectures is not None and not (isinstance(architectures, list) and all(map(_is_text, architectures))):
        raise ValueError(f"architectures in {str(path)!r} must be a list of names. Received: {architectures!r}")
    if "decoder_start_token_id" not in values:  # transformers 5 keeps it in the other file.
        values["decoder_start_token_id"] = _read_generation(directory, values).get("decoder_start_token_id")
    return values


def _read_generation(directory: Path, values: dict) -> dict:
    """generation_config.json, or its keys in config.json where old directories have them; with the special tokens."""
    path = directory / "generation_config.json"
    if not path.is_file():
        return {key: value for key, value in values.items() if key in READ and value is not None}
    tokens = {key: values[key] for key in SPECIAL if values.get(key) is not None}
    return {**tokens, **{key: value for key, value in read_json(path, MAX_JSON_BYTES).items() if value is not None}}


def _family_of(values: dict, directory: Path) -> Family:
    kind = values.get("model_type")
    if not _is_text(kind) or kind not in FAMILIES:
        path = str(directory / "config.json")
        raise ValueError(f"Unknown model_type {kind!r} in {path!r}. Supported: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def head_table(family: Family, task: str, config: TransformerConfig, options: dict) -> Table:
    """The tensors of what a task, made with these options, has beside the transformer."""
    table = family.heads(task, config)
    return own.head(task, config, options) if table is None else table


def _check_names(table: Table, tensors, family: Family, config: TransformerConfig, directory) -> list[str]:
    """The tensors that start new because the file has none of their kind; raises for others, and for unknown ones."""
    missing = [name for name in table if name not in tensors]
    starts = (*family.fresh, *own.FAMILY.fresh)
    fresh = [s for s in starts if all(name in missing for name in table if name.startswith(s))]
    lacking = [name for name in missing if not name.startswith(tuple(fresh))]
    if lacking:
        raise ValueError(f"{str(directory)!r} lacks {_some(lacking)}.")
    heads = {name for task in TASKS for name in head_table(family, task, config, {})}
    extra = [n for n in tensors if n not in table and n not in heads and not family.ignored(n, config)]
    if extra:
        raise ValueError(f"{str(directory)!r} has tensors the config knows nothing of: {_some(extra)}.")
    return missing


def _check_tensor(name: str, tensor: Tensor, paths: list[str], shapes: Shapes) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name!r} in {str(tensor.path)!r} is {tensor.dtype}, and weights are {', '.join(DTYPES)}.")
    parts = [shapes[_plain(path)] for path in paths]
    if len({(path.endswith(".T"), part[:-1]) for path, part in zip(paths, parts)}) > 1:
        raise ValueError(f"Weights of {name!r} cannot lie side by side. Received: {', '.join(paths)}")
    expected = (*parts[0][:-1], sum(part[-1] for part in parts))
    expected = expected[::-1] if paths[0].endswith(".T") else expected
    if tensor.shape != expected:
        raise ValueError(f"{name!r} in {str(tensor.path)!r} has shape {tensor.shape}, and config.json says {expected}.")


def _source(tensor: Tensor, paths: list[str], path: str, shapes: Shapes):
    """A function that reads a weight from its part of a tensor."""
    start = sum(shapes[_plain(each)][-1] for each in paths[: paths.index(path)])
    stop = start + shapes[_plain(path)][-1]

    def read() -> np.ndarray:
        mapped = tensor.read()
        return fresh_copy((mapped.T if path.endswith(".T") else mapped)[..., start:stop])

    return read


def _filled(make, sources):
    """The model that `make` makes, with these weights in place of initial ones, which are never allocated."""
    if keras.distribution.distribution() is not None:  # Keras lays out initial weights in ways of its own.
        model = make()
        for path, variable in variables_by_path(model).items():
            if path in sources:
                variable.assign(sources[path]())
        return model
    with keras.StatelessScope():  # Variables made in it are initialized when it ends, one after the other.
        model = make()
        for path, variable in variables_by_path(model).items():
            if path in sources:
                variable._initializer = _FromFile(sources[path])
    if keras.backend.backend() == "torch":
        for module in model.modules():
            getattr(module, "torch_params", None)  # In the scope no layer told PyTorch of its parameters.
    return model


class _FromFile(keras.initializers.Initializer):
    """An initializer that reads a weight."""

    def __init__(self, read):
        self.read = read

    def __call__(self, shape, dtype=None):
        return keras.ops.convert_to_tensor(self.read(), dtype=dtype)


def _joined(variables, paths: list[str], changed) -> np.ndarray:
    parts = [_value(variables[_plain(path)], changed) for path in paths]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    return joined.T if paths[0].endswith(".T") else joined


def _value(variable, changed) -> np.ndarray:
    """A weight; with what a LoRA of Keras's own adds to it, which that layer's property has."""
    layer = changed.get(variable.path)
    if layer is None:
        return keras.ops.convert_to_numpy(variable.value)
    with_lora = layer.embeddings if isinstance(layer, keras.layers.Embedding) else layer.kernel
    return keras.ops.convert_to_numpy(keras.ops.cast(with_lora, variable.dtype))


def _special_tokens(model) -> dict[str, int | list[int] | None]:
    """The special tokens: as generation_config.json had them, else as the tokenizer has them."""
    tokenizer, read = model.tokenizer, config_of(model)
    end = tokenizer.end_token_id if tokenizer else None
    start = tokenizer.start_token_id if tokenizer else None
    pad = tokenizer.pad_token_id if tokenizer else None
    tokens = {"bos_token_id": end if start is None else start, "eos_token_id": end}
    tokens = tokens if pad is None else {**tokens, "pad_token_id": pad}
    return {**tokens, **{key: read[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in read}}


def _num_bytes(variable) -> int:
    return math.prod(variable.shape) * np.dtype(variable.dtype).itemsize


def _plain(path: str) -> str:
    return path.removesuffix(".T")


def _is_text(value) -> bool:
    return isinstance(value, str)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
