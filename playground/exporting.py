"""A model exported, in one file to download. Runs in a job."""

import shutil
from pathlib import Path

FORMATS = {
    "TensorFlow SavedModel": "tf_saved_model",
    "Hugging Face": "huggingface",
    "GGUF (llama.cpp)": "gguf",
    "ONNX": "onnx",
    "OpenVINO": "openvino",
    "LiteRT": "litert",
}


def export_archive(directory: str, format: str, folder: Path) -> str:
    """Exports a model into a folder, and returns the path of a zip file of it."""
    from kerasllm.compression.command import saved_class

    shutil.rmtree(folder / "export", ignore_errors=True)
    saved_class(directory).from_preset(directory).export(folder / "export", format=format)
    return shutil.make_archive(str(folder / f"export-{format}"), "zip", folder / "export")
