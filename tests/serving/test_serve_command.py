"""`kerasllm serve` and `kerasllm playground`: what is wrong is said in one line, at once, and no signal is missed."""

import os
import signal
import socket
import threading
import time

import pytest
from typer.testing import CliRunner

from kerasllm.cli import app
from kerasllm.serving import command
from kerasllm.serving.supervisor import ModelProcess

pytestmark = pytest.mark.one_backend

FOREIGN = "192.0.2.1"  # of documentation: nobody's
KEY = ("--api-key", "k")
WRONG = {
    "a port that is taken": (["model", "--port", "TAKEN"], "port is taken"),
    "a port above 65535": (["model", "--port", "99999"], "port=99999"),
    "a port below 0": (["model", "--port", "-1"], "port=-1"),
    "an address of another machine": (["model", "--host", FOREIGN, *KEY], "not this machine's"),
    "a host that does not resolve": (["model", "--host", "no.such.invalid", *KEY], "no.such.invalid"),
    "a host that is no name": (["model", "--host", "a" * 300, *KEY], "no address"),
    "a host that others reach, without a key": (["model", "--host", "0.0.0.0"], "--api-key"),
    "a directory that is not there": (["nothing"], "config.json"),
    "a directory without a model": (["empty"], "config.json"),
    "a file": (["file"], "config.json"),
    "a config that is not JSON": (["broken"], "not JSON"),
    "a config that is a list": (["list"], "JSON object"),
    "a config that is not text": (["binary"], "not JSON"),
    "two models of one name": (["model", "other/model"], "model, model"),
    "one model twice": (["model", "model"], "model, model"),
    "an adapter without a name": (["model", "--adapter", "model"], "NAME=DIR"),
    "an adapter's directory without one": (["model", "--adapter", "a=empty"], "adapter_config.json"),
    "two adapters of one name": (["model", "--adapter", "a=adapter", "--adapter", "a=adapter"], "'a' is taken"),
    "an adapter that is named like the model": (["model", "--adapter", "model=adapter"], "'model' is taken"),
    "a certificate without its key": (["model", "--ssl-certfile", "file"], "its key"),
    "a certificate that is not there": (["model", "--ssl-certfile", "no", "--ssl-keyfile", "no"], "PEM"),
    "a certificate that is none": (["model", "--ssl-certfile", "file", "--ssl-keyfile", "file"], "PEM"),
    "an origin with a path": (["model", "--cors-origin", "http://a.b/"], "--cors-origin 'http://a.b/'"),
}


@pytest.fixture
def taken(monkeypatch, tmp_path):
    """Some directories to serve, as the current one, and a port that somebody listens at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KERASLLM_API_KEY", raising=False)
    for name, config in {"model": "{}", "other/model": "{}", "broken": "{", "list": "[]", "empty": None}.items():
        (tmp_path / name).mkdir(parents=True)
        if config:
            (tmp_path / name / "config.json").write_text(config)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "config.json").write_bytes(b"\x80\xff")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "file").write_text("file")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield str(listening.getsockname()[1])


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line_before_a_model_is_loaded(case, taken, monkeypatch):
    monkeypatch.setattr(command.asyncio, "run", lambda _: pytest.fail("The server was started."))
    arguments, said = WRONG[case]
    port = [] if "--port" in arguments else ["--port", "0"]
    result = CliRunner().invoke(app, ["serve", *(taken if one == "TAKEN" else one for one in arguments), *port])
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and said in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "TAKEN"], "port is taken"),
        (["--port", "99999"], "port=99999"),
        (["--port", "-1"], "port=-1"),
        (["--host", FOREIGN, "--auth", "a:b"], "not this machine's"),
        (["--host", "no.such.invalid", "--auth", "a:b"], "no.such.invalid"),
    ],
)
def test_the_playground_says_what_is_wrong_with_its_address(options, said, taken):
    options = [taken if one == "TAKEN" else one for one in options]
    result = CliRunner().invoke(app, ["playground", "--no-browser", *options])
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1 and said in result.stderr


def program(tmp_path, monkeypatch, lines: str) -> None:
    """Lets a shell script be the model's process."""
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o700)
    monkeypatch.setattr("kerasllm.serving.supervisor.sys.executable", str(path))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("""echo '{"failed": "Unknown model_type"}'; exit 1""", "Unknown model_type"),
        ("exit 7", "its process ended with the exit code 7"),
        ("kill -9 $$", "its process ended with the exit code -9"),
    ],
)
def test_a_model_that_does_not_load_ends_the_server(lines, said, taken, monkeypatch, tmp_path):
    program(tmp_path, monkeypatch, lines)
    result = CliRunner().invoke(app, ["serve", "model", "--port", "0"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: The model 'model' could not be loaded: {said}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", ["starting", "loading"])
def test_a_signal_ends_a_server_whose_model_is_not_loaded_yet(stage, number, taken, monkeypatch, tmp_path):
    """The model's process reads no line while it loads; this one never does."""
    program(tmp_path, monkeypatch, "exec sleep 600")
    processes = []

    def kill():
        if stage == "loading":
            while not (processes and processes[0].pid):
                time.sleep(0.01)
        os.kill(os.getpid(), number)

    began = ModelProcess.run

    async def run(self):
        processes.append(self)
        if stage == "starting":
            kill()
        await began(self)

    monkeypatch.setattr(ModelProcess, "run", run)
    if stage == "loading":
        threading.Thread(target=kill, daemon=True).start()
    command.serve(["model"], port=0)
    assert processes[0]._process is None or processes[0]._process.returncode is not None
