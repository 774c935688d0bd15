"""Pages of other origins that call the server, with what OpenAI's JavaScript client sends. No model is needed."""

import pytest
from fastapi.testclient import TestClient

from kerasllm.serving.app import Settings, make_app
from kerasllm.serving.supervisor import ModelProcess, Models

pytestmark = pytest.mark.one_backend

PAGE, OTHER = "https://page.example", "https://other.example"
SENT = (
    "authorization,content-type,idempotency-key,openai-organization,openai-project,x-stainless-arch,"
    "x-stainless-helper-method,x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-retry-count,"
    "x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
)


@pytest.fixture(scope="module")
def app():
    return make_app(Models([ModelProcess("none")]), Settings(api_key="secret", cors_origins=[PAGE]))


@pytest.fixture(scope="module")
def client(app):
    return TestClient(app, raise_server_exceptions=False)  # not entered, so no model is started


def asked(client, path, method, origin=PAGE, **headers):
    preflight = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": SENT}
    return client.options(path, headers=preflight | headers)


@pytest.mark.parametrize(("path", "method"), [("/v1/chat/completions", "POST"), ("/v1/models", "GET")])
def test_a_page_may_send_what_the_client_sends(path, method, client):
    for more in ({}, {"Access-Control-Request-Private-Network": "true"}):
        answer = asked(client, path, method, **more)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == PAGE
        assert set(SENT.split(",")) <= set(answer.headers["access-control-allow-headers"].lower().split(","))
        assert method in answer.headers["access-control-allow-methods"]
        assert int(answer.headers["access-control-max-age"]) >= 3600


def test_other_pages_may_not(client):
    answer = asked(client, "/v1/models", "GET", origin=OTHER)
    assert answer.status_code == 400 and "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": OTHER}).headers


def test_a_page_may_read_every_answer_and_its_headers(client, app, monkeypatch):
    def fail():
        raise RuntimeError("a fault")

    monkeypatch.setattr(app.state.metrics, "text", fail)
    key = {"Authorization": "Bearer secret"}
    cases = [("/v1/models", {}, 401), ("/v1/models", key, 200), ("/none", key, 404), ("/health", {}, 503)]
    for path, headers, status in [*cases, ("/metrics", key, 500)]:
        answer = client.get(path, headers={"Origin": PAGE, **headers})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
        exposed = answer.headers["access-control-expose-headers"].lower()
        assert "x-request-id" in exposed and "retry-after" in exposed and answer.headers["x-request-id"]
        assert status == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}
