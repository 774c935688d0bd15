"""LiteRT's file (once TensorFlow Lite), made by TensorFlow."""

from pathlib import Path

import tensorflow as tf

from kerasllm.serving.saved_model import signatures_of


def save_litert(model, path) -> None:
    """Writes the forward pass, for any batch and length, as the signature `serving_default`. The backend is TensorFlow.

    Args:
        model: any model of ours.
        path: of the file.

    Example:
    ```python
    save_litert(model, "model.tflite")
    tf.lite.Interpreter("model.tflite").get_signature_runner("serving_default")(token_ids=ids, padding_mask=mask)
    ```
    """
    module = tf.Module()
    module.weights = [variable.value for variable in model.weights]
    module.forward = signatures_of(model)["serving_default"]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.forward], module)
    Path(path).write_bytes(converter.convert())
