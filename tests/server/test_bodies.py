"""What comes in is bounded and checked, and what is wrong is told by its field."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from llama4_edge import Model
from llama4_edge.server.body import parsed
from llama4_edge.server.errors import ApiError
from llama4_edge.server.schema.openai import ChatRequest
from llama4_edge.server.settings import ServerSettings
from tests.server.running import RunningServer, running_server

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def small(tiny_model: Model) -> Iterator[RunningServer]:
    """A server that takes little."""
    with running_server(tiny_model, ServerSettings(max_body=2000)) as server:
        yield server


def post(client: httpx.Client, body: object) -> httpx.Response:
    return client.post(CHAT, json=body)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [3]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "x", "content": ""}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages[0].content[0].text", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
         "messages[0].content[0].type", "invalid_value"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://a/b.png"}}]}]},
         "messages[0].content[0].image_url.url", "invalid_value"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
         "messages[0].content[0].image_url.url", "invalid_value"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
         "messages", "invalid_value"),
        ({"temperature": "warm"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": -2}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 1000}, "n", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"stop": ["x"] * 65}, "stop", "invalid_value"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"100000": 1}}, "logit_bias", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "invalid_value"),
        ({"tools": [{"type": "code"}]}, "tools[0].type", "invalid_value"),
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"audio": {}}, "audio", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(
    tiny: httpx.Client, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = post(tiny, {"messages": HI, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    ("path", "fields", "told"),
    [
        (CHAT, {"messages": None}, "messages: found null, expected a list."),
        (CHAT, {"messages": HI, "temperature": True},
         "temperature: found true, expected a number."),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "x"}]}]},
         "messages[0].content[0].type: found 'x', expected 'text' or 'image_url'."),
        ("/v1/responses", {"input": 5}, "input: found 5, expected a string or a list."),
        ("/v1/responses", {"input": [{"role": "user", "content": None}]},
         "input[0].content: found null, expected a string or a list."),
        ("/v1/responses", {"background": True}, "background: found true, expected false."),
        ("/v1/messages", {"model": "x", "max_tokens": 1, "messages": HI, "system": 5},
         "system: found 5, expected a string or a list."),
        ("/v1/messages", {"model": "x", "max_tokens": 1, "messages": HI, "stop_sequences": [""]},
         "stop_sequences[0]: found '', expected a length of at least 1."),
    ],
)  # fmt: skip
def test_what_was_found_and_expected_is_told_in_the_words_of_json(
    tiny: httpx.Client, path: str, fields: dict[str, Any], told: str
) -> None:
    answer = tiny.post(path, json=fields)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, told)


def test_a_body_that_is_encoded_is_415(tiny: httpx.Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = tiny.post(CHAT, content=gzip.compress(b"{}"), headers=headers)
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert "found Content-Encoding 'gzip'" in answer.json()["error"]["message"]


def test_what_clients_send_beside_the_question_is_accepted(tiny: httpx.Client) -> None:
    fields = {
        "model": "gpt-4o", "user": "me", "metadata": {"a": "b"}, "store": True, "n": None,
        "service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "y",
        "reasoning_effort": "low", "verbosity": "low", "modalities": ["text"], "tools": None,
        "stop": None, "seed": -1, "max_tokens": None, "max_completion_tokens": 1, "audio": None,
        "response_format": {"type": "text"}, "parallel_tool_calls": True, "logit_bias": {},
        "cache_prompt": True, "typ_p": 0.9, "min_p": 0.05, "top_k": 20, "repeat_penalty": 1.1,
        "dry_penalty_last_n": -1, "frequency_penalty": 0.1, "presence_penalty": 0.1,
    }  # fmt: skip
    assert post(tiny, {"messages": HI, **fields}).status_code == 200


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the body is empty, expected a JSON object"),
        (b"null", "not an object, found null"),
        (b"{", "not JSON"),
        (b"[]", "not an object"),
        (b"\xff", "not UTF-8 text, found byte 0xff at 0"),
        (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b'{"messages": ' + b'{"a":' * 150 + b"1" + b"}" * 150 + b"}", "nested too deeply"),
        (b'{"messages": "\\ud800"}', "not Unicode"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"messages": "x", "temperature": NaN}', "temperature: found NaN, expected a number"),
    ],
)
def test_what_is_no_json_is_refused(tiny: httpx.Client, data: bytes, said: str) -> None:
    answer = tiny.post(CHAT, content=data, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [3] * 5000}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}] * 5000}]},
         "messages[0].content[0].type"),
        ({"stop": [3] * 5000}, "stop[0]"),
        ({"logit_bias": [[1, "x"]] * 5000}, "logit_bias[0][1]"),
        ({"logit_bias": {str(token): "x" for token in range(5000)}}, None),
        ({f"other{number}": 1 for number in range(5000)}, None),
    ],
)  # fmt: skip
def test_many_faults_are_not_all_looked_for(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(json.dumps({"messages": HI, **fields}).encode(), ChatRequest)
    assert (caught.value.status, caught.value.param) == (400, param)
    cause = caught.value.__context__
    assert isinstance(cause, ValidationError)
    assert param is None or cause.error_count() < 10
    assert len(caught.value.message) < 200


def test_another_type_of_body_is_415(tiny: httpx.Client) -> None:
    answer = tiny.post(CHAT, content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert "-H 'Content-Type: application/json'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413(small: RunningServer, chunked: bool) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 3000}]}).encode()
    content = iter([body[:1500], body[1500:]]) if chunked else body
    with small.client() as client:
        headers = {"Content-Type": "application/json"}
        answer = client.post(CHAT, content=content, headers=headers)
        assert answer.status_code == 413
        assert "at most 2.0 KiB" in answer.json()["error"]["message"]
        assert client.get("/health").status_code == 200


def test_a_body_that_comes_too_slowly_is_408(tiny_model: Model) -> None:
    settings = ServerSettings(body_seconds=0.5)
    with running_server(tiny_model, settings) as server, server.connect() as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert connection.recv(10_000).startswith(b"HTTP/1.1 408")


def test_what_is_no_http_is_an_error_object(tiny_server: RunningServer) -> None:
    with tiny_server.connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/health", 405),
        ("BREW", CHAT, 405),
        ("GET", "/%00/..%2f", 404),
    ],
)
def test_unknown_paths_and_methods_are_error_objects(
    tiny: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = tiny.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/lora-adapters", "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/v1/responses/resp_1", "DELETE, GET, HEAD, OPTIONS"),
        ("GET", CHAT, "OPTIONS, POST"),
        ("POST", "/", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_told_all_that_its_path_knows(
    tiny: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = tiny.request(method, path, json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert f"expected {allowed}" in answer.json()["error"]["message"]


def test_a_prompt_that_does_not_fit_has_openais_code(tiny: httpx.Client) -> None:
    answer = post(tiny, {"messages": [{"role": "user", "content": "x " * 1000}]})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "expected at most 256" in error["message"]
    answer = tiny.post("/v1/completions", json={"prompt": [5] * 300})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["param"] == "prompt"
