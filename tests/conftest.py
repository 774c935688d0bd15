"""What every test shares: a chosen backend, quiet logs, the same seed each time, and a text to train on."""

import gc
import os
import random
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

# These are read when a backend is first imported, so they are set before any test module is.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # tiny models: compiling them is all the work
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # reaching for the network fails at once, not after a wait

REPOSITORY = Path(__file__).resolve().parent.parent
SEED = 1234
MOST_BYTES = 4 * 2**30

# Compilation makes the first example of any property slow, and a suite that must agree on three backends must
# draw the same examples on each of them.
settings.register_profile("kerasllm", deadline=None, derandomize=True)
settings.load_profile("kerasllm")


def pytest_report_header() -> str:
    return f"keras backend: {os.environ['KERAS_BACKEND']}"


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Seed every generator that is loaded; a test that never imports Keras does not pay for importing it."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(SEED)
        return
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Between modules, drops what backends keep of compiled functions once it is much: a whole run has thousands."""
    yield
    if psutil.Process().memory_info().rss < MOST_BYTES or "keras" not in sys.modules:
        return
    sys.modules["keras"].utils.clear_session()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """The path of tinyshakespeare.txt (1.1 MB), which lies beside the repository and not in it."""
    path = REPOSITORY / "../shared/data/tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/data/tinyshakespeare.txt beside the repository")
    return path.resolve()
