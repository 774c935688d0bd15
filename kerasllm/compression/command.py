"""What `kerasllm quantize`, `prune` and `distil` do."""

from pathlib import Path

import kerasllm
from kerasllm.compression.distillation import Distiller
from kerasllm.compression.engines import ENGINES
from kerasllm.compression.evaluation import evaluation_batches
from kerasllm.compression.mixed_precision import search as search_modes
from kerasllm.compression.pruning import Magnitude, SparseGPT, Wanda, prune
from kerasllm.compression.pruning import sparsity as zeros_of
from kerasllm.compression.report import compare, num_bytes, rows_of, save_report
from kerasllm.compression.schemes import CALIBRATED
from kerasllm.compression.smoothing import smooth
from kerasllm.compression.structured_pruning import prune_structure
from kerasllm.compression.students import student_from
from kerasllm.data.pairs import read_pairs
from kerasllm.data.pipeline import from_text
from kerasllm.interop.presets import FAMILIES, MAX_JSON_BYTES, read_config
from kerasllm.interop.weight_files import read_json
from kerasllm.models.inputs import tokenizer_of
from kerasllm.training.callbacks import Progress
from kerasllm.training.optimizers import adamw

ZEROS = "Zeros are stored like other weights. Take heads, neurons or blocks away for a smaller model."


def quantize_directory(
    directory,
    output,
    source,
    mode="int8",
    options=None,
    max_rise: float | None = None,
    engine: str = "auto",
    strength: float | None = None,
) -> dict[str, str]:
    """Quantizes a saved model, saves it with a report, and returns the report in words.

    Args:
        directory: of the model.
        output: where the quantized one goes.
        source: the text to compare on.
        mode, options: of `quantize`.
        max_rise: if given, modes are searched for; see `search`.
        engine: see `use_engine`.
        strength: if given, large inputs are evened out first; see `smooth`.
    """
    if max_rise is not None and mode != "int8":
        raise ValueError(
            f"A search chooses between int4 and int8 for each layer. Received: mode={mode!r}, with a search"
        )
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}. Received: engine={engine!r}")
    cls = saved_class(directory)
    before, after = cls.from_preset(directory), cls.from_preset(directory)
    batches = evaluation_batches(before, source)
    options = dict(options or {})
    calibration = options.pop("calibration", None)
    if max_rise is not None:
        mode = search_modes(before, batches, max_rise, keep_table=not options.get("embeddings", True))
    if strength is not None:  # Both, so that layers are compared with what was rounded.
        smooth(before, calibration, strength)
        after.set_weights(before.get_weights())
    is_smoothed_alone = strength is not None and mode not in CALIBRATED
    after.quantize(mode, calibration=None if is_smoothed_alone else calibration, **options)
    after.save_to_preset(output)
    report = {"mode": mode, **compare(before, after, batches, engine)}
    save_report(report, output)
    return rows_of(report)


def saved_class(directory):
    """The class of ours that a directory was saved as, or that opens what transformers saved there."""
    config = read_config(directory)[1]
    architectures = read_json(Path(directory) / "config.json", MAX_JSON_BYTES).get("architectures") or [""]
    tasks = {name: task for each in FAMILIES.values() for task, name in each.architectures.items()}
    default = "Seq2SeqLM" if config.num_encoder_layers else "CausalLM" if config.causal else "MaskedLM"
    return getattr(kerasllm, tasks.get(architectures[0], default))


