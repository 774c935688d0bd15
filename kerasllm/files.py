"""Writing files so that a good one is never lost: write aside, flush to the disk, rename."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_UMASK = os.umask(0)
os.umask(_UMASK)  # Reading it is only possible by setting it.


@contextlib.contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside `path` to write a file or a folder to; it takes `path`'s place when all went well.

    If the block raises, what it wrote is removed and `path` is as it was. A file that was at `path` is replaced in
    one step. A folder at `path` must not exist.

    Example:

    ```python
    with written_aside("notes.txt") as aside:
        aside.write_text("all or nothing")
    ```
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # another one in each process and thread
    try:
        yield aside
        for written in [aside, *(aside.rglob("*") if aside.is_dir() else ())]:
            if written.is_file():
                written.chmod(0o666 & ~_UMASK)  # Some writers leave their files to their owner alone.
            _flush(written)
        os.replace(aside, path)
        _flush(path.parent)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
