"""What a server is put through: too much, nonsense, clients that leave, a killed engine, and being told to stop."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import random
import signal
import socket
import time

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from served import FORBID_END, KEY, Server, write_causal

from kerasllm.serving.errors import ApiError
from kerasllm.serving.supervisor import ModelProcess

pytestmark = pytest.mark.one_backend

LONG = {"model": "tiny", "prompt": "On and", "max_tokens": 4000, "logit_bias": FORBID_END}
SHORT = {"model": "tiny", "prompt": "To be", "max_tokens": 8, "temperature": 0, "logit_bias": FORBID_END}
WRONG = [b"", b'"', b"\\ud800", b"{", b"9" * 30, b"\x00", b"null"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_causal(tmp_path_factory.mktemp("models") / "tiny", length=4096)


@pytest.fixture(scope="module")
def server(directory):
    server = Server([directory], "--slots", "4", "--max-waiting", "2").wait()
    yield server
    assert server.process.poll() is None
    assert server.stop()[0] == 0


def complete(server, **changes):
    return server.http.post("/v1/completions", json={**SHORT, **changes})


def written(body) -> bytes:
    """A request, byte for byte."""
    body = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def connected(server, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(sent)
    return connection


def check_served(server):
    answer = complete(server)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


@pytest.mark.parametrize(
    ("status", "changes", "said"),
    [
        (404, {"model": "other"}, "'other' does not exist"),
        (400, {"prompt": 5}, "prompt"),
        (400, {"max_tokens": "8"}, "max_tokens"),
        (400, {"temperature": True}, "temperature"),
        (400, {"max_tokens": 4092}, "4096"),
        (400, {"bestof": 3}, "Unsupported parameter: 'bestof'"),
        (400, {"n": 129}, "128"),
        (400, {"stop": ["x"] * 17}, "stop"),
        (400, {"logit_bias": {"300": 1}}, "vocabulary of 257"),
        (400, {"prompt": [[1, 2], [300]]}, "300"),
        (400, {"response_format": {"type": "json_schema"}}, "json_schema"),
        (400, {"response_format": {"type": "regex", "regex": "("}}, "regex"),
        (
            400,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no"}}}},
            "type",
        ),
    ],
)
def test_what_is_wrong_is_refused_and_named(server, status, changes, said):
    answer = complete(server, **changes)
    assert answer.status_code == status and said in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def test_only_health_is_open_without_the_key(server):
    with httpx.Client(base_url=server.url) as anyone:
        paths = [("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/x")]
        for method, path in [*paths, ("POST", "/v1/completions"), ("POST", "/tokenize")]:
            assert anyone.request(method, path).status_code == 401, path
        for wrong in ("Bearer x", f"Bearer {KEY}x", f"Basic {KEY}", KEY):
            assert anyone.get("/v1/models", headers={"Authorization": wrong}).status_code == 401
        assert anyone.get("/health").json() == {"status": "ok"}


def test_a_form_is_kept_to(server):
    forms = [{"type": "regex", "regex": "(yes|no) [0-9]{3}"}]
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    forms.append({"type": "json_schema", "json_schema": {"name": "one", "schema": schema}})
    texts = [
        complete(server, response_format=form, max_tokens=64, logit_bias={}, temperature=1, seed=3).json()["choices"][0]
        for form in forms
    ]
    assert texts[0]["text"][:-4] in ("yes", "no") and texts[0]["text"][-3:].isdigit()
    assert json.loads(texts[1]["text"]) in ({"a": 1}, {"a": 22})
    assert [choice["finish_reason"] for choice in texts] == ["stop", "stop"]


def test_a_stop_string_is_held_back_and_left_out(server):
    whole = complete(server, max_tokens=40).json()["choices"][0]["text"]
    stop = next(whole[i : i + 2] for i in range(4, 30) if "\ufffd" not in whole[i : i + 2])
    expected = whole[: whole.index(stop)]
    stopped = complete(server, max_tokens=40, stop=stop).json()["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (expected, "stop")
    with server.http.stream(
        "POST", "/v1/completions", json={**SHORT, "max_tokens": 40, "stop": stop, "stream": True}
    ) as s:
        lines = [line.removeprefix("data: ") for line in s.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    pieces = [json.loads(line)["choices"][0]["text"] for line in lines]
    assert "".join(pieces) == expected


def test_a_full_queue_says_so_and_clients_that_leave_make_room(server):
    [engine] = server.engines
    engine.suspend()  # So that none of them is done too early.
    connections = [connected(server, written({**LONG, "stream": stream})) for stream in (True,) * 4 + (False,) * 2]
    server.until("tiny", pending=6)
    refused = complete(server)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    engine.resume()
    for connection in connections:
        connection.close()
    server.until_idle("tiny")
    check_served(server)


def test_a_client_that_goes_away_frees_its_slot(server):
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json={**LONG, "n": 4}, timeout=0.3)
    server.until_idle("tiny")
    check_served(server)


def test_nonsense_is_refused_and_harms_nobody(server):
    draw = random.Random(0)
    valid = json.dumps({**SHORT, "max_tokens": 1}).encode()
    junk = [b"null", b"[]", b'"', b"{" * 2000, b"[" * 100_000, b'{"model": 1e999}', b"\xff\xfe", b"1" * 5000, b"{}"]
    refused = 0
    for number in range(500):
        body = bytearray(valid)
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(body))
            body[place : place + draw.randint(0, 3)] = draw.choice(WRONG)
        body = draw.choice(junk) if number % 10 == 0 else bytes(body)
        kind = draw.choice(["application/json", "text/plain", "application/json; charset=utf-16"])
        answer = server.http.post("/v1/completions", content=body, headers={"Content-Type": kind})
        assert answer.status_code in (200, 400, 404), (answer.status_code, body)
        refused += answer.status_code != 200
    assert refused > 400
    assert server.stats("tiny")["restarts_total"] == 0
    check_served(server)


def test_a_body_that_is_too_large_is_refused(server):
    assert complete(server, prompt="a" * 5_000_000).status_code == 413

    def chunks():
        yield from (b"a" * 100_000 for _ in range(60))

    answer = server.http.post("/v1/completions", content=chunks())
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    check_served(server)


def test_slow_and_half_closed_clients_hold_up_nobody(server):
    request = written(LONG | {"stream": True})
    slow = [connected(server, request[: len(request) * part // 20]) for part in range(1, 20)]
    text = check_served(server)
    half = connected(server, request)
    half.shutdown(socket.SHUT_WR)
    unread = connected(server, request)  # never reads what it asked for
    assert check_served(server) == text
    for connection in (*slow, half, unread):
        connection.close()
    server.until_idle("tiny")


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_of_any_form_is_a_server_error(server, mode):
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=dict(server.http.headers))
    statuses = set()
    for operation in described.get_all_operations():

        @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy(generation_mode=mode))
        def check(case):
            response = case.call(headers={"Authorization": f"Bearer {KEY}"})
            statuses.add(response.status_code)
            assert response.status_code < 500, (case.path, response.status_code, response.text)

        with contextlib.suppress(Unsatisfiable):  # What has no arguments cannot be asked wrongly.
            check()
    assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses


def test_a_killed_engine_is_started_again_and_a_server_that_is_told_to_stop_finishes(directory):
    server = Server([directory], "--slots", "4").wait()
    text = check_served(server)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        [engine] = server.engines
        engine.suspend()
        calls = [pool.submit(complete, server, max_tokens=4000) for _ in range(8)]
        server.until("tiny", pending=8)
        engine.resume()
        server.until("tiny", running=4)
        engine.kill()
        answers = [call.result() for call in calls]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["error"]["code"] for answer in answers} <= {"crashed", "not_ready"}
    assert server.http.get("/health").status_code == 503
    server.wait()
    assert check_served(server) == text and server.stats("tiny")["restarts_total"] == 1
    [engine] = server.engines
    with concurrent.futures.ThreadPoolExecutor(7) as pool:
        engine.suspend()
        calls = [pool.submit(complete, server, max_tokens=200) for _ in range(6)]
        server.until("tiny", pending=6)
        stopped = pool.submit(server.stop)
        with pytest.raises(httpx.TransportError):
            while httpx.get(f"{server.url}/health"):
                time.sleep(0.02)
        engine.resume()
        assert [call.result().json()["usage"]["completion_tokens"] for call in calls] == [200] * 6
        assert stopped.result()[0] == 0
    assert not engine.is_running()


def test_a_model_that_hangs_is_ended(directory):
    async def run():
        process = ModelProcess(directory, slots=1, hang_seconds=1.0)
        running = asyncio.create_task(process.run())
        await asyncio.wait_for(process.changed.wait(), 60)
        hanging = process.pid
        assert (await process.call("tokenize", text="ab"))["count"] == 2
        os.kill(hanging, signal.SIGSTOP)
        await asyncio.sleep(1.7)  # Nobody asks for anything: that it is silent means nothing.
        assert process.pid == hanging and process.ready
        with pytest.raises(ApiError, match="longer than it may") as late:
            await process.call("tokenize", seconds=0.1, text="ab")
        assert (late.value.status, late.value.code, process.pending) == (504, "timeout", 0)
        with pytest.raises(ApiError, match="Try again") as raised:
            await process.call("tokenize", text="ab")
        assert raised.value.status == 503
        assert not (process.ready or psutil.pid_exists(hanging))
        await process.stop()
        await running

    asyncio.run(run())
