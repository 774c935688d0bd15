"""What OpenAI's clients may send, key by key: honored, harmless (the answer is the same), or refused by name.

The tables are complete against the types of the `openai` package: a key that is new in it fails here.
"""

import json
import typing

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartParam,
    ChatCompletionContentPartRefusalParam,
    ChatCompletionMessageParam,
    ChatCompletionStreamOptionsParam,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from served import FORBID_END

pytestmark = pytest.mark.one_backend

HONORED, HARMLESS, REFUSED = "honored", "harmless", "refused"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [1]}}}
NOTES = [
    ("metadata", {"run": "7"}, HARMLESS),
    ("prompt_cache_key", "a", HARMLESS),
    ("prompt_cache_options", {"ttl": "30m"}, HARMLESS),
    ("prompt_cache_retention", "24h", HARMLESS),
    ("safety_identifier", "a", HARMLESS),
    ("service_tier", "priority", HARMLESS),
    ("store", True, HARMLESS),
    ("user", "somebody", HARMLESS),
]

# key, value, verdict; and of what is honored, what must be true of the answer. `plain` is the answer without the key.
SAMPLING = [
    ("frequency_penalty", 2, HONORED, lambda answer, plain: answer != plain),
    ("frequency_penalty", 3, REFUSED),
    ("logit_bias", {**FORBID_END, "65": 100}, HONORED, lambda answer, _: set(answer) == {"A"}),
    ("logit_bias", {"9999": 1}, REFUSED),
    ("logit_bias", {"a": 1}, REFUSED),
    ("max_tokens", 2, HONORED, lambda answer, plain: plain.startswith(answer.rstrip("�")) and answer != plain),
    ("max_tokens", -1, REFUSED),
    ("model", "tiny", HONORED, lambda answer, plain: answer == plain),
    ("n", 1, HONORED, lambda answer, plain: answer == plain),
    ("n", 0, REFUSED),
    ("presence_penalty", -2, HONORED, lambda answer, plain: answer != plain),
    ("presence_penalty", "1", REFUSED),
    ("seed", -(2**63), HONORED, lambda answer, plain: answer == plain),
    ("seed", 1.5, REFUSED),
    ("stop", None, HONORED, lambda answer, plain: answer == plain),
    ("stop", [], HONORED, lambda answer, plain: answer == plain),
    ("stop", ["a"] * 17, REFUSED),
    ("stream", False, HONORED, lambda answer, plain: answer == plain),
    ("stream_options", {"include_usage": True}, REFUSED),  # without a stream
    ("temperature", 0, HONORED, lambda answer, plain: answer == plain),
    ("temperature", 2.5, REFUSED),
    ("top_p", 0, HONORED, lambda answer, plain: answer == plain),
    ("top_p", -1, REFUSED),
    ("user", "somebody", HARMLESS),
]
COMPLETIONS = [
    *SAMPLING,
    ("best_of", 1, HARMLESS),
    ("best_of", 2, REFUSED),
    ("echo", True, HONORED, lambda answer, plain: answer == "To be" + plain),
    ("logprobs", 1, HONORED, lambda answer, plain: answer == plain),
    ("logprobs", 99, REFUSED),
    ("prompt", [84, 111, 32, 98, 101], HONORED, lambda answer, plain: answer == plain),
    ("prompt", None, HONORED, lambda answer, plain: answer != plain),
    ("prompt", [84, "a"], REFUSED),
    ("suffix", None, HARMLESS),
    ("suffix", "", HARMLESS),
    ("suffix", "the end", REFUSED),
]
CHAT = [
    *SAMPLING,
    *NOTES,
    ("audio", {"voice": "a", "format": "wav"}, REFUSED),
    ("function_call", "none", HARMLESS),
    ("function_call", {"name": "f"}, REFUSED),
    ("functions", [], HARMLESS),
    ("functions", [{"name": "f"}], REFUSED),
    ("logprobs", True, HONORED, lambda answer, plain: answer == plain),
    ("max_completion_tokens", 2, REFUSED),  # with `max_tokens`, its old name
    ("messages", [], REFUSED),
    ("messages", [{"role": "user", "content": "Ho"}], HONORED, lambda answer, plain: answer != plain),
    ("modalities", ["text"], HARMLESS),
    ("modalities", ["text", "audio"], REFUSED),
    ("moderation", {"model": "m"}, REFUSED),
    ("parallel_tool_calls", False, HARMLESS),
    ("prediction", {"type": "content", "content": "a"}, HARMLESS),
    ("reasoning_effort", "none", HARMLESS),
    ("reasoning_effort", "high", REFUSED),
    ("response_format", {"type": "text"}, HONORED, lambda answer, plain: answer == plain),
    ("response_format", {"type": "json_object"}, HONORED, lambda answer, _: answer.startswith("{")),
    ("response_format", SCHEMA, HONORED, lambda answer, _: answer == "1"),
    ("response_format", {"type": "grammar", "grammar": "a"}, REFUSED),
    ("tool_choice", "auto", HARMLESS),
    ("tool_choice", "required", REFUSED),
    ("tools", [], HARMLESS),
    ("tools", [TOOL], REFUSED),
    ("top_logprobs", 2, REFUSED),  # without `logprobs`
    ("verbosity", "medium", HARMLESS),
    ("verbosity", "low", REFUSED),
    ("web_search_options", {}, REFUSED),
]
# Of other servers, which clients of theirs send here, too.
MORE_CHAT = [
    ("add_generation_prompt", True, HARMLESS),
    ("add_generation_prompt", False, REFUSED),
    ("continue_final_message", False, HARMLESS),
    ("continue_final_message", True, REFUSED),
    ("chat_template", "a", REFUSED),
    ("min_p", 0.5, HONORED, lambda answer, plain: answer == plain),
    ("top_k", 1, HONORED, lambda answer, plain: answer == plain),
    ("repetition_penalty", 100.0, HONORED, lambda answer, plain: answer != plain),
]
EMBEDDINGS = [
    ("dimensions", 16, HARMLESS),
    ("dimensions", 8, REFUSED),
    ("encoding_format", "float", HARMLESS),
    ("encoding_format", "base64", HONORED, lambda answer, _: isinstance(answer, str)),
    ("encoding_format", "int8", REFUSED),
    ("input", ["to be"], HONORED, lambda answer, plain: answer == plain),
    ("input", [], REFUSED),
    ("input", 5, REFUSED),
    ("model", "vectors", HARMLESS),
    ("user", "somebody", HARMLESS),
]
ASK = {"role": "user", "content": "Hello"}
# Messages, one by one: what is said, the verdict, and the same said plainly.
MESSAGES = [
    ({"role": "system", "content": "Be."}, HONORED, {"role": "system", "content": "Be."}),
    ({"role": "developer", "content": "Be."}, HONORED, {"role": "system", "content": "Be."}),
    ({"role": "user", "content": None}, REFUSED, "content"),
    ({"role": "user"}, REFUSED, "content"),
    ({"role": "user", "content": "a", "name": "Ann"}, HARMLESS, {"role": "user", "content": "a"}),
    ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, HONORED,
     {"role": "user", "content": "ab"}),
    ({"role": "user", "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
     HARMLESS, {"role": "user", "content": "a"}),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}, REFUSED, "'image_url'"),
    ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, REFUSED, "'input_audio'"),
    ({"role": "user", "content": [{"type": "file", "file": {"file_id": "a"}}]}, REFUSED, "'file'"),
    ({"role": "assistant", "content": None}, HARMLESS, {"role": "assistant", "content": ""}),
    ({"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "annotations": [], "audio": None,
      "function_call": None}, HARMLESS, {"role": "assistant", "content": "a"}),
    ({"role": "assistant", "refusal": "no"}, HONORED, {"role": "assistant", "content": "no"}),
    ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, HONORED,
     {"role": "assistant", "content": "no"}),
    ({"role": "assistant", "content": "a", "audio": {"id": "a"}}, REFUSED, "audio"),
    ({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}, REFUSED, "tool_calls"),
    ({"role": "assistant", "tool_calls": [CALL]}, REFUSED, "template"),  # which writes none
    ({"role": "user", "content": "a", "tool_calls": [CALL]}, REFUSED, "assistant"),
    ({"role": "tool", "content": "7", "tool_call_id": "1"}, HARMLESS, {"role": "tool", "content": "7"}),
    ({"role": "user", "content": "7", "tool_call_id": "1"}, REFUSED, "tool_call_id"),
    ({"role": "function", "content": "7", "name": "f"}, REFUSED, "role"),
    ({"role": "user", "content": "a", "mood": "glad"}, REFUSED, "messages[0].mood"),
]  # fmt: skip
ROUTES = {
    "/v1/completions": (COMPLETIONS, {"prompt": "To be", "max_tokens": 6}, lambda answer: answer["choices"][0]["text"]),
    "/v1/chat/completions": (
        [*CHAT, *MORE_CHAT],
        {"messages": [ASK], "max_tokens": 12},
        lambda answer: answer["choices"][0]["message"]["content"],
    ),
    "/v1/embeddings": (EMBEDDINGS, {"input": "to be"}, lambda answer: answer["data"][0]["embedding"]),
}


