"""Who is who: one session a browser, known by an unguessable id, with a folder of its own."""

import collections
import hashlib
import re
import secrets
import shutil
import threading
from pathlib import Path

from playground.limits import MAX_RUNS, MAX_SESSIONS

ID_BYTES = 24


class Session:
    """What the server keeps of one browser. It is small: models are elsewhere, runs on disk.

    Attributes:
        key: names its folder. It is a hash of the id, so that a listing of folders opens none.
        folder: of its runs; made with the first one.
        notes: small things that pages remember, such as the last logits, by name.
    """

    def __init__(self, key: str, folder: Path):
        self.key, self.folder = key, folder
        self.notes: dict[str, object] = {}

    def new_run(self) -> Path:
        """An empty folder for a run: run-1, run-2 …

        Raises:
            ValueError: there are `MAX_RUNS` already.
        """
        numbers = [int(path.name[4:]) for path in self.runs()]
        if len(numbers) >= MAX_RUNS:
            raise ValueError(f"You have {MAX_RUNS} runs, which is all there is room for. Delete one first.")
        path = self.folder / f"run-{max(numbers, default=0) + 1}"
        path.mkdir(parents=True)
        return path

    def runs(self) -> list[Path]:
        """Folders of its runs, oldest first."""
        found = [p for p in self.folder.glob("run-*") if re.fullmatch(r"run-\d{1,6}", p.name)]
        return sorted(found, key=lambda path: int(path.name[4:]))

    def run(self, name: object) -> Path:
        """The folder of one of its runs.

        Raises:
            ValueError: it has none of that name.
        """
        for path in self.runs():
            if path.name == name:
                return path
        raise ValueError(f"There is no run {str(name)[:40]!r} of yours. It may have been deleted.")

    def workplace(self, run: Path) -> Path:
        """The folder beside a run's where its job keeps the text, its log and its answer."""
        return run.with_name(f"{run.name}.job")

    def delete_run(self, name: object) -> None:
        """Deletes a run's folder, and its job's."""
        run = self.run(name)
        shutil.rmtree(self.workplace(run), ignore_errors=True)
        shutil.rmtree(run)


class Sessions:
    """All sessions, the least recently used of which are forgotten; their folders stay, and their ids open them again.

    Args:
        root: folder in which each has its own.
    """

    def __init__(self, root: Path, most: int = MAX_SESSIONS):
        self.root, self.most = Path(root), most
        self._sessions: collections.OrderedDict[str, Session] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @staticmethod
    def new_id() -> str:
        return secrets.token_urlsafe(ID_BYTES)

    def get(self, session_id: object) -> Session:
        """The session of an id.

        Raises:
            ValueError: that is no id.
        """
        if not is_session_id(session_id):
            raise ValueError("This page is not connected to the server. Load it again.")
        key = hashlib.sha256(session_id.encode()).hexdigest()[:32]
        with self._lock:
            session = self._sessions.pop(key, None) or Session(key, self.root / key)
            self._sessions[key] = session
            while len(self._sessions) > self.most:
                self._sessions.popitem(last=False)
        return session


def is_session_id(value: object) -> bool:
    """Whether a value has the form of an id."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]{32}", value) is not None
