"""Adapters on disk: a few KB in the format of `peft`, with a fingerprint of the base they belong to."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np

from kerasllm.files import check_together, written_together
from kerasllm.interop.weight_files import DTYPES, read_json, tensors_of
from kerasllm.locks import only_writer
from kerasllm.tuning.bottleneck import Bottleneck
from kerasllm.tuning.delta import numpy
from kerasllm.tuning.fingerprint import directory_of_base, fingerprint
from kerasllm.tuning.lora import LoRA
from kerasllm.tuning.model_adapters import adapter_of, add_adapter, delete_adapter, state_of
from kerasllm.tuning.prompts import PrefixTuning, PromptTuning, PTuning
from kerasllm.tuning.vectors import IA3, BitFit, LayerNormTuning

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MARK = ".adapter"  # the folder of a save that has not ended
MAX_CONFIG_BYTES = 1 << 22
OWN_TYPE = "KERASLLM"  # of what peft has no format for
KINDS = (Bottleneck, BitFit, LayerNormTuning, LoRA, IA3, PromptTuning, PTuning, PrefixTuning)
METHODS = {method.__name__: method for method in KINDS}
PICKLED = "adapter_model.bin"


def save_adapter(model: keras.Model, directory, name: str = "default") -> None:
    """Writes one adapter, as `peft` does: adapter_config.json and adapter_model.safetensors, whole or not at all.

    `peft` opens the files of `LoRA` (with all its options), `IA3` and the prompts of a model that transformers knows,
    too. The base is not saved, but a fingerprint of it, and the directory that it was read from or saved to, if its
    weights there are still the same. The file is the same while adapters are merged. What `set_adapter` and `scale`
    set is not in it.

    Args:
        model: with the adapter.
        directory: where to; it is made if it is not there.
        name: of the adapter.

    Raises:
        ValueError: there is no such adapter.
    """
    from kerasllm.interop.peft_writing import fits_peft, to_peft

    adapter = adapter_of(model, name)
    if fits_peft(model, adapter):
        config, tensors = to_peft(model, adapter)
    else:
        config = {"peft_type": OWN_TYPE, "kerasllm": {"settings": adapter.settings.to_dict()}}
        tensors = {".".join(key): numpy(variable) for key, variable in variables_of(adapter, name).items()}
    config["base_model_name_or_path"] = directory_of_base(model)
    config["kerasllm"] = {**config.get("kerasllm", {}), "fingerprint": state_of(model).fingerprint}
    if getattr(model, "labels", None):
        config["kerasllm"]["labels"] = model.labels
    with only_writer(directory):
        _write(Path(directory), config, tensors)


def load_adapter(model: keras.Model, directory, name: str = "default") -> None:
    """Adds an adapter that `save_adapter` or `peft` saved; it is then the active one.

    Args:
        model: built, with the base that the adapter was trained on.
        directory: with adapter_config.json and adapter_model.safetensors.
        name: what it is called here.

    Raises:
        FileNotFoundError, ValueError: what is missing, damaged, of another base, or does not fit, by name. The model
            is then as it was.
    """
    directory, config = Path(directory), _config(directory)
    _check_base(model, config, directory)
    _check_labels(model, config, directory)
    settings, values = _read(model, config, _tensors(directory / WEIGHTS))
    add_adapter(model, name, settings)
    try:
        _fill(variables_of(adapter_of(model, name), name), values, is_whole=config["peft_type"] == OWN_TYPE)
    except ValueError:
        delete_adapter(model, name)
        raise


def saved_labels(directory) -> list[str] | None:
    """The names of the labels that a classifier's adapter was trained on, if it has any.

    Raises:
        FileNotFoundError, ValueError: it is no adapter's directory.
    """
    return (_config(directory).get("kerasllm") or {}).get("labels")


def _config(directory) -> dict:
    directory = Path(directory)
    check_together(directory, MARK)
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            raise FileNotFoundError(
                f"{str(directory)!r} is not an adapter's directory: it has no {file}.{_hint(directory)}"
            )
    return read_json(directory / CONFIG, MAX_CONFIG_BYTES)


def _hint(directory: Path) -> str:
    """What a directory without an adapter's files has instead."""
    if (directory / PICKLED).is_file():
        return (
            f" It has {PICKLED}, and pickled weights are never read: open it in peft and save it again "
            "(save_pretrained writes safetensors)."
        )
    inside = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    return f" Its folders have adapters: {', '.join(inside)}. Name one of them." if inside else ""


