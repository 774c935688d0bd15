"""Clients that do nothing for long, and a server whose model's process is made up: only the transport counts."""

import asyncio
import contextlib
import functools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
import uvicorn

from kerasllm.serving.app import Settings, make_app
from kerasllm.serving.connection import Connection
from kerasllm.serving.listening import listen
from kerasllm.serving.supervisor import ModelProcess, Models

pytestmark = pytest.mark.one_backend

PATIENCE = 0.4
MANY = 10**9


class Scribe(ModelProcess):
    """Writes `max_tokens` pieces of 64 KiB, as fast as they are taken."""

    open_answers = 0

    async def run(self):
        self.info = {"task": "CausalLM", "limit": MANY, "slots": 4, "adapters": []}

    async def ask(self, do, answers=1, seconds=None, *, max_tokens, **_):
        self.open_answers += 1
        try:
            for _ in range(max_tokens):
                yield {"index": 0, "text": "a" * 65536, "count": 1, "finish": ""}
                await asyncio.sleep(0)
            yield {"index": 0, "text": "", "count": 0, "finish": "length"}
            yield {"done": {"prompt_tokens": 1, "completion_tokens": max_tokens}}
        finally:
            self.open_answers -= 1


@contextlib.contextmanager
def served(patience=PATIENCE, **options):
    """A server that waits so many seconds for its clients: its port and its model's process. It must end in time."""
    process = Scribe("scribe")
    app = make_app(Models([process]), Settings(patience=patience))
    http = functools.partial(Connection, patience=patience)
    server = uvicorn.Server(uvicorn.Config(app, http=http, log_config=None, **options))
    sockets = listen("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    until(lambda: process.ready)
    yield port, server, process
    server.should_exit = True
    thread.join(30 * patience)
    assert not thread.is_alive()


def until(done):
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def request(tokens, stream) -> bytes:
    body = json.dumps({"model": "scribe", "prompt": "a", "max_tokens": tokens, "stream": stream}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


STREAMED, WHOLE = request(MANY, stream=True), request(400, stream=False)


def connect(port, sent: bytes, tls=False) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    if tls:
        connection = ssl._create_unverified_context().wrap_socket(connection)
    connection.sendall(sent)
    return connection


@pytest.fixture(scope="module", params=["plain", "TLS"])
def tls(request, tmp_path_factory):
    """uvicorn's options for TLS with a certificate of a minute ago, or none."""
    if request.param == "plain":
        return {}
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, certificate = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "certificate.pem"))
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", *new, "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return {"ssl_keyfile": key, "ssl_certfile": certificate}


# What a client sends, and how many bytes it reads each tenth of a second.
SLOW = {
    "reads nothing of a stream": (STREAMED, 0),
    "reads nothing of an answer": (WHOLE, 0),
    "reads a stream byte by byte": (STREAMED, 1),
    "reads an answer byte by byte": (WHOLE, 1),
    "asks twice and reads nothing": (WHOLE + WHOLE, 0),
    "sends nothing": (b"", 0),
    "sends half of a head": (STREAMED[:30], 0),
    "sends no body": (STREAMED[: STREAMED.index(b"\r\n\r\n") + 4], 0),
    "sends half of a body": (STREAMED[:-10], 0),
}


@pytest.mark.parametrize("stopped", [False, True], ids=["", "and the server is told to stop"])
def test_clients_that_do_nothing_are_cut_and_keep_no_slot(stopped):
    with served() as (port, server, process):
        clients = {name: (connect(port, sent), reads) for name, (sent, reads) in SLOW.items()}
        until(lambda: process.open_answers)
        server.should_exit = stopped
        while server.server_state.connections or process.open_answers:
            for client, reads in clients.values():
                if reads:
                    with contextlib.suppress(OSError):
                        client.recv(reads)
            time.sleep(0.1)
        for client, _ in clients.values():
            client.close()


def test_a_client_that_leaves_or_half_closes_keeps_no_slot():
    with served() as (port, server, process):
        half, gone = connect(port, STREAMED), connect(port, STREAMED)
        until(lambda: process.open_answers == 2)
        half.shutdown(socket.SHUT_WR)
        gone.close()
        until(lambda: not (process.open_answers or server.server_state.connections))
        half.close()


def test_a_client_that_is_slow_but_goes_on_gets_its_whole_answer(tls):
    with served(patience=2.0, **tls) as (port, _, _):
        client = connect(port, WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), tls)
        size = 0
        for _ in range(150):  # Of a few KiB each: so slowly that what the system holds alone would take seconds.
            size += len(client.recv(2**18))
            time.sleep(0.02)
        while piece := client.recv(2**18):
            size += len(piece)
        assert size > 400 * 65536
        client.close()
