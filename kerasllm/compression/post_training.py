"""`model.quantize(...)`: fewer bits for the weights of any of our models, on Keras's own quantized layers."""

import re
from collections.abc import Sequence

import keras
from keras import ops

from kerasllm.compression.calibration import calibration_rows, first_batches, observe, run_step
from kerasllm.compression.chain import chain_of
from kerasllm.compression.quantized_files import quick_collections
from kerasllm.compression.rounding import awq, gptq
from kerasllm.compression.schemes import (
    CALIBRATED,
    MODES,
    Scheme,
    assign_calibrated,
    fitting_group_size,
    inputs_of,
    make_shell,
    quantizable_layers,
    scheme_of,
)
from kerasllm.layers.quantized import float_kernel
from kerasllm.tuning.targets import select, value_for

FLOAT = "float"


def quantize(
    model,
    mode=None,
    config=None,
    *,
    keep: str | Sequence[str] = (),
    embeddings: bool = True,
    group_size: int | None = None,
    activations: bool = False,
    calibration=None,
    filters=None,
    type_check: bool = False,
) -> None:
    """Makes a model's weights smaller, in place. Layers that cannot be quantized stay as they are.

    Args:
        model: one of our models, with float weights and without adapters (add those of QLoRA after it).
        mode: "int8", "int4", "float8" (for training; no smaller), "gptq" or "awq"; or a dict of globs of layer names
            to modes, the first that matches, where "float" keeps a layer.
        config: one of Keras's instead: `Int8QuantizationConfig`, `Int4QuantizationConfig`, `GPTQConfig`, `AWQConfig`.
        keep: globs of layers to keep in floating point, such as "block_0.*" or "*.down".
        embeddings: whether the token embedding, and with it the head, is quantized.
        group_size: inputs that share a scale in int4, gptq and awq: -1 for all; when left out, 128 or what fits.
        activations: int8 multiplies inputs that are made int8 too (W8A8), each row by its own scale.
        calibration: for gptq and awq: texts, a file, or arrays of token ids; the documentation of Python when left out.
        filters: as in Keras: a regular expression of layers' own names, several, or a function of a layer.
        type_check: there for Keras's sake.

    In gptq and awq the token embedding, and layers outside of blocks, are made int8.

    Raises:
        ValueError: an unknown mode, a glob that matches nothing, a group size that does not divide, a model that is
            quantized already or has adapters, a text too short to calibrate on. The model is then as it was.

    Example:
    ```python
    model.quantize("gptq", calibration=["some text", "like what it will read"])
    model.save_to_preset("saved_models/mine-gptq")
    ```

    Reference: Dettmers et al. (2022), "LLM.int8()"; Frantar et al. (2022) for GPTQ; Lin et al. (2023) for AWQ.
    """
    from kerasllm.compression.fake_quantization import check_as_trained, quantization_unaware

    mode, config = _resolved(mode, config)
    _check_config(model, config, group_size, activations)
    layers, schemes = planned(
        model,
        mode,
        config,
        keep=keep,
        embeddings=embeddings,
        group_size=group_size,
        activations=activations,
        filters=filters,
    )
    check_as_trained(model, schemes)
    calibrated = {name: scheme for name, scheme in schemes.items() if scheme.mode in CALIBRATED}
    if calibration is not None and not calibrated:
        raise ValueError(
            f"Only gptq and awq look at calibration data. Received: mode={mode!r} and `calibration`. Leave it out."
        )
    rows = _rows(model, calibration, config) if calibrated else None
    quantization_unaware(model)
    with quick_collections():
        if calibrated:
            _calibrate(model, layers, calibrated, rows, config)
        for name, scheme in schemes.items():
            if name not in calibrated:
                # Keras refuses subclasses of its layers, for they could compute something else; ours do not.
                given = config if getattr(config, "mode", None) == scheme.mode else scheme.config()
                layers[name].quantize(scheme.mode, type_check=False, config=given)
    forget_compiled(model)