def keys(*types) -> set[str]:
    return {key for each in types for key in each.__required_keys__ | each.__optional_keys__}


def literals(types, key) -> set[str]:
    return {value for each in types for value in typing.get_args(typing.get_type_hints(each)[key])}


def test_the_tables_are_complete():
    streaming, whole = (
        [module.CompletionCreateParamsStreaming, module.CompletionCreateParamsNonStreaming]
        for module in (completion_create_params, chat_create_params)
    )
    assert {case[0] for case in COMPLETIONS} == keys(*streaming)
    assert {case[0] for case in CHAT} == keys(*whole)
    assert {case[0] for case in EMBEDDINGS} == keys(embedding_create_params.EmbeddingCreateParams)
    assert keys(ChatCompletionStreamOptionsParam) == {"include_usage", "include_obfuscation"}
    messages = typing.get_args(ChatCompletionMessageParam)
    said = [case[0] for case in MESSAGES]
    assert {message["role"] for message in said} == literals(messages, "role")
    assert {key for message in said for key in message} - {"annotations", "mood"} == keys(*messages)
    parts = [part for message in said if isinstance(message.get("content"), list) for part in message["content"]]
    known = [*typing.get_args(ChatCompletionContentPartParam), ChatCompletionContentPartRefusalParam]
    assert {part["type"] for part in parts} == literals(known, "type")
    formats = typing.get_args(chat_create_params.ResponseFormat)
    asked = {value["type"] for key, value, *_ in CHAT if key == "response_format"}
    assert asked - {"grammar"} == literals(formats, "type")
    assert ChatCompletionAssistantMessageParam in messages


