"""OpenVINO's files, made of the ONNX graphs."""

import tempfile
from pathlib import Path

from kerasllm.serving.onnx_models import save_onnx


def save_openvino(model, directory) -> None:
    """Writes model.xml and model.bin and, of a model that makes tokens, decoder.xml (and encoder.xml); see `save_onnx`.

    Args:
        model: any model of ours.
        directory: that exists.

    Raises:
        ImportError: openvino or onnx is not installed.

    Example:
    ```python
    save_openvino(model, "folder")
    openvino.Core().compile_model("folder/model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ```
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError('OpenVINO files need openvino: pip install "kerasllm[export]"') from error
    with tempfile.TemporaryDirectory(prefix="kerasllm-export-") as folder:
        for name in save_onnx(model, folder):
            read = openvino.Core().read_model(Path(folder) / f"{name}.onnx")
            openvino.save_model(read, Path(directory) / f"{name}.xml", compress_to_fp16=False)
