"""One way of tuning a GPT in a process of its own, for tuning.py.

It is started as `python benchmarks/tuning_worker.py METHOD BACKEND full|toy THREADS`, and answers in lines of JSON:
first what is trained, then to each number of steps how long they took, and to 0 memory and the checkpoint's size.
"""

import contextlib
import ctypes
import gc
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from loss_memory import current_memory, peak_memory, reset_peak
from peers import LEARNING_RATE, Shape, make_fit_burst, make_keras_hub_gpt, make_kerasllm_gpt
from worker import WARM_UP_STEPS, limit_threads

SHAPES = {"full": Shape(12, 12, 768, 50257, 4, 256), "toy": Shape(2, 2, 32, 101, 2, 16)}
RANK = 8
ATTENTION = ("query", "key", "value", "output_dense")
PROMPTS = {"prompt": 4, "prefix": 4}  # tokens
KERAS_LORA = "keras-lora"  # Keras's own, on the same model
KERAS_HUB_LORA = "kerashub-lora"  # KerasHub's GPT-2, on the same projections
M_MMAP_THRESHOLD = -3  # of the C library's mallopt
QUANTIZED = {"qlora-int8": "int8", "qlora-int4": "int4"}


def prepare(model: Any, method: str) -> None:
    """Make the model train what the method trains."""
    from kerasllm.training.recipe import Tuning
    from kerasllm.tuning.methods import prepare as prepare_method

    if method in QUANTIZED:
        model.quantize(QUANTIZED[method])
    if method == KERAS_LORA:
        model.freeze("*")
        for layer in model._flatten_layers():
            if layer.name in ATTENTION:
                layer.enable_lora(RANK)
        return
    name = "lora" if method in QUANTIZED else method
    targets = "attention.*" if name in ("lora", "dora") else None
    prepare_method(model, Tuning(method=name, rank=RANK, targets=targets, prompt_length=PROMPTS.get(name, 4)))


def make(method: str, shape: Shape) -> Any:
    """The model, compiled."""
    import keras

    if method == KERAS_HUB_LORA:
        model = make_keras_hub_gpt(shape)
        model.backbone.enable_lora(RANK, target_layer_names=["query", "key", "value", "attention_output"])
        model.compile(
            optimizer=keras.optimizers.AdamW(LEARNING_RATE),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[],  # its default accuracy metric would only slow it down
        )
        return model
    room = PROMPTS.get(method, 0)  # Vectors before the text take a part of the context.
    model = make_kerasllm_gpt(replace(shape, sequence_length=shape.sequence_length + room))
    prepare(model, method)
    model.compile(optimizer=keras.optimizers.AdamW(LEARNING_RATE))
    return model


def checkpoint_bytes(model: Any) -> int:
    """The size of what one would keep: an adapter's directory, or the model's."""
    with tempfile.TemporaryDirectory() as folder:
        if getattr(model, "adapters", None):
            model.save_adapter(folder)
        elif any(getattr(layer, "lora_enabled", False) for layer in model._flatten_layers()):
            model.save_weights(Path(folder) / "model.weights.h5")  # Keras merges its LoRA when it saves.
        else:
            model.save_to_preset(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def give_back_memory(always: bool = False) -> None:
    """What was freed is not of the steps; with `always`, the C library keeps none of it from here on."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # Only GNU's C library has it.
        library = ctypes.CDLL("libc.so.6")
        if always:
            library.mallopt(M_MMAP_THRESHOLD, 65536)
        library.malloc_trim(0)


def memory_of(burst: Any, before: int) -> dict[str, int]:
    """Resident bytes at rest, which compiled programs are a part of, and at the highest in a step."""
    give_back_memory(always=True)
    burst(1)
    give_back_memory()
    rest = current_memory() - before
    reset_peak()
    burst(1)
    return {"rest_bytes": rest, "bytes": peak_memory() - before}


def main() -> None:
    method, backend, size, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    # Libraries print where they like: the real standard output is kept for answers, stderr takes the rest.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["KERAS_BACKEND"] = backend
    os.environ["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] = "true"  # TensorFlow's own keeps the most that there ever was.
    limit_threads(threads, library_uses_torch=backend == "torch")

    def no_mask(token_ids: Any) -> Any:
        return token_ids

    def with_mask(token_ids: Any) -> Any:
        return {"token_ids": token_ids, "padding_mask": token_ids >= 0}

    toy, shape = SHAPES["toy"], SHAPES[size]
    make_fit_burst(make("full", toy), no_mask, toy)(1)  # Libraries and thread pools are loaded.
    give_back_memory()
    before, started = current_memory(), time.perf_counter()
    model = make(method, shape)
    burst = make_fit_burst(model, with_mask if method == KERAS_HUB_LORA else no_mask, shape)
    burst(WARM_UP_STEPS)
    ready = {
        "ready_seconds": time.perf_counter() - started,
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
    }
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        if not int(line):  # The last question: saving takes memory of its own.
            found = {**memory_of(burst, before), "checkpoint_bytes": checkpoint_bytes(model)}
            print(json.dumps(found), file=answers)
            continue
        seconds, loss = burst(int(line))
        print(json.dumps({"seconds": seconds, "loss": loss}), file=answers)


if __name__ == "__main__":
    main()