def post(server, path, **body):
    model = "vectors" if path == "/v1/embeddings" else "tiny"
    usual = {} if path == "/v1/embeddings" else {"temperature": 0, "logit_bias": FORBID_END}
    return server.http.post(path, json={"model": model, **usual, **body})


def check_refused(answer, key):
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == key and key in error["message"], answer.text


@pytest.mark.parametrize("path", ROUTES)
def test_every_key_is_honored_harmless_or_refused_by_name(path, server):
    cases, base, read = ROUTES[path]
    plain = read(post(server, path, **base).json())
    for key, value, verdict, *holds in cases:
        answer = post(server, path, **{**base, key: value})
        if verdict == REFUSED:
            check_refused(answer, key)
            continue
        assert answer.status_code == 200, (key, value, answer.text)
        expected = holds[0](read(answer.json()), plain) if holds else read(answer.json()) == plain
        assert expected, (key, value, answer.text, plain)


@pytest.mark.parametrize(("said", "verdict", "same"), MESSAGES, ids=lambda value: json.dumps(value)[:60])
def test_every_kind_of_message_is_read_or_refused_by_name(said, verdict, same, server):
    answer = post(server, "/v1/chat/completions", messages=[said, ASK], max_tokens=3)
    if verdict == REFUSED:
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"
        assert same in answer.json()["error"]["message"]
        return
    assert answer.status_code == 200, answer.text
    expected = post(server, "/v1/chat/completions", messages=[same, ASK], max_tokens=3).json()
    assert (answer.json()["choices"], answer.json()["usage"]) == (expected["choices"], expected["usage"])