def planned(model, mode, config=None, *, keep, embeddings, group_size, activations, filters=None):
    """(layers, schemes), both by name: what can be quantized, and how that will be; see `quantize`."""
    if model.adapters:
        raise ValueError(
            f"The model has adapters ({', '.join(model.adapters)}), which change the weights to quantize. Delete them, "
            "or merge them, save the model and load it again. For QLoRA, quantize first and add adapters then."
        )
    layers = quantizable_layers(model)
    done = {name: scheme_of(layer) for name, layer in layers.items() if scheme_of(layer) is not None}
    if done:
        name, scheme = next(iter(done.items()))
        raise ValueError(
            f"The model is quantized already: {name!r} is {scheme.mode}. Load the model that it was made from again."
        )
    chosen = _chosen(layers, mode, keep, embeddings, filters)
    if not chosen:
        raise ValueError("No layer is left to quantize. Keep fewer layers in floating point.")
    return layers, _schemes(layers, chosen, _in_blocks(model, layers), config, group_size, activations)


def forget_compiled(model) -> None:
    """What was compiled for other weights is made anew."""
    model.train_function = model.test_function = model.predict_function = model._programs = None
    model._post_quantize(None)


def quantized_layers(model) -> dict[str, Scheme]:
    """How each quantized layer of a model is quantized, by name."""
    schemes = {name: scheme_of(layer) for name, layer in quantizable_layers(model).items()}
    return {name: scheme for name, scheme in schemes.items() if scheme is not None}


def _rows(model, calibration, config):
    samples = {}
    if config is not None:
        calibration = config.dataset if calibration is None else calibration
        samples = {"num_rows": config.num_samples, "length": config.sequence_length}
    return calibration_rows(model, calibration, **samples)


def _resolved(mode, config):
    """(mode, Keras's config or `None`)."""
    if isinstance(mode, keras.quantizers.QuantizationConfig):
        mode, config = None, mode
    if config is not None:
        if not isinstance(config, keras.quantizers.QuantizationConfig):
            raise ValueError(f"`config` must be one of Keras's quantization configs. Received: config={config!r}")
        if mode not in (None, config.mode):
            raise ValueError(f"`mode` and `config` disagree. Received: mode={mode!r}, config.mode={config.mode!r}")
        mode = config.mode
    for each in mode.values() if isinstance(mode, dict) else [mode]:
        if each not in MODES and not (each == FLOAT and isinstance(mode, dict)):
            raise ValueError(
                f"`mode` must be one of {', '.join(MODES)}, or a dict of layer globs to them. Received: mode={each!r}"
            )
    return mode, config


def _check_config(model, config, group_size: int | None, activations: bool) -> None:
    """Raises a ValueError for what one of Keras's configs asks for and is not read, or what is said twice."""
    if config is None:
        return
    if activations:
        raise ValueError(
            "With a `config`, it says what happens to activations: Int8QuantizationConfig(activation_quantizer=...). "
            "Received: activations=True"
        )
    if group_size is not None:
        raise ValueError(
            "With a `config`, it says how large groups are: `group_size` in GPTQConfig and AWQConfig, `block_size` in "
            f"Int4QuantizationConfig. Received: group_size={group_size}"
        )
    unread = {
        "per_channel": (True, "each output has scales of its own"),
        "quantization_layer_structure": (None, "the model knows its blocks"),
    }
    for key, (only, why) in unread.items():
        if getattr(config, key, only) != only:
            raise ValueError(f"`config.{key}` is not read: {why}. Received: {key}={getattr(config, key)!r}")
    if getattr(config, "tokenizer", None) is not None and config.tokenizer is not model.tokenizer:
        raise ValueError(
            "`config.tokenizer` is not read: texts are read with the model's own. Set model.tokenizer, give rows of "
            "token ids as the dataset, and None as the tokenizer."
        )


