"""How fast training goes, and how much of the machine it uses."""

import sys
import time
from typing import Any

import keras

from kerasllm.training.watcher import Watcher

# The first batches compile; JAX compiles again once the optimizer has its state.
COMPILING_BATCHES = 2

# Dense bf16 (fp16 for T4 and V100) tensor FLOP/s as NVIDIA's data sheets print them, without sparsity.
# The first name found in the device's wins.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


class Throughput(Watcher):
    """Adds the speed of training to the epoch's logs, for the callbacks after it and the history.

    The batches that compile and the time of validation are left out. Adds

    - `steps_per_second`, `eta_seconds`, `seconds` (of training so far, before a resume too);
    - where the data tells `tokens_per_batch`: `tokens_per_second`, and `flops_per_second` by
      `TransformerConfig.flops_per_token`, times three for the backward pass;
    - where there is a peak to divide by: `mfu`, the share of `mfu_peak_flops`; the callback's
      `mfu_denominator` says what that peak is;
    - `peak_memory_gb`, of the GPU, else of the process.

    Args:
        peak_flops: FLOP/s that `mfu` is relative to, "measure" for a float32 matrix product timed here, or
            `None` for the dense bf16 peak of a known GPU (no `mfu` on other devices).

    Raises:
        ValueError: `peak_flops` is none of these.

    Example:

    ```python
    model.fit(train, epochs=2, callbacks=[Throughput(peak_flops=312e12)])
    ```

    Reference: Chowdhery et al. (2022), "PaLM", appendix B, for model FLOP/s utilisation.
    """

    def __init__(self, peak_flops: float | str | None = None):
        super().__init__()
        if not (peak_flops in (None, "measure") or (isinstance(peak_flops, int | float) and peak_flops > 0)):
            raise ValueError(f"`peak_flops` must be a positive number, 'measure' or None. Received: {peak_flops!r}")
        self.peak_flops = peak_flops
        self.mfu_denominator: str | None = None
        self._seconds_before = 0.0
        self._ended = None

    def get_state(self) -> dict[str, Any]:
        return {"seconds": self._seconds}

    def set_state(self, state: dict[str, Any]) -> None:
        self._seconds_before = float(state["seconds"])

    def on_train_begin(self, logs=None):
        self._began, self._seconds_before = time.perf_counter(), 0.0
        self._compiled = 0
        self._peak, self.mfu_denominator = self._find_peak()

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch)
        self._first = None  # (batch, time) from which the speed is taken
        self._last, self._ended = 0, None

    def on_train_batch_begin(self, batch, logs=None):
        if self._compiled < COMPILING_BATCHES:
            self._compiled += 1
        elif self._first is None:
            self._first = (batch, time.perf_counter())

    def on_train_batch_end(self, batch, logs=None):
        # On JAX this comes from other threads, late and in any order: no moment to look at the clock.
        self._last = max(self._last, batch + 1)

    def on_test_begin(self, logs=None):
        if self._ended is None:
            self._ended = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        ended = self._ended or time.perf_counter()
        logs["seconds"] = self._seconds
        if memory := peak_memory_bytes():
            logs["peak_memory_gb"] = memory / 1e9
        if self._first is None:
            return
        batches, seconds = self._last - self._first[0], ended - self._first[1]
        logs["steps_per_second"] = batches / seconds / self.accumulation
        if self.total_steps:
            logs["eta_seconds"] = (self.total_steps - self.steps_done) / logs["steps_per_second"]
        data = getattr(self.watched, "train_data", None)
        if tokens := getattr(data, "tokens_per_batch", None):
            logs["tokens_per_second"] = tokens * batches / seconds
            flops = self.watched.config.flops_per_token(getattr(data, "sequence_length", None))
            logs["flops_per_second"] = 3 * flops * logs["tokens_per_second"]
            if self._peak:
                logs["mfu"] = logs["flops_per_second"] / self._peak
                logs["mfu_peak_flops"] = self._peak

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began

    def _find_peak(self) -> tuple[float, str] | tuple[None, None]:
        if self.peak_flops is None:
            return known_peak_flops() or (None, None)
        if self.peak_flops == "measure":
            return measured_peak_flops()
        return float(self.peak_flops), f"the given {self.peak_flops / 1e12:g} TFLOP/s"


def device_name() -> str | None:
    """The name of the first GPU, or `None` on a CPU."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    if backend == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_physical_devices("GPU")
        return tf.config.experimental.get_device_details(devices[0]).get("device_name") if devices else None
    return None


def known_peak_flops() -> tuple[float, str] | None:
    """(FLOP/s, what it is the peak of) of the first GPU, or `None` if it has none or an unknown one."""
    name = device_name() or ""
    for key, flops in PEAK_FLOPS.items():
        if key in name:
            return flops, f"the {flops / 1e12:.0f} TFLOP/s dense bf16 peak of {name}"
    return None


def measured_peak_flops(size: int = 1024, seconds: float = 0.5) -> tuple[float, str]:
    """(FLOP/s, what it is the peak of): the fastest of several float32 matrix products, on any device.

    Args:
        size: rows and columns of the two matrices.
        seconds: how long to try.
    """
    from keras import ops

    a = ops.ones((size, size), dtype="float32")
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        ops.convert_to_numpy(ops.matmul(a, a)[:1, :1])
        best = min(best, time.perf_counter() - started)
    flops = 2 * size**3 / best
    return flops, f"a measured {flops / 1e9:.0f} GFLOP/s float32 {size} by {size} matrix product"


def peak_memory_bytes() -> int | None:
    """The most memory used so far: of the first GPU, else of the process; `None` where that is not told."""
    backend = keras.backend.backend()
    if device_name() is None:
        return _process_peak_bytes()
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    if backend == "jax":
        import jax

        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def _process_peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
