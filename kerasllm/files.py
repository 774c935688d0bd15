"""Writing files so that a good one is never lost: write aside, flush to the disk, rename."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
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


@contextlib.contextmanager
def written_together(
    directory: str | os.PathLike, mark: str, stale: Callable[[list[str]], Iterable[Path]] = lambda written: ()
) -> Iterator[Path]:
    """Yields a folder to write files to; when all went well, they take their places in `directory`.

    If the block raises, `directory` is as it was. Files are renamed one by one: a crash between leaves a folder `mark`
    with those that are not in their places yet, which `check_together` finds.

    Args:
        directory: where to; it is made if it is not there.
        mark: name of a folder in it.
        stale: names of what was written → files that mean nothing beside it, and are removed.

    Raises:
        ValueError: a file is in the way of the directory.
    """
    directory, waiting = Path(directory), Path(directory) / mark
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"A file is in the way of the directory to save to: {str(directory)!r}")
    with written_aside(waiting) as aside:
        aside.mkdir(parents=True)
        yield aside
        shutil.rmtree(waiting, ignore_errors=True)  # What a killed save may have left.
    written = [path.name for path in waiting.iterdir()]
    for path in stale(written):
        path.unlink(missing_ok=True)
    for path in sorted(waiting.rglob("*")):
        target = directory / path.relative_to(waiting)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            os.replace(path, target)
    shutil.rmtree(waiting)


def check_together(directory: str | os.PathLike, mark: str) -> None:
    """Raises a ValueError if a save by `written_together` is going on, or was killed among its renames."""
    if (Path(directory) / mark).is_dir():
        raise ValueError(
            f"A save into {str(directory)!r} has not ended: some of its files may be new and others old. If none is "
            f"going on, it was killed: move the files of its folder {mark!r} up into it, which ends it, or save again."
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
