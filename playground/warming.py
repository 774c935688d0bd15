"""Getting the backend and the models that ship ready behind the page, which opens at once."""

import os
import threading
from collections.abc import Callable
from html import escape

NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


class Warming:
    """Imports the backend in a thread.

    Args:
        then: what to do after it.
    """

    def __init__(self, then: Callable[[], None] = lambda: None):
        self.error, self.device = "", ""
        self._then = then
        self._ready = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._work, name="warming", daemon=True).start()

    def wait(self, seconds: float | None = None) -> bool:
        """Until the backend is there."""
        return self._ready.wait(seconds)

    def badge(self) -> str:
        """A line for the sidebar."""
        if self.error:
            return f'<div class="device loading">{escape(self.error)}</div>'
        if not self._ready.is_set():
            name = NAMES.get(os.environ.get("KERAS_BACKEND", "tensorflow"), "the backend")
            return f'<div class="device loading">Getting {name} ready …</div>'
        return f'<div class="device">{escape(self.device)}</div>'

    def _work(self) -> None:
        try:
            import keras

            backend = keras.backend.backend()
            self.device = f"{NAMES.get(backend, backend)} · {_device(backend)}"
            self._then()
        except Exception as error:  # shown in the page
            self.error = f"{type(error).__name__}: {error}"
        self._ready.set()


def _device(backend: str) -> str:
    if backend == "torch":
        import torch

        count = torch.cuda.device_count()
    elif backend == "jax":
        import jax

        count = len([device for device in jax.devices() if device.platform != "cpu"])
    else:
        import tensorflow as tf

        count = len(tf.config.list_physical_devices("GPU"))
    return f"{count} GPU" if count else f"CPU, {os.cpu_count()} cores"
