"""The server: what it refuses, and what reaches it past the page."""

import shutil
import subprocess
import sys

import pytest

pytest.importorskip("gradio")

import httpx
from gradio_client import Client

from playground.server import Settings

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]

KNOBS = [0.8, 0, 0.95, 0]


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


@pytest.fixture(scope="module")
def session_id(client):
    return client.predict("", api_name="/open")


def refused(client, *arguments, api_name):
    with pytest.raises(Exception) as caught:
        client.predict(*arguments, api_name=api_name)
    return str(caught.value)


def test_settings_are_safe():
    with pytest.raises(ValueError, match="--auth"):
        Settings(host="0.0.0.0")
    with pytest.raises(ValueError, match="name:password"):
        Settings(auth="secret")
    Settings(host="0.0.0.0", auth="me:secret")


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=pyproject.toml",
        "gradio_api/file=../../etc/passwd",
        "docs",
    ],
)
def test_no_file_is_served(address, path):
    assert httpx.get(address + path).status_code in (403, 404)


def test_files_of_runs_are_not_served(address, root):
    assert httpx.get(f"{address}gradio_api/file={root}/python-docs.txt").status_code == 403


def test_another_host_is_refused(address):
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(address).status_code == 200


def test_large_uploads_are_refused(address):
    answer = httpx.post(address + "gradio_api/upload", files={"files": ("a.txt", b"a" * (10 << 20))})
    assert answer.status_code in (400, 413, 500) and "passwd" not in answer.text


def train_arguments(**change):
    values = {"text": "My own text", "own": "the cat sat. " * 30, "family": "GPT", "length": "30 s", "layers": 1}
    values |= {"width": 32, "rate": 0.005, "steps": 12, "batch": 4, "seed": 1, **change}
    return list(values.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own": ""}, "no text to train on"),
        ({"own": "a"}, "1 characters"),
        ({"own": "a" * 1_100_000}, "1,100,000 characters"),
        ({"rate": 1e300}, "maximum|learning rate"),
        ({"layers": 10**9}, "maximum|layers"),
        ({"width": 33}, "width|step|multiple"),
        ({"family": "<script>"}, "family|choices"),
        ({"seed": -(2**70)}, "minimum|seed"),
    ],
)
def test_training_past_the_page(client, session_id, change, message):
    import re

    assert re.search(message, refused(client, session_id, *train_arguments(**change), api_name="/train"))


def test_no_session_no_service(client):
    for stranger in ("", "../../etc", "a" * 500):
        assert "Load it again" in refused(client, stranger, *train_arguments(), api_name="/train")


def test_models_of_others_cannot_be_chosen(client, session_id):
    for key in ("run/run-1", "/etc", "shipped/../../etc"):
        assert refused(client, session_id, key, "the cat", *KNOBS, api_name="/next_token")


@pytest.mark.parametrize("prompt", ["", "x" * 5_000])
def test_prompts_past_the_page(client, session_id, prompt):
    assert "prompt" in refused(client, session_id, "shipped/gpt-tiny", prompt, *KNOBS, api_name="/next_token")


@pytest.mark.parametrize("knobs", [[1e9, 0, 1, 0], [1, -5, 1, 0], [1, 0, 7, 0], [1, 0, 1, float("inf")]])
def test_sliders_past_the_page(client, session_id, knobs):
    assert refused(client, session_id, "shipped/gpt-tiny", "the cat", *knobs, api_name="/next_token")


def test_tokens_that_are_tags_are_text(client, session_id):
    drawn = client.predict(
        session_id, "shipped/gpt-tiny", "<script>alert(1)</script> 🐈 مرحبا", *KNOBS, api_name="/next_token"
    )
    assert "<script" not in drawn and "The next token" in drawn


def test_a_bert_says_why_it_has_no_next_token(client, session_id):
    drawn = client.predict(session_id, "shipped/bert-tiny", "the [MASK]", *KNOBS, api_name="/next_token")
    assert "Not for this model" in drawn


def test_two_sessions_do_not_see_each_others_runs(address, root):
    first, second = Client(address, verbose=False), Client(address, verbose=False)
    ids = [each.predict("", api_name="/open") for each in (first, second)]
    assert ids[0] != ids[1]
    first.predict(ids[0], *train_arguments(), api_name="/train")
    assert refused(second, ids[1], "run-1", api_name="/delete_run")
    assert refused(second, ids[1], "run/run-1", "the cat", *KNOBS, api_name="/next_token")
    second.predict(ids[1], api_name="/stop")  # Of somebody else's: nothing happens.
    first.predict(ids[0], api_name="/stop")


def test_a_damaged_run_file_is_refused(client, session_id, tmp_path):
    from gradio_client import handle_file

    file = tmp_path / "run.zip"
    file.write_bytes(b"PK nothing")
    assert "cannot be opened" in refused(client, session_id, handle_file(file), api_name="/open_run")


def test_the_command_says_what_it_lacks(tmp_path):
    program = shutil.which("kerasllm", path=f"{sys.prefix}/bin") or "kerasllm"
    for arguments, message in ((["--host", "0.0.0.0"], "--auth"), (["--model", str(tmp_path)], "no config.json")):
        done = subprocess.run([program, "playground", *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_the_page_opens_before_the_backend_is_there(tmp_path):
    """Importing a backend takes longer than all else; `Warming` does it behind the page."""
    program = f"""
import sys
from pathlib import Path
from playground.app import build, make_page
from playground.warming import Warming
build(make_page(Path({str(tmp_path)!r}), Path("saved_models"), None), Warming())
assert not {{"keras", "torch", "jax", "tensorflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
