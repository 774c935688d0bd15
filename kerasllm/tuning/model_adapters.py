"""Adapters of a model: added, chosen, weighed, merged, taken away. They work on any built Keras model."""

import contextlib
import re
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from kerasllm.layers.quantized import float_embeddings, float_kernel
from kerasllm.layers.stack import Stack
from kerasllm.tuning.delta import numpy
from kerasllm.tuning.fingerprint import fingerprint
from kerasllm.tuning.settings import Part, Settings

FLOATS = {"kernel": float_kernel, "embeddings": float_embeddings}  # of quantized layers


class Adapter:
    """One adapter of a model: its settings, its deltas (`parts`) and how much it counts.

    Attributes:
        weight: its share among the active adapters; 0 when it is not active.
        factor: what `scale` set.
    """

    def __init__(self, settings: Settings, gate: keras.Variable, parts: list[Part]):
        self.settings, self.gate, self.parts = settings, gate, parts
        self.weight, self.factor = 0.0, 1.0

    @property
    def variables(self) -> list[keras.Variable]:
        """Its weights; not the gate."""
        found = {id(v): v for part in self.parts for v in part.delta.weights if v is not self.gate}
        return list(found.values())

    @property
    def amount(self) -> float:
        return self.weight * self.factor


class Adapters:
    """All adapters of a model, by name, and what is to be put back when the last one goes.

    Attributes:
        frozen: the weights of the base that were trained before there were adapters.
    """

    def __init__(self, model: keras.Model):
        self.all: dict[str, Adapter] = {}
        self.trained: str | None = None
        self.fingerprint = fingerprint(model)
        self.originals: list | None = None  # While merged: (variable, its value before).
        self.disabled = False
        self.frozen = [v for v in model.trainable_variables if v.trainable]
        for variable in self.frozen:
            variable.trainable = False

    def thaw(self) -> None:
        for variable in self.frozen:
            variable.trainable = True

    @property
    def active(self) -> list[str]:
        return [name for name, adapter in self.all.items() if adapter.weight]

    @property
    def computes_base(self) -> bool:
        """Whether the model now computes what the weights of its base say: all is off, or merged into them."""
        return self.disabled or self.originals is not None or not any(a.amount for a in self.all.values())

    def open_gates(self) -> None:
        """Tells the graphs what is active."""
        closed = self.disabled or self.originals is not None
        for adapter in self.all.values():
            adapter.gate.assign(0.0 if closed else adapter.amount)


class Unsaved:
    """Stands in for the `get_config` of a Keras model that is not ours, whose file would lack its adapters."""

    def __init__(self, model: keras.Model, state: Adapters):
        self.base, self.state = type(model).get_config.__get__(model), state

    def __call__(self):
        if self.state.originals is None:
            raise ValueError(
                f"Keras does not save the adapters of a {type(self.base.__self__).__name__} "
                f"({', '.join(self.state.all)}) with it. Use save_weights, save_adapter(model, directory, name), or "
                "merge(model) first."
            )
        return self.base()


