"""One file that holds a whole run: to keep, to send, and to open in another playground."""

import json
import shutil
import zipfile
from pathlib import Path

MARK = "kerasllm-run"
MANIFEST = "run.json"
MAX_BYTES = 64 << 20
NAMES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "recipe.yaml",
    "metrics.jsonl",
    "samples.txt",
    "README.md",
)
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")


def save_run(directory: Path, file: Path) -> Path:
    """Packs a finished run, or any model's directory.

    Raises:
        ValueError: there is no saved model in it.
    """
    missing = [name for name in NEEDED if not (directory / name).is_file()]
    if missing:
        raise ValueError(f"The run has no saved model yet ({', '.join(missing)} missing). Let it finish, or resume it.")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, json.dumps({"format": MARK, "version": 1, "name": directory.name}))
        for name in NAMES:
            if (directory / name).is_file():
                archive.write(directory / name, name)
    return file


def open_run(file: Path, directory: Path) -> Path:
    """Unpacks a run into an empty directory, which is removed again if the file is not good.

    Only the names of `NAMES` are read, so that nothing can be written elsewhere; nothing of it is ever run.

    Raises:
        ValueError: it is no run file, damaged, too large, or its model cannot be opened.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            found = {info.filename: info for info in archive.infolist()}
            manifest = (
                json.loads(archive.read(MANIFEST)) if MANIFEST in found and found[MANIFEST].file_size < 4096 else {}
            )
            if not isinstance(manifest, dict) or manifest.get("format") != MARK:
                raise ValueError("it was not saved by the playground")
            missing = [name for name in NEEDED if name not in found]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
            size = sum(found[name].file_size for name in NAMES if name in found)
            if size > MAX_BYTES:
                raise ValueError(f"it holds {size / 1e6:.0f} MB, and at most {MAX_BYTES / 1e6:.0f} MB are opened")
            directory.mkdir(parents=True, exist_ok=True)
            for name in NAMES:
                if name in found:
                    with archive.open(name) as source, open(directory / name, "wb") as target:
                        shutil.copyfileobj(source, target)
        _check(directory)
    except Exception as error:
        shutil.rmtree(directory, ignore_errors=True)
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"This run file cannot be opened: {text}. Save the run again, and open that file.") from None
    return directory


def _check(directory: Path) -> None:
    """Opens what was unpacked, once, so that a broken model is found out here."""
    from kerasllm.compression.command import saved_class

    saved_class(directory).from_preset(directory)