def _chosen(layers, mode, keep, embeddings: bool, filters) -> dict[str, str]:
    """The mode of each layer that is to be quantized."""
    names = list(layers)
    kept = set(select([keep] if isinstance(keep, str) else keep, names))
    if isinstance(mode, dict):
        select(mode, names)  # Each must match something.
    chosen = {}
    for name, layer in layers.items():
        its = value_for(mode, name, FLOAT)
        table = isinstance(layer, keras.layers.ReversibleEmbedding)
        if name in kept or its == FLOAT or not _passes(layer, filters) or (table and not embeddings):
            continue
        if not (table and its == "float8"):  # A table has no inputs to be float8.
            chosen[name] = its
    return chosen


def _passes(layer, filters) -> bool:
    if filters is None:
        return True
    if callable(filters):
        return bool(filters(layer))
    return any(re.search(each, layer.name) for each in ([filters] if isinstance(filters, str) else filters))


def _in_blocks(model, layers) -> set[str]:
    inside = {id(layer) for step in chain_of(model)[1:] for layer in step._flatten_layers()}
    return {name for name, layer in layers.items() if id(layer) in inside}


def _schemes(layers, chosen, in_blocks, config, group_size, activations) -> dict[str, Scheme]:
    modes = {name: its if its not in CALIBRATED or name in in_blocks else "int8" for name, its in chosen.items()}
    grouped = [layers[name] for name, its in modes.items() if its in ("int4", *CALIBRATED)]
    if group_size is not None and not grouped:
        raise ValueError(f"int8 and float8 have no groups. Use int4, gptq or awq. Received: group_size={group_size}")
    given = getattr(config, "block_size", getattr(config, "group_size", None))
    given = -1 if hasattr(config, "block_size") and given is None else given
    group_size = group_size if group_size is not None else given
    if group_size is None:
        group_size = fitting_group_size(grouped)
    if config is not None and config.mode == "int8":
        activations = config.activation_quantizer is not None
    if activations and "int8" not in chosen.values():
        raise ValueError("Only int8 can quantize activations too. Received: activations=True")
    schemes = {}
    for name, its in modes.items():
        bits = {"int4": 4, "awq": 4, "gptq": getattr(config, "weight_bits", 4)}.get(its, 8)
        size = group_size if layers[name] in grouped else -1
        schemes[name] = Scheme(its, bits, size, activations and its == "int8")
        if size != -1 and inputs_of(layers[name]) % size:
            raise ValueError(
                f"`group_size` must divide the inputs of each layer, and {name!r} has {inputs_of(layers[name])}. "
                f"Received: group_size={size}. Use {fitting_group_size(grouped)}, which fits all, or keep the layer."
            )
    if "int8" in modes.values() and next(iter(layers.values())).compute_dtype == "float16":
        raise ValueError("int8 does not work with float16. Load the model with dtype='mixed_bfloat16' or 'float32'.")
    return schemes


def _calibrate(model, layers, schemes, rows, config) -> None:
    """Rounds layers block by block, each for what the rounded blocks before it give it."""
    first, *steps = chain_of(model)
    batches = first_batches(first, rows)
    for step in steps:
        inside = {id(layer) for layer in step._flatten_layers()}
        here = {name: layers[name] for name in schemes if id(layers[name]) in inside}
        for name, inputs in (observe(step, here, batches) if here else {}).items():
            _round(here[name], schemes[name], inputs, config)
        batches = run_step(step, batches)


def _round(layer, scheme: Scheme, inputs, config) -> None:
    kernel = ops.convert_to_numpy(ops.cast(float_kernel(layer), "float32"))
    if scheme.mode == "gptq":
        options = {"symmetric": "symmetric", "damping": "hessian_damping", "by_activation": "activation_order"}
        options = {ours: getattr(config, theirs) for ours, theirs in options.items() if config is not None}
        found = gptq(kernel, inputs.gram, scheme.bits, scheme.group_size, **options)
    else:
        grid = {} if config is None else {"grid": config.num_grid_points}
        found = awq(kernel, inputs.gram, inputs.sizes, scheme.group_size, **grid)
    make_shell(layer, scheme)
    scales = found.input_scales if scheme.mode == "awq" else None
    assign_calibrated(layer, scheme, found.codes.T, found.scale.T, found.zero.T, found.groups, scales)
