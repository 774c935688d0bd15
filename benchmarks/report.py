"""What every benchmark writes down beside its figures: when, on what, from which commit, by which command."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks/results"
PACKAGES = ("keras", "tensorflow", "jax", "torch", "keras-hub", "transformers", "llama-cpp-python", "numpy")

TableContent = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, columns, rows


def cpu_model() -> str:
    """The processor's name as its maker gives it, where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is checked out, with `+changes` when files differ from it."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return f"{head}+changes" if changed else head


def package_versions() -> dict[str, str]:
    """The versions of what is compared, Python included."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def context() -> dict[str, Any]:
    """Date, commit, command, machine and versions of this run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "cpu": f"{cpu_model()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": package_versions(),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table: the first column is a name, the others are figures."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def write(
    name: str,
    heading: str,
    tables: Sequence[TableContent],
    data: Any,
    notes: Sequence[str] = (),
    folder: Path = RESULTS,
) -> None:
    """Write `NAME.json` with `data` and `NAME.md` with the notes and tables, both with the context, in `results/`."""
    folder.mkdir(parents=True, exist_ok=True)
    about = context()
    (folder / f"{name}.json").write_text(json.dumps({**about, "results": data}, indent=2) + "\n")
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    lines = [f"# {heading}", "", f"{about['date']}, commit `{about['commit']}`, `{about['command']}`  "]
    lines += [f"{about['cpu']}, {about['system']}; {versions}"]
    for note in notes:
        lines += ["", note]
    for title, columns, rows in tables:
        lines += ["", f"## {title}", "", "| " + " | ".join(columns) + " |"]
        lines += ["|---" + "|---:" * (len(columns) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
