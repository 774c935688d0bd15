"""One writer at a time: a lock on what a run writes to, which ends with the process that holds it."""

import atexit
import contextlib
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".kerasllm.lock"
_FAR = 1 << 30  # Windows locks bytes, which nobody else can then read: one far behind the text.

_guard = threading.RLock()  # A signal may come in the middle, and its handler may release.
_held: dict[Path, "WriterLock"] = {}


class WriterLock:
    """A lock on a folder, or on one file, until `release`; the operating system ends it with the process.

    The lock is on a small file that says who holds it: `.kerasllm.lock` in a folder, `.NAME.lock` beside a file. It is
    removed when the lock is released. One that a killed process has left is not locked, and means nothing. What this
    thread itself holds already (training that ended in an error does not release) passes to the new lock. A file
    system that has no locks gives a warning.

    Args:
        path: of the folder, which is made if it is not there, or of the file.
        is_file: whether it is a file.

    Raises:
        ValueError: another process or thread holds it; the message names it.
        OSError: the folder cannot be written.

    Example:

    ```python
    lock = WriterLock("saved_models/mine")
    lock.release()
    ```
    """

    def __init__(self, path: str | os.PathLike, is_file: bool = False):
        path = Path(path)
        folder = path.parent if is_file else path
        self.path = folder.resolve() / (f".{path.name}.lock" if is_file else LOCK_FILE)
        self.thread = threading.current_thread()
        self._made = [each for each in self.path.parents if not each.exists()]
        with _guard:
            holder = _held.get(self.path)
            if holder is not None and holder.thread is not self.thread and holder.thread.is_alive():
                raise _in_use(path, self.path)
            if holder is not None:
                self._made = holder._made
                holder._close(remove=False)
            try:
                self._file = _locked(self.path)
                if self._file is None:
                    raise _in_use(path, self.path)
            except BaseException:
                _held.pop(self.path, None)
                self._remove_made()
                raise
            _held[self.path] = self

    def release(self) -> None:
        """Lets others write. A folder that was made for the lock and is still empty is removed."""
        with _guard:
            if _held.get(self.path) is self:
                del _held[self.path]
                self._close(remove=True)
                self._remove_made()

    def _close(self, remove: bool) -> None:
        if fcntl is None:  # Windows removes no file that is open.
            self._file.close()
        if remove:  # While it is locked: whoever has opened it sees that it is no longer there.
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._file.close()

    def _remove_made(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def only_writer(directory: str | os.PathLike) -> Iterator[None]:
    """Holds the lock of a folder; a block inside another one of the same thread has it already.

    Raises:
        ValueError, OSError: see `WriterLock`. A file is in the way of the folder.

    Example:

    ```python
    with only_writer("saved_models/mine"):
        model.save_to_preset("saved_models/mine")
    ```
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"A file is in the way of the directory to write to: {str(directory)!r}")
    holder = _held.get(directory.resolve() / LOCK_FILE)
    if holder is not None and holder.thread is threading.current_thread():
        yield
        return
    lock = WriterLock(directory)
    try:
        yield
    finally:
        lock.release()


def _locked(path: Path):
    """The open file, locked and with this process's name in it; `None` if another has the lock."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (its lock ends when it is closed)
        except FileNotFoundError:
            continue  # The holder before has just removed the folder that it had made.
        try:
            if not _lock(file, path):
                file.close()
                return None
            # The holder before may have removed the file after it was opened here: then it locks nothing.
            if fcntl is None or (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                file.truncate(0)
                who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
                file.write(json.dumps(who))
                file.flush()
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file, path: Path) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            file.seek(_FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        warnings.warn(
            f"The file system of {str(path.parent)!r} has no locks ({error.strerror}), so it is not checked that "
            "nothing else writes there.",
            stacklevel=5,
        )
    return True


@atexit.register
def _release_all() -> None:
    for lock in list(_held.values()):
        lock.release()


def _in_use(path: Path, lock: Path) -> ValueError:
    try:
        who = json.loads(lock.read_text(encoding="utf-8"))
        by = f"process {int(who['pid'])} on {str(who['host'])[:100]}, since {str(who['since'])[:30]}"
    except (OSError, ValueError, KeyError, TypeError):
        by = "another process"
    return ValueError(
        f"{str(path)!r} is being written by {by}. Wait until it has ended, stop it, or write somewhere else."
    )
