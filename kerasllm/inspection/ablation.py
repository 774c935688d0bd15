"""Taking heads and neurons out of a model, and what that does to a text's loss.

What a head adds to the residual stream is its output times its rows of the output projection, so zeros in these rows
take it out. Everything that is compiled reads the weights anew in each call: nothing compiles again, nothing is
slower, and training, generation and evaluation all see it.
"""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
from keras import ops

from kerasllm.inspection.losses import text_loss
from kerasllm.models.trace import check_stack
from kerasllm.tuning.delta import Hosted
from kerasllm.tuning.lora import LoRADelta
from kerasllm.tuning.offset import Offset


@contextlib.contextmanager
def ablate(
    model,
    heads: Iterable[tuple[int, int]] = (),
    neurons: Iterable[tuple[int, int]] = (),
    stack: str = "decoder",
) -> Iterator[None]:
    """Takes heads and neurons out of a model, inside a `with`: they add nothing. Compiles nothing.

    `predict`, `trace`, `generate`, `score` and `evaluate` then all answer without them. Afterwards the weights are
    what they were, bit for bit, also when something was raised. It changes the model itself: nobody else should use
    it meanwhile, and what an `Engine` read of prompts inside is of no use outside.

    Args:
        model: any model of ours whose weights are not quantized.
        heads: (layer, head) pairs, from 0. With grouped queries they are query heads.
        neurons: (layer, neuron) pairs: units inside the feed-forward of a block.
        stack: of a model with an encoder: "decoder", "encoder", or "cross" for the decoder's attention to the source.
            Use one `with` inside another for several.

    Raises:
        ValueError: a layer, head or neuron that there is not, a stack that the model has not, or quantized weights.

    Example:
    ```python
    with ablate(model, heads=[(0, 2), (1, 0)]):
        without = model.generate("To be")
    ```

    Reference: Michel et al. (2019), "Are Sixteen Heads Really Better than One?".
    """
    rows = _rows(model, list(heads), list(neurons), stack)
    with contextlib.ExitStack() as restored:
        if rows:
            _use_own_programs(model, restored)
        for layer, places in rows:
            for variable in _weights_of_inputs(layer):
                value = np.array(ops.convert_to_numpy(variable.value))
                restored.callback(_put_back, variable, places, value[places].copy())
                value[places] = 0
                variable.assign(value)
        yield


def ablation_effects(model, text: str, target: str | None = None, stack: str = "decoder") -> np.ndarray:
    """The loss of a text with each head taken out, one at a time.

    Args:
        model, text, target: as in `text_loss`, whose value for the whole model is what to compare with.
        stack: see `ablate`.

    Returns:
        (layers, heads), mean −log p in nats.

    Raises:
        ValueError: as `text_loss` and `ablate`.

    Example:
    ```python
    harm = ablation_effects(model, "The cat sat on the mat.") - text_loss(model, "The cat sat on the mat.")
    ```
    """
    check_stack(stack, bool(model.config.num_encoder_layers))
    if target is None and model.config.num_encoder_layers:
        target = model.generate(text)  # By the whole model, for all.
    losses = np.zeros((len(_blocks(model, stack)), model.config.num_heads), "float32")
    for layer, head in np.ndindex(losses.shape):
        with ablate(model, heads=[(layer, head)], stack=stack):
            losses[layer, head] = text_loss(model, text, target)
    return losses


def _rows(model, heads, neurons, stack) -> list[tuple]:
    """(layer, the rows of its kernel) of what is taken out."""
    check_stack(stack, bool(model.config.num_encoder_layers))
    if neurons and stack == "cross":
        raise ValueError(
            f"Cross-attention has no neurons: those of the blocks are of stack='decoder'. Received: {neurons}"
        )
    config, blocks, rows = model.config, _blocks(model, stack), {}
    for layer, head in _checked(heads, "head", len(blocks), config.num_heads):
        block = blocks[layer]
        attention = block.source_attention if stack == "cross" else block.attention
        places = range(head * config.head_dim, (head + 1) * config.head_dim)
        rows.setdefault(id(attention), (attention.output_dense, []))[1].extend(places)
    for layer, neuron in _checked(neurons, "neuron", len(blocks), config.intermediate_dim):
        down = blocks[layer].feed_forward.down
        rows.setdefault(id(down), (down, []))[1].append(neuron)
    for layer, _ in rows.values():
        if getattr(layer, "quantization_mode", None):
            raise ValueError(
                f"{layer.path!r} is quantized ({layer.quantization_mode}), and a part of it cannot be taken out. "
                "Use the model that it was made from."
            )
    return list(rows.values())


def _blocks(model, stack) -> list:
    network = model.transformer
    if not model.config.num_encoder_layers:
        return network.blocks
    return (network.encoder if stack == "encoder" else network.decoder).blocks


def _checked(pairs, name, layers, size) -> list[tuple[int, int]]:
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"`{name}s` must be a list of (layer, {name}) pairs. Received: {pair!r}")
        for what, value, limit in zip(("layer", name), pair, (layers, size)):
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or not 0 <= value < limit:
                raise ValueError(
                    f"There is no {what} {value!r}: they are numbered from 0 to {limit - 1}. "
                    f"Received: (layer, {name})={tuple(pair)}"
                )
    return [(int(layer), int(number)) for layer, number in pairs]


def _weights_of_inputs(layer) -> list:
    """The weights with a row for each of a layer's inputs: its kernel, and what adapters at it have of that kind."""
    weights = [layer.kernel]
    hosted = vars(layer).get("call")
    for delta in hosted.deltas.values() if isinstance(hosted, Hosted) else ():
        if isinstance(delta, LoRADelta):
            if delta.settings.dora:
                raise ValueError(f"DoRA at {layer.path!r} depends on the whole kernel. Merge the adapter first.")
            weights += [delta.lora_a] + ([delta.start_a] if hasattr(delta, "start_a") else [])
        elif isinstance(delta, Offset) and "kernel" in delta.attributes:
            weights.append(delta.weight("kernel"))
    return weights


def _put_back(variable, places, values) -> None:
    value = np.array(ops.convert_to_numpy(variable.value))
    value[places] = values
    variable.assign(value)


def _use_own_programs(model, restored: contextlib.ExitStack) -> None:
    """Engines such as llama.cpp have a copy of the weights: meanwhile, Keras makes the tokens."""
    programs = getattr(model, "_programs", None)
    if programs is not None and hasattr(programs, "kind"):
        model._programs = None
        restored.callback(setattr, model, "_programs", programs)
