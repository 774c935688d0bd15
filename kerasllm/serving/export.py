"""A model as files for other programs: every format, from every backend, whole or not at all."""

import contextlib
import os
from pathlib import Path

from kerasllm.files import written_aside
from kerasllm.interop import own
from kerasllm.interop.presets import family_for
from kerasllm.locks import only_writer
from kerasllm.serving.card import export_card
from kerasllm.tuning.model_adapters import state_of


def export(model, directory, format: str = "tf_saved_model", overwrite: bool = False, card: str = "", **options):
    """Writes a model in a format that other programs read, with its tokenizer's files and a README.md.

    Active adapters are merged for as long as it takes. Quantized models keep their whole-numbered weights in a
    SavedModel, a GGUF file has its own kinds of weights, and in ONNX, OpenVINO and LiteRT weights are float32.

    Args:
        model: any model of ours.
        directory: where to. A SavedModel goes to a folder in it that is named by the next free number, as TensorFlow
            Serving wants it.
        format: "tf_saved_model", "onnx", "openvino", "litert", "gguf" or "huggingface".
        overwrite: whether the directory may exist. Files of the same names are replaced; earlier versions of a
            SavedModel stay beside the new one.
        card: the README.md of the model, which that of the export begins with.
        options: of the format. `tf_saved_model`: `stop_token_ids`, which end a row of `generate` (the tokenizer's end
            token when left out), and `text`, whether there are signatures of strings (if there can be, when left
            out). `gguf`: `kind`, as in `kerasllm.interop.gguf.export_gguf`.

    Returns:
        the path of what was written, as its program wants it: the SavedModel's version, or the directory.

    Raises:
        ValueError: an unknown format, a directory that exists, or a model or option that the format does not have.
        ImportError: the format's package is not installed.

    Example:
    ```python
    model.export("saved_models/mine/export", format="tf_saved_model")
    ```
    """
    directory = Path(directory)
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received: format={format!r}")
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"A file is in the way of the directory to export to: {str(directory)!r}")
    exists = directory.is_dir() and any(directory.iterdir())
    if exists and not overwrite:
        raise ValueError(
            f"The directory {str(directory)!r} exists. Pass overwrite=True (--overwrite) to write into it, or choose "
            "another."
        )
    with _merged(model), _filled(directory) as aside:
        written = FORMATS[format](model, aside, directory, **options)
        if model.tokenizer is not None and format != "huggingface":
            model.tokenizer.save_to_preset(aside)
        (aside / "README.md").write_text(export_card(model, directory.name, format, card), encoding="utf-8")
    return directory / written if written else directory


def export_saved(model, source, output, format="tf_saved_model", overwrite=False, **options):
    """What `kerasllm export` does: exports a model with what lies in the directory that it was read from.

    Args:
        model: read from there, perhaps with an adapter.
        source: that directory, whose README.md the export's begins with.
        output, format, overwrite, options: see `export`.
    """
    card = Path(source) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return export(model, output, format, overwrite, text, **options)


def _saved_model(model, aside: Path, directory: Path, **options) -> str:
    numbers = [int(path.name) for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []
    version = str(max(numbers, default=0) + 1)
    _by_tensorflow("kerasllm.serving.saved_model:save_saved_model", model, aside / version, **options)
    return version


def _onnx(model, aside: Path, directory: Path) -> None:
    from kerasllm.serving.onnx_models import save_onnx

    save_onnx(model, aside)


def _openvino(model, aside: Path, directory: Path) -> None:
    from kerasllm.serving.openvino_models import save_openvino

    save_openvino(model, aside)


def _litert(model, aside: Path, directory: Path) -> None:
    _by_tensorflow("kerasllm.serving.litert:save_litert", model, aside / "model.tflite")


def _gguf(model, aside: Path, directory: Path, kind: str = "f16") -> None:
    from kerasllm.interop.gguf import export_gguf

    export_gguf(model, aside / "model.gguf", kind)


def _huggingface(model, aside: Path, directory: Path) -> None:
    if family_for(model) is own.FAMILY:
        raise ValueError(
            f"transformers has no model like this {type(model).__name__}: it is quantized, or its sizes and settings "
            "are of no family. Export the float model instead, or another format, such as tf_saved_model."
        )
    model.save_to_preset(aside)


FORMATS = {
    "tf_saved_model": _saved_model,
    "onnx": _onnx,
    "openvino": _openvino,
    "litert": _litert,
    "gguf": _gguf,
    "huggingface": _huggingface,
}


def _by_tensorflow(function: str, model, path: Path, **options) -> None:
    from kerasllm.serving.elsewhere import by_tensorflow

    by_tensorflow(function, model, path, **options)


@contextlib.contextmanager
def _merged(model):
    """Inside a `with`, the active adapters are part of the weights."""
    state = state_of(model)
    if state is None or not state.active or state.originals is not None:
        yield
        return
    model.merge()
    try:
        yield
    finally:
        model.unmerge()


@contextlib.contextmanager
def _filled(directory: Path):
    """Yields a folder aside; what is in it when all went well becomes the directory, or goes into the one there is."""
    if not directory.exists():
        with written_aside(directory) as aside:
            aside.mkdir()
            yield aside
        return
    with only_writer(directory):
        with written_aside(directory / ".export") as aside:
            aside.mkdir()
            yield aside
        for path in (directory / ".export").iterdir():
            os.replace(path, directory / path.name)
        (directory / ".export").rmdir()
