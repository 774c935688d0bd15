"""Quantized models on disk: what config.json says of their layers, and models made with such layers from the start."""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator

import keras

from kerasllm.compression.schemes import Scheme, make_shell, quantizable_layers, scheme_of

KEY = "quantization"  # of config.json


def describe(model) -> list[dict]:
    """config.json's section: each scheme with the names of its layers; empty for a model that is not quantized."""
    schemes = {name: scheme_of(layer) for name, layer in quantizable_layers(model).items()}
    return section_of({name: scheme for name, scheme in schemes.items() if scheme is not None})


def section_of(schemes: dict[str, Scheme]) -> list[dict]:
    """Layers' schemes as config.json has them; `read_section` reads them."""
    layers = {}
    for name, scheme in schemes.items():
        layers.setdefault(scheme, []).append(name)
    return [{**dataclasses.asdict(scheme), "layers": names} for scheme, names in layers.items()]


def read_section(section) -> dict[str, Scheme]:
    """The scheme of each layer in config.json's section.

    Raises:
        ValueError: it is not such a section.
    """
    schemes = {}
    fields = {field.name for field in dataclasses.fields(Scheme)}
    for entry in section if isinstance(section, list) else [section]:
        if not isinstance(entry, dict) or set(entry) != fields | {"layers"} or not isinstance(entry["layers"], list):
            raise ValueError(f"Unknown entry in config.json's {KEY!r}: {str(entry)[:200]}")
        scheme = Scheme(**{name: entry[name] for name in fields})
        schemes |= {str(name): scheme for name in entry["layers"]}
    return schemes


def stored_variables(model, float_paths: list[str]) -> dict[str, keras.Variable]:
    """The weights to save, by path: the float ones of these paths that there are, and all of quantized layers."""
    found = {}
    for layer in quantizable_layers(model).values():
        if scheme_of(layer) is not None:
            found |= {v.path: v for v in (*layer._trainable_variables, *layer._non_trainable_variables)}
    found |= {v.path: v for v in model.weights if _below(v.path) in float_paths}
    return {_below(path): variable for path, variable in found.items()}


def make_shells(model, schemes: dict[str, Scheme], optional: tuple[str, ...] = ()) -> None:
    """Gives the layers of a model the variables of quantized ones; those they lose are never allocated.

    Args:
        model: made in a `keras.StatelessScope`.
        schemes: of its layers.
        optional: beginnings of names of layers that the model need not have.

    Raises:
        ValueError: a layer that there is not, or that the scheme does not fit.
    """
    layers = quantizable_layers(model)
    with quick_collections():
        for name, scheme in schemes.items():
            if name in layers:
                for variable in make_shell(layers[name], scheme):
                    variable._initializer = _nothing
            elif not name.startswith(optional):
                raise ValueError(f"config.json's {KEY!r} names the layer {name!r}, which its model does not have.")


def give_up(model) -> None:
    """Before an error leaves the scope in which a model was made: none of its weights is allocated."""
    for variable in model.variables:
        variable._initializer = _nothing


@contextlib.contextmanager
def quick_collections() -> Iterator[None]:
    """Keras collects garbage at each weight that is taken away: half a second, unless it looks only at what is new."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _nothing(shape, dtype=None):
    return keras.ops.zeros((), dtype)


def _below(path: str) -> str:
    return path.removeprefix("transformer/")