def add_adapter(model: keras.Model, name: str, settings: Settings) -> None:
    """Adds an adapter, which is then the only active one, and the only thing that is trained.

    All weights of the model are frozen, until its last adapter is deleted. Compile the model after it, as always
    when what is trainable has changed.

    Args:
        model: a built model; one of ours, or any Keras model with `Dense`, `EinsumDense` or `Embedding` layers.
        name: of letters, digits, "_" and "-".
        settings: a `LoRA`, `IA3`, `Bottleneck`, `BitFit`, `LayerNormTuning`, `PromptTuning`, …

    Raises:
        ValueError: the name is taken, no layer matches a target, a setting does not fit, or adapters are merged.

    Example:
    ```python
    add_adapter(model, "poems", LoRA(rank=8, targets="attention.*"))
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    model.fit(poems)
    ```
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"An adapter's name is made of letters, digits, '_' and '-'. Received: name={name!r}")
    if not isinstance(settings, Settings):
        raise TypeError(f"`settings` must be an adapter's, such as LoRA(rank=8). Received: settings={settings!r}")
    state = state_of(model)
    if state is not None and name in state.all:
        raise ValueError(
            f"The adapter {name!r} is there already. Choose another name, or delete it first. "
            f"Adapters: {', '.join(state.all)}"
        )
    if not model.built:
        raise ValueError("The model is not built, so it has no layers to adapt yet. Call it on an input first.")
    if state is not None:
        _check_unmerged(state)
    gate = keras.Variable(0.0, trainable=False, dtype="float32", autocast=False, name=f"gate_{name}")
    parts = settings.build(model, gate, name)
    if state is None:
        state = model._adapters = Adapters(model)
        if not getattr(model, "saves_adapters", False):
            model.get_config = Unsaved(model, state)
    for part in parts:
        part.delta.site.state = state
        part.delta.attach()
    state.all[name] = Adapter(settings, gate, parts)
    recompute_over_quantized(model)
    forget_compiled(model)
    train_adapter(model, name)


def train_adapter(model: keras.Model, name: str) -> None:
    """Makes one adapter the one that is active and trained. Compile the model after it."""
    state, _ = _known(model, name)
    _check_unmerged(state)
    for other, adapter in state.all.items():
        for part in adapter.parts:
            for variable in part.delta.trainable_parameters():
                variable.trainable = other == name
    state.trained = name
    forget_compiled(model)
    set_adapter(model, name)


def set_adapter(model: keras.Model, names: str | Sequence[str], weights: Sequence[float] | None = None) -> None:
    """Makes one adapter active, or the weighted sum of several, and no other. Compiles nothing.

    Args:
        model: with these adapters.
        names: a name, or a list of them; an empty list for none.
        weights: one for each name; 1 each when left out.

    Raises:
        ValueError: an unknown name, another number of weights than of names, or merged adapters.

    Example:
    ```python
    set_adapter(model, ["poems", "letters"], weights=[0.7, 0.3])
    ```
    """
    names = [names] if isinstance(names, str) else list(names)
    weights = [1.0] * len(names) if weights is None else [float(w) for w in weights]
    if len(names) != len(weights) or len(set(names)) != len(names):
        raise ValueError(
            f"`names` must be different, with one weight each. Received: names={names!r}, weights={weights!r}"
        )
    for name in names:
        _known(model, name)
    state = state_of(model)
    if state is None:
        return
    _check_unmerged(state)
    for name, weight in zip(names, weights):
        for part in state.all[name].parts:
            part.delta.check_weight(weight)
    for name, adapter in state.all.items():
        adapter.weight = dict(zip(names, weights)).get(name, 0.0)
    state.open_gates()


@contextlib.contextmanager
def disable_adapter(model: keras.Model) -> Iterator[None]:
    """The base model alone, inside a `with`. Compiles nothing.

    Example:
    ```python
    with disable_adapter(model):
        before = model.predict(x)
    ```
    """
    state = state_of(model)
    if state is None:
        yield
        return
    _check_unmerged(state)
    before, state.disabled = state.disabled, True
    state.open_gates()
    try:
        yield
    finally:
        state.disabled = before
        state.open_gates()


def adapter_state(model: keras.Model) -> tuple:
    """What is switched on: the active adapters and how much each counts, and whether they are merged."""
    state = state_of(model)
    if state is None:
        return ()
    active = () if state.disabled else tuple((name, state.all[name].amount) for name in state.active)
    return (*active, "merged") if state.originals is not None else active


def adapter_switches(model: keras.Model) -> list[keras.Variable]:
    """The variables that tell the graphs what is active."""
    state = state_of(model)
    return [] if state is None else [adapter.gate for adapter in state.all.values()]


def scale(model: keras.Model, factor: float, name: str | None = None) -> None:
    """Multiplies what an adapter adds by a factor; that of all active ones when no name is given. Compiles nothing."""
    state = _state(model)
    _check_unmerged(state)
    chosen = state.active if name is None else [name]
    for each in chosen:
        _known(model, each)
        for part in state.all[each].parts:
            part.delta.check_weight(float(factor))
    for each in chosen:
        state.all[each].factor = float(factor)
    state.open_gates()


def merge(model: keras.Model) -> None:
    """Adds what the active adapters do to the weights of the base, as weighed now, until `unmerge`.

    The model then computes what it did, at the speed of the base, and `save_to_preset` saves it. The weights as they
    were are kept on the host.

    Raises:
        ValueError: adapters are merged already, none is active, or a kind that is no change of weights.
    """
    state = _state(model)
    _check_unmerged(state)
    if not state.active:
        raise ValueError(f"No adapter is active, so there is nothing to merge. Adapters: {', '.join(state.all)}")
    changes = {}
    for name in state.active:
        for part in state.all[name].parts:
            _check_mergeable(name, part)
            for attribute, offset in part.delta.offsets().items():
                variable = getattr(part.layer, attribute)
                _check_variable(name, part, attribute, variable)
                total = changes.setdefault(id(variable), [variable, 0.0])
                total[1] = total[1] + state.all[name].amount * offset
    _check_order(state)
    state.originals = [(v, keras.ops.convert_to_numpy(v.value).copy()) for v, _ in changes.values()]
    for variable, change in changes.values():
        variable.assign((numpy(variable) + change).astype("float32"))
    state.open_gates()


def unmerge(model: keras.Model) -> None:
    """Puts the weights back, bit for bit, as they were before `merge`; the same adapters are active."""
    state = _state(model)
    if state.originals is None:
        raise ValueError("No adapters are merged.")
    for variable, value in state.originals:
        variable.assign(value)
    state.originals = None
    state.open_gates()


def delete_adapter(model: keras.Model, name: str) -> None:
    """Takes an adapter away; with the last one, the model is as it was, and trainable again."""
    state, adapter = _known(model, name)
    _check_unmerged(state)
    for part in adapter.parts:
        part.delta.detach()
    del state.all[name]
    if state.trained == name:
        state.trained = None
    if not state.all:
        state.thaw()
        model._adapters = None
        vars(model).pop("get_config", None)
    recompute_over_quantized(model)
    forget_compiled(model)


def base_value(model: keras.Model, layer: keras.layers.Layer, attribute: str) -> np.ndarray:
    """A weight of the base as float32 on the host: as it is without adapters, also while they are merged into it; of a
    quantized layer the numbers that its codes stand for.
    """
    if attribute in FLOATS and getattr(layer, "quantization_mode", None):
        return numpy(FLOATS[attribute](layer))
    variable, state = getattr(layer, attribute), state_of(model)
    for merged, before in (state.originals or ()) if state is not None else ():
        if merged is variable:
            return before.astype("float32")
    return numpy(variable)


def recompute_over_quantized(model: keras.Model) -> None:
    """Lets the blocks of a quantized base, whose small size is the point, keep as little as can be while training.

    Not with dropout, nor with a prefix, which blocks are not given as an argument.
    """
    layers = model._flatten_layers()
    wanted = state_of(model) is not None and any(getattr(layer, "quantization_mode", None) for layer in layers)
    random = any(isinstance(layer, keras.layers.Dropout) and layer.rate for layer in layers)
    prompted = any(getattr(layer, "prompted", None) for layer in layers)
    for stack in (layer for layer in layers if isinstance(layer, Stack)):
        stack.recompute = wanted and not random and not prompted


def adapters(model: keras.Model) -> dict[str, Settings]:
    """The settings of a model's adapters, by name."""
    state = state_of(model)
    return {} if state is None else {name: adapter.settings for name, adapter in state.all.items()}


