"""The process of a job: `python -m playground.worker FOLDER` does what FOLDER/job.json says."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from kerasllm.files import written_aside


def train(arguments: dict, folder: Path) -> dict:
    """Carries a recipe out in the folder."""
    import kerasllm
    from kerasllm.training.recipe import Recipe

    kerasllm.training.train(Recipe.from_dict(arguments["recipe"]), arguments["output"], resume=True)
    return {}


def quantize(arguments: dict, folder: Path) -> dict:
    """A table of a model in several precisions."""
    from playground.measuring import quantization_table

    return {"rows": quantization_table(arguments["directory"], arguments["modes"], arguments["text"])}


def evaluate(arguments: dict, folder: Path) -> dict:
    """Figures of models on a text."""
    from playground.measuring import evaluation_table

    return {"rows": evaluation_table(arguments["directories"], arguments["text"])}


def export(arguments: dict, folder: Path) -> dict:
    """Exports a model, and packs the files into one."""
    from playground.exporting import export_archive

    return {"file": export_archive(arguments["directory"], arguments["format"], folder)}


WORK = {"train": train, "quantize": quantize, "evaluate": evaluate, "export": export}


def main(folder: Path) -> int:
    """Does the work, and leaves `result.json` or `failed.json`."""
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    job = json.loads((folder / "job.json").read_text())
    from kerasllm.training.checkpoint import Interrupted

    try:
        result = WORK[job.pop("kind")](job, folder)
    except Interrupted as interruption:
        return 128 + interruption.signal
    except Exception as error:
        with written_aside(folder / "failed.json") as aside:
            aside.write_text(json.dumps({"message": message_of(error)}))
        raise
    with written_aside(folder / "result.json") as aside:
        aside.write_text(json.dumps(result))
    return 0


def message_of(error: BaseException) -> str:
    """An error for people: what it says, and its kind if it is not one that we raise on purpose."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    expected = isinstance(error, ValueError | FloatingPointError | ImportError | OSError)
    return text if expected else f"{type(error).__name__}: {text}"


def _leave_with_parent(parent: int) -> None:
    """A server that is gone cannot stop us any more."""
    while os.getppid() == parent:
        time.sleep(1)
    with contextlib.suppress(OSError):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(1)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # Backends take seconds to leave, and there is nothing more to do.
