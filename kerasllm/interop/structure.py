"""What was done to a model after it was made: adapters, quantization, frozen layers …, as JSON holds it.

Keras's files make a model by its constructor's arguments and then read weights into it. Those of ours have this beside
the arguments, so that what the weights belong to is there when they are read.
"""

import dataclasses
import json

import keras
import numpy as np

from kerasllm.compression.fake_quantization import aware_layers, make_aware
from kerasllm.compression.pruning import Zeros
from kerasllm.compression.quantized_files import describe as describe_quantization
from kerasllm.compression.quantized_files import quick_collections, read_section, section_of
from kerasllm.compression.schemes import make_shell, quantizable_layers
from kerasllm.tuning.files import METHODS
from kerasllm.tuning.forgetting import describe_anchor, restore_anchor
from kerasllm.tuning.freezing import keep_frozen, kept_frozen
from kerasllm.tuning.model_adapters import add_adapter, state_of, train_adapter
from kerasllm.tuning.settings import Settings
from kerasllm.tuning.targets import named_layers


def describe(model) -> dict:
    """What `restore` does to a model that was made with the same arguments, which then has the same variables.

    Merged adapters are left out: the weights have what they do.
    """
    found = {
        "quantization": describe_quantization(model),
        "rounded": section_of({name: layer.scheme for name, layer in aware_layers(model).items()}),
        "zeros": list(zeros_of(model)),
        "adapters": _describe_adapters(model),
        "anchor": describe_anchor(model),
        "kept_frozen": [variable.path for variable in kept_frozen(model)],
        "cache_dtype": model.cache_dtype,
    }
    return {"frozen": _frozen(model), **{name: value for name, value in found.items() if value}}


def restore(model, structure: dict) -> None:
    """Does to a new model what was done to the one that was described.

    Raises:
        ValueError: it is of another model, or of no adapters that there are.
    """
    model.cache_dtype = structure.get("cache_dtype")
    _restore_quantization(model, structure)
    layers = named_layers(model, (keras.layers.Dense,))
    for name in structure.get("zeros", ()):
        layers[name]._kernel.constraint = Zeros(np.ones(layers[name]._kernel.shape, "bool"), known=False)
    kept = set(structure.get("kept_frozen", ()))
    keep_frozen(model, [variable for variable in model.weights if variable.path in kept])
    if "adapters" in structure:
        _restore_adapters(model, structure["adapters"])
    if "anchor" in structure:
        restore_anchor(model, structure["anchor"])
    _train(model, {variable.path for variable in model.weights} - set(structure["frozen"]))


def weights_belong_to(structure: dict) -> dict:
    """The part of a model's structure that its weights mean nothing without."""
    found = {name: structure[name] for name in ("quantization", "rounded") if name in structure}
    settings = structure.get("adapters", {}).get("settings", {})
    if settings:
        found["adapters"] = {
            name: {key: value for key, value in values.items() if key != "seed"} for name, values in settings.items()
        }
        found["fingerprint"] = structure["adapters"]["fingerprint"]
    return json.loads(json.dumps(found))


def weights_read(model, found: dict) -> None:
    """Notes that a model is given weights which belong to such a structure.

    Raises:
        ValueError: its own is another.
    """
    state = state_of(model)
    if state is not None and state.originals is not None:
        raise ValueError(f"Adapters are merged into the base ({', '.join(state.active)}). Call unmerge() first.")
    mine = weights_belong_to(describe(model))
    for what in ("adapters", "quantization", "rounded"):
        theirs, its = found.get(what, {}), mine.get(what, {})
        if theirs == its:
            continue
        if what == "adapters" and set(theirs) != set(its):
            theirs, its = ", ".join(theirs), ", ".join(its)
        raise ValueError(
            f"The weights belong to a model of other {NAMES[what]}. Received: {theirs or 'none'} in the file, and "
            f"{its or 'none'} in this model. Do to this one first what was done to that ({DONE_BY[what]}), or load "
            "the whole model from a .keras file."
        )
    if "adapters" in found:
        state.fingerprint = found["fingerprint"]


NAMES = {"adapters": "adapters", "quantization": "quantization", "rounded": "training for quantization"}
DONE_BY = {"adapters": "add_adapter", "quantization": "quantize", "rounded": "quantization_aware"}


def zeros_of(model) -> dict[str, Zeros]:
    """The constraints that keep pruned weights at zero, by the names of their layers."""
    kernels = {n: getattr(layer, "_kernel", None) for n, layer in named_layers(model, (keras.layers.Dense,)).items()}
    constraints = {name: getattr(kernel, "constraint", None) for name, kernel in kernels.items()}
    return {name: constraint for name, constraint in constraints.items() if isinstance(constraint, Zeros)}


def keras_lora(model) -> dict[str, keras.layers.Layer]:
    """The layers with Keras's own LoRA, `layer.enable_lora(rank)`, by the paths of the weights that it changes."""
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "lora_enabled", False)]
    return {_changed_by_lora(layer).path: layer for layer in layers}


def _changed_by_lora(layer):
    return layer._embeddings if isinstance(layer, keras.layers.Embedding) else layer._kernel


def _frozen(model) -> list[str]:
    """The paths of weights that are not trained, but for those that are frozen by what is merged when it is saved."""
    state, merged = state_of(model), set()
    if state is not None and state.originals is not None:
        merged = {variable.path for variable in state.frozen}
    merged |= set(keras_lora(model))
    return [v.path for v in model.weights if not v.trainable and v.path not in merged]


def _train(model, paths: set[str]) -> None:
    for variable in model.weights:
        if "int" not in variable.dtype:
            variable.trainable = variable.path in paths


def _describe_adapters(model) -> dict | None:
    state = state_of(model)
    if state is None or state.originals is not None:
        return None
    for name, adapter in state.all.items():
        if type(adapter.settings) is not METHODS.get(type(adapter.settings).__name__):
            raise ValueError(
                f"Only adapters of kerasllm.tuning are saved with their model. Received: {name!r}, a "
                f"{type(adapter.settings).__name__}. Use save_weights."
            )
    return {
        "settings": {name: adapter.settings.to_dict() for name, adapter in state.all.items()},
        "weights": {name: adapter.weight for name, adapter in state.all.items()},
        "factors": {name: adapter.factor for name, adapter in state.all.items()},
        "trained": state.trained,
        "fingerprint": state.fingerprint,
        "trained_before": [variable.path for variable in state.frozen],
    }


def _restore_adapters(model, described: dict) -> None:
    _train(model, set(described["trained_before"]))
    for name, values in described["settings"].items():
        add_adapter(model, name, _settings(values))
    state = state_of(model)
    if described["trained"] is not None:
        train_adapter(model, described["trained"])
    state.trained, state.fingerprint = described["trained"], described["fingerprint"]
    for name, adapter in state.all.items():
        adapter.weight, adapter.factor = described["weights"][name], described["factors"][name]
    state.open_gates()


def _settings(values: dict) -> Settings:
    values = dict(values)
    method = METHODS.get(values.pop("method", None))
    if method is None or not set(values) <= {field.name for field in dataclasses.fields(method)}:
        raise ValueError(f"Unknown settings of an adapter: {str(values)[:200]}")
    return method(**values)


def _restore_quantization(model, structure: dict) -> None:
    layers = quantizable_layers(model)
    schemes = read_section(structure.get("quantization", []))
    with quick_collections():
        for name, scheme in schemes.items():
            make_shell(layers[name], scheme)
    if schemes:
        model._post_quantize(None)
    rounded = read_section(structure.get("rounded", []))
    make_aware(model, [(layers[name], scheme) for name, scheme in rounded.items()])