@pytest.mark.parametrize(
    ("options", "status"), [({"include_usage": True}, 200), ({"include_obfuscation": False}, 200),
                            ({"include_obfuscation": True}, 400), ({"include_all": True}, 400)]
)  # fmt: skip
def test_options_of_streams(options, status, server):
    body = {"prompt": "a", "max_tokens": 2, "stream": True, "stream_options": options}
    answer = post(server, "/v1/completions", **body)
    assert answer.status_code == status
    if status == 400:
        check_refused(answer, "stream_options")
    else:
        lines = [line for line in answer.text.splitlines() if line]
        assert lines[-1] == "data: [DONE]" and (json.loads(lines[-2][6:])["choices"] == []) == (
            "include_usage" in options
        )


def test_what_comes_with_another_key(server):
    chat = {"messages": [ASK], "max_completion_tokens": 4, "logprobs": True, "top_logprobs": 2}
    choice = post(server, "/v1/chat/completions", **chat).json()["choices"][0]
    assert [len(token["top_logprobs"]) for token in choice["logprobs"]["content"]] == [2] * 4
    answer = post(server, "/v1/completions", prompt=["a", "b"], n=2, best_of=2, max_tokens=3, logit_bias=FORBID_END)
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2, 3]
    assert answer.json()["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("HEAD", "/health", 200, ""),
        ("HEAD", "/v1/models", 200, ""),
        ("HEAD", "/v1/models/none", 404, ""),
        ("GET", "/v1/models/tiny", 200, '"tiny"'),
        ("GET", "/v1/models/none", 404, "'none' does not exist"),
        ("DELETE", "/v1/models/tiny", 405, "Method Not Allowed"),
        ("GET", "/v1/completions", 405, "GET /v1/completions"),
        ("PUT", "/v1/completions", 405, "PUT /v1/completions"),
        ("OPTIONS", "/v1/completions", 405, "OPTIONS"),
        ("POST", "/health", 405, "POST /health"),
        ("POST", "/v1/responses", 404, "/v1/chat/completions"),
        ("GET", "/v1/responses/a", 404, "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/", 404, "/openapi.json"),
        ("POST", "/v1/audio/speech", 404, "/openapi.json"),
        ("GET", "/", 404, "/openapi.json"),
    ],
)
def test_routes_and_methods(method, path, status, said, server):
    answer = server.http.request(method, path)
    assert answer.status_code == status and answer.headers["x-request-id"]
    assert said in answer.text if method != "HEAD" else not answer.content and int(answer.headers["content-length"])
    if status != 200 and method != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("headers", "body", "status", "said"),
    [
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"\x1f\x8b", 415, "gzip"),
        ({"Content-Type": "text/plain"}, b"{}", 400, "Content-Type: application/json"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"model=tiny", 400, "Content-Type: application/json"),
        ({"Content-Type": "application/json"}, b"", 400, "The body is empty"),
        ({"Content-Type": "application/json"}, b"{", 400, "JSON"),
        ({"Content-Type": "application/json"}, b'{"model": "tiny", "temperature": NaN}', 400, "temperature"),
        ({"Content-Type": "application/json"}, b'{"model": "tiny", "logit_bias": {"1": Infinity}}', 400, "logit_bias"),
        ({"Content-Type": "application/json"}, b'{"model": "tiny", "prompt": "\\ud800"}', 400, "unicode"),
        ({"Content-Type": "application/json; charset=utf-8"}, b'{"model": "tiny", "max_tokens": 1}', 200, "choices"),
    ],
)
def test_bodies(headers, body, status, said, server):
    answer = server.http.post("/v1/completions", headers=headers, content=body)
    assert answer.status_code == status and said in answer.text
