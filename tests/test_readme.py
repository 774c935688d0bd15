"""The Python in the README and the guides runs as it is printed, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GUIDES = sorted(
    str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "docs").glob("*.md") if "```python\n" in p.read_text()
)
PAGES = ["README.md", *(pytest.param(guide, marks=pytest.mark.one_backend) for guide in GUIDES)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    assert blocks
    environment = {**os.environ, "KERAS_MAX_STEPS_PER_EPOCH": "3", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.one_backend
def test_all_that_the_pages_name_is_reached_from_the_package():
    """Without another import: `kerasllm.interop.keras_hub` is imported when it is asked for."""
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    names = sorted({name for page in pages for name in re.findall(r"(?<!\.)\bkerasllm(?:\.\w+)+", page.read_text())})
    assert "kerasllm.interop.keras_hub" in names
    code = "import sys, kerasllm\nfor name in sys.argv[1:]: eval(name)"
    names.remove("kerasllm.serving.ray_app")  # which needs Ray
    result = subprocess.run([sys.executable, "-c", code, *names], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-1000:]
