"""Work that only TensorFlow does: done here on that backend, and from the others in a process of its own."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras

LINES = 15  # of what a failed process said last


def by_tensorflow(function: str, model, path, **options) -> None:
    """Calls `function(model, path, **options)` on the TensorFlow backend.

    From another backend the model goes there as a saved preset, float weights as they are, in its own dtype policy.

    Args:
        function: where it is, "module:name".
        model: any model of ours.
        path: of the file or folder that is written.
        options: what JSON can hold.

    Raises:
        RuntimeError: the process failed; with the end of what it said.
        ValueError: the function raised one.
    """
    if keras.backend.backend() == "tensorflow":
        _function(function)(model, path, **options)
        return
    with tempfile.TemporaryDirectory(prefix="kerasllm-export-") as preset:
        model.save_to_preset(preset)
        task = {"function": function, "preset": preset, "path": str(Path(path).absolute()), "options": options}
        task |= {"class": type(model).__name__, "dtype": model.dtype_policy.name}
        # TensorFlow would take what memory of an accelerator this process has left.
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, "-m", "kerasllm.serving.elsewhere", json.dumps(task)]
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        if said and said[-1].startswith("ValueError: "):
            raise ValueError(said[-1].removeprefix("ValueError: "))
        raise RuntimeError("The export's process on TensorFlow failed:\n" + "\n".join(said[-LINES:]))


def _function(name: str):
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _main() -> None:
    import kerasllm

    task = json.loads(sys.argv[1])
    model = getattr(kerasllm, task["class"]).from_preset(task["preset"], dtype=task["dtype"])
    _function(task["function"])(model, Path(task["path"]), **task["options"])


if __name__ == "__main__":
    _main()
