"""Standard error without the lines that TensorFlow's libraries write while they are loaded.

They say what is the matter with no machine: which CUDA is not there, which instructions the processor has. They come
before any setting of logs is read, from C++, so they are caught where they go. Everything else is passed on.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

GREETINGS = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|I\d{4} |[-\d]+ [:.\d]+: I |To enable the following instructions:"  # all that only informs
    rb"|.*failed call to cuInit: .*\(303\)"  # there is no driver, so no GPU
    rb"|.*Unable to register cu\w+ factory"
    rb"|.*computation placer already registered"
    rb"|.*TF-TRT Warning: Could not find TensorRT"
)


@contextlib.contextmanager
def without_greetings() -> Iterator[None]:
    """Holds back what is written to standard error; what is no greeting is written at the end."""
    try:
        stderr = os.dup(2)
    except OSError:  # There is none.
        yield
        return
    with tempfile.TemporaryFile() as caught:
        _flush()
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if not GREETINGS.match(line):
                    os.write(2, line)


def load_backend() -> None:
    """Imports Keras with its backend, and lets TensorFlow look for devices.

    Raises:
        ImportError: the backend is not installed.
    """
    with without_greetings():
        try:
            import keras
        except ModuleNotFoundError as error:
            if error.name not in ("jax", "tensorflow", "torch"):
                raise
            raise ImportError(
                f"The backend {error.name} is not installed: pip install 'kerasllm[{error.name}]', or choose another "
                "with --backend."
            ) from None
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.list_physical_devices()


def _flush() -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