def check_trainable(model: keras.Model) -> None:
    """Raises a ValueError if training a model would change nothing, or the wrong thing."""
    state = state_of(model)
    if state is not None:
        _check_unmerged(state)
        if state.trained is None or not state.all[state.trained].amount or state.disabled:
            raise ValueError(
                f"The adapter that is trained ({state.trained!r}) is not active, so that training would not change "
                f"what the model does. Active: {', '.join(state.active) or 'none'}. Use train_adapter(name)."
            )
    if not model.trainable_variables:
        raise ValueError("Nothing in the model is trainable. Add an adapter, or make layers trainable again.")
    optimizer = model.optimizer
    known = getattr(optimizer, "_trainable_variables", None) if optimizer is not None and optimizer.built else None
    if known is not None and {id(v) for v in known} != {id(v) for v in model.trainable_variables}:
        raise ValueError("What is trainable has changed since the model was compiled. Compile it again.")


def state_of(model: keras.Model) -> Adapters | None:
    """A model's adapters, if it has any."""
    return getattr(model, "_adapters", None)


def adapter_of(model: keras.Model, name: str) -> Adapter:
    """One adapter of a model.

    Raises:
        ValueError: it has none of that name.
    """
    return _known(model, name)[1]


def _state(model) -> Adapters:
    state = state_of(model)
    if state is None:
        raise ValueError("The model has no adapters. Add one with add_adapter(name, settings).")
    return state


def _known(model, name: str) -> tuple[Adapters, Adapter]:
    state = _state(model)
    if name not in state.all:
        raise ValueError(f"There is no adapter {name!r}. Adapters: {', '.join(state.all)}")
    return state, state.all[name]


def _check_unmerged(state: Adapters) -> None:
    if state.originals is not None:
        raise ValueError(f"Adapters are merged into the base ({', '.join(state.active)}). Call unmerge() first.")


def _check_mergeable(name: str, part: Part) -> None:
    if not part.delta.mergeable:
        raise ValueError(f"The adapter {name!r} is no change of weights, so it cannot be merged into them.")
    if getattr(part.layer, "quantization_mode", None):
        raise ValueError(
            f"The kernel of {part.name!r} is quantized ({part.layer.quantization_mode}), and cannot take up what an "
            "adapter adds. Merge into a base that is not quantized: save the adapter, and load it there."
        )
    if getattr(part.layer, "tie_weights", False):
        raise ValueError(f"{part.name!r} is also the model's head, which the adapter {name!r} must not change.")


def _check_variable(name: str, part: Part, attribute: str, variable) -> None:
    if not isinstance(variable, keras.Variable):
        raise ValueError(
            f"{part.name!r} does not compute with its {attribute} as it is, so nothing can be merged into it: it is "
            "trained for quantization. Call quantization_unaware(model) first."
        )
    if variable.constraint is not None:
        raise ValueError(
            f"The {attribute} of {part.name!r} is kept at zero in places (it was pruned), which what the adapter "
            f"{name!r} adds would fill. Leave the adapter beside it, or call free_zeros(model) first, and prune again."
        )


def _check_order(state: Adapters) -> None:
    """Vectors on the input multiply what others add, too, which a sum of changes would miss."""
    on_input = [n for n in state.active if any(getattr(p.delta, "on_input", False) for p in state.all[n].parts)]
    if on_input and len(state.active) > 1:
        raise ValueError(f"{on_input[0]!r} multiplies inputs, so it can only be merged alone. Active: {state.active}")


def forget_compiled(model) -> None:
    """What is compiled has the old variables; what was made for them is made anew when it is next needed."""
    model.train_function = model.test_function = model.predict_function = None
    if getattr(model, "_programs", None) is not None:
        model._programs = None
