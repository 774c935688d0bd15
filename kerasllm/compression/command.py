"""What `kerasllm quantize` does."""

from pathlib import Path

import kerasllm
from kerasllm.compression.engines import ENGINES
from kerasllm.compression.evaluation import evaluation_batches
from kerasllm.compression.mixed_precision import search as search_modes
from kerasllm.compression.report import compare, rows_of, save_report
from kerasllm.interop.presets import FAMILIES, MAX_JSON_BYTES, read_config
from kerasllm.interop.weight_files import read_json


def quantize_directory(
    directory, output, source, mode="int8", options=None, max_rise: float | None = None, engine: str = "auto"
) -> dict[str, str]:
    """Quantizes a saved model, saves it with a report, and returns the report in words.

    Args:
        directory: of the model.
        output: where the quantized one goes.
        source: the text to compare on.
        mode, options: of `quantize`.
        max_rise: if given, modes are searched for; see `search`.
        engine: see `use_engine`.
    """
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}. Received: engine={engine!r}")
    cls = saved_class(directory)
    before, after = cls.from_preset(directory), cls.from_preset(directory)
    batches = evaluation_batches(before, source)
    options = dict(options or {})
    if max_rise is not None:
        mode = search_modes(before, batches, max_rise, keep_table=not options.get("embeddings", True))
    after.quantize(mode, **options)
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