def variables_of(adapter, name: str) -> dict[tuple[str, str, str], keras.Variable]:
    """An adapter's weights by (layer, kind of delta, weight)."""
    found = {}
    for part in adapter.parts:
        kind = part.delta.name.removesuffix(f"_{name}")
        found |= {(part.name, kind, v.name): v for v in part.delta.weights if v is not adapter.gate}
    return found


def _read(model, config: dict, tensors: dict[str, np.ndarray]):
    from kerasllm.interop.peft_reading import TYPES, from_peft

    kind = config.get("peft_type")
    if kind in TYPES:
        return from_peft(model, config, tensors)
    if kind != OWN_TYPE:
        raise ValueError(
            f"Adapters of this kind are not supported: peft_type={kind!r}. Supported: {', '.join(TYPES)}. Merge others "
            "where they were trained (merge_and_unload), and open the model that is saved then."
        )
    values = dict((config.get("kerasllm") or {}).get("settings") or {})
    method = METHODS.get(values.pop("method", None))
    if method is None or not set(values) <= {field.name for field in dataclasses.fields(method)}:
        raise ValueError(f"Unknown settings in {CONFIG}: {str(config.get('kerasllm'))[:200]}")
    return method(**values), {tuple(key.rsplit(".", 2)): tensor.astype("float32") for key, tensor in tensors.items()}


def _fill(variables, values, is_whole: bool) -> None:
    """Gives an adapter its weights.

    Args:
        variables, values: by (layer, kind of delta, weight).
        is_whole: whether the file has all of them. In peft's format, nothing is added to a weight that the file has
            not, or has as the base does.
    """
    for key, value in values.items():
        if key not in variables:
            raise ValueError(f"The adapter has {'.'.join(key)!r}, which its settings know nothing of.")
        if tuple(variables[key].shape) != value.shape:
            raise ValueError(
                f"{'.'.join(key)!r} in the adapter has shape {value.shape}, and the model says "
                f"{tuple(variables[key].shape)}."
            )
    for key, variable in variables.items():
        if key in values:
            variable.assign(values[key].astype("float32"))
        elif is_whole or not key[2].endswith("_offset"):
            raise ValueError(f"The adapter lacks {'.'.join(key)!r}.")


def _check_base(model, config: dict, directory) -> None:
    saved = (config.get("kerasllm") or {}).get("fingerprint")
    state = state_of(model)
    found = fingerprint(model) if state is None else state.fingerprint
    if saved and found and saved != found:
        raise ValueError(
            f"The adapter in {str(directory)!r} was trained on another base: its fingerprint is {saved}, and this "
            f"model's is {found}. Load the base that it was trained on."
        )


def _check_labels(model, config: dict, directory) -> None:
    """The head of an adapter must mean by each number what the model does."""
    saved, found = (config.get("kerasllm") or {}).get("labels"), getattr(model, "labels", None)
    if saved and found and list(saved) != list(found):
        raise ValueError(
            f"The adapter in {str(directory)!r} was trained on the labels {', '.join(map(str, saved))}, in this order, "
            f"and this model has {', '.join(map(str, found))}. Open the model with labels={saved!r}."
        )


def _tensors(path: Path) -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in tensors_of(path).items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name!r} in {str(path)!r} is {tensor.dtype}, and weights are {', '.join(DTYPES)}.")
        found[name] = np.array(tensor.read())
    return found


def _write(directory: Path, config: dict, tensors: dict[str, np.ndarray]) -> None:
    import safetensors.numpy

    with written_together(directory, MARK) as aside:
        tensors = {key: np.ascontiguousarray(value, "float32") for key, value in tensors.items()}
        safetensors.numpy.save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
        (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