def prune_directory(
    directory,
    output,
    source,
    method: str | None = None,
    sparsity: str | None = None,
    heads=0.0,
    neurons=0.0,
    layers=0.0,
    calibration=None,
) -> dict[str, str]:
    """Prunes a saved model, saves it, and returns what it cost and brought, in words.

    Args:
        directory, output, source: as in `quantize_directory`.
        method: "magnitude", "wanda" or "sparsegpt", for zeros; "wanda" when left out.
        sparsity: share of zeros, or a pattern such as "2:4"; a half when left out.
        heads, neurons, layers: shares to take away instead of setting weights to zero; see `prune_structure`.
        calibration: text that is looked at; the documentation of Python when left out.

    Raises:
        ValueError: a method or a share of zeros together with parts to take away, or a calibration for "magnitude".
    """
    by_parts = bool(heads or neurons or layers)
    if by_parts and (method is not None or sparsity is not None):
        raise ValueError(
            "Either weights are set to zero, or heads, neurons and blocks are taken away: prune twice for both. "
            f"Received: method={method!r}, sparsity={sparsity!r}, heads={heads}, neurons={neurons}, layers={layers}"
        )
    cls = saved_class(directory)
    before = cls.from_preset(directory)
    batches = evaluation_batches(before, source)
    if by_parts:
        after = prune_structure(before, heads, neurons, layers, calibration)
    else:
        after = cls.from_preset(directory)
        prune(after, _method(method or "wanda", sparsity or "0.5", calibration))
    rows = rows_of(compare(before, after, batches))
    after.save_to_preset(output)
    del rows["worst layers"]
    zeros = {} if by_parts else {"note on size": ZEROS}
    return {**rows, **zeros, "zeros": f"{zeros_of(after).total:.1%}"}


def distil_directory(
    directory, output, source, num_layers: int, steps=1000, learning_rate=1e-3, batch_size=16, **settings
) -> dict[str, str]:
    """Trains a student of some of a saved model's blocks to answer as it does, saves it, and returns what came of it.

    Args:
        directory: of the teacher.
        output: where the student goes.
        source: the text to train on, or pairs for a model with an encoder; the last tenth is kept to compare on.
        num_layers: of the student.
        steps, learning_rate, batch_size: of the training.
        settings: of `Distiller`.
    """
    teacher = saved_class(directory).from_preset(directory)
    student = student_from(teacher, num_layers)
    distiller = Distiller(student, teacher, **settings)
    train, validation = _train_and_validation(teacher, source, batch_size)
    train.steps_per_epoch = steps
    rows = {"perplexity, teacher": _perplexity(teacher, validation), "at first": _perplexity(student, validation)}
    distiller.compile(adamw(learning_rate, total_steps=steps, warmup_steps=steps // 10, model=student))
    distiller.fit(train, epochs=1, verbose=0, callbacks=[Progress()])
    rows["distilled"] = _perplexity(student, validation)
    student.save_to_preset(output)
    size = {"size": f"{num_bytes(teacher) / 1e6:,.2f} → {num_bytes(student) / 1e6:,.2f} MB"}
    return size | {name: f"{value:.3f}" for name, value in rows.items()}


def _method(name: str, sparsity: str, calibration):
    try:
        sparsity = sparsity if ":" in sparsity else float(sparsity)
    except ValueError:
        raise ValueError(f"`sparsity` must be a share, or a pattern such as 2:4. Received: {sparsity!r}") from None
    if name == "magnitude":
        if calibration is not None:
            raise ValueError(f"The method 'magnitude' looks at no text. Received: calibration={calibration!r}")
        return Magnitude(sparsity)
    methods = {"wanda": Wanda, "sparsegpt": SparseGPT}
    if name not in methods:
        raise ValueError(f"`method` must be magnitude, {' or '.join(methods)}. Received: method={name!r}")
    return methods[name](sparsity, calibration)


def _train_and_validation(model, source, batch_size: int):
    if model.config.num_encoder_layers:
        pairs = read_pairs(source)
        kept = max(1, len(pairs) // 10)
        return tuple(
            model.as_data(*map(list, zip(*part)), batch_size=batch_size, shuffle=True)
            for part in (pairs[:-kept], pairs[-kept:])
        )
    objective, length = "causal" if model.config.causal else "masked", min(model.config.max_sequence_length, 256)
    return from_text(source, tokenizer_of(model), objective, length, batch_size)


def _perplexity(model, validation) -> float:
    model.compile()
    return model.evaluate(validation, verbose=0, return_dict=True)["perplexity"]
