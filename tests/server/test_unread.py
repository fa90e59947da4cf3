"""An answer that comes while a body is still sent reaches its client."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from shutil import which

import httpx
import openai
import pytest

from llama4_edge import Model
from llama4_edge.server import unread
from llama4_edge.server.settings import ServerSettings
from tests.server.running import RunningServer, running_server

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
SIZE = 24 << 20  # far more than the buffers of a connection


@pytest.fixture(scope="module")
def small(tiny_model: Model) -> Iterator[RunningServer]:
    """A server that takes little."""
    settings = ServerSettings(max_body=2000, api_keys=("key",))
    with running_server(tiny_model, settings) as server:
        yield server


def pieces() -> Iterator[bytes]:
    for _ in range(SIZE >> 16):
        yield b"x" * (1 << 16)


def assert_too_large(answer: httpx.Response) -> None:
    assert answer.status_code == 413
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "at most 2.0 KiB" in error["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_httpx_sees_413(small: RunningServer, chunked: bool) -> None:
    headers = {**JSON, "Authorization": "Bearer key"}
    with small.client(headers=headers) as client:
        for _ in range(5):  # a reset is not certain to be seen
            assert_too_large(client.post(CHAT, content=pieces() if chunked else b"x" * SIZE))
        assert client.get("/v1/models").status_code == 200


def test_openais_client_sees_413(small: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{small.url}/v1", api_key="key", max_retries=0)
    with client, pytest.raises(openai.APIStatusError, match="too large") as caught:
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x" * SIZE}]
        )
    assert caught.value.status_code == 413


@pytest.mark.skipif(which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("headers", [["Expect:"], ["Transfer-Encoding: chunked"], []])
def test_curl_sees_413(small: RunningServer, headers: list[str]) -> None:
    """It asks before it sends much, unless it is told not to."""
    headers = [*headers, "Content-Type: application/json", "Authorization: Bearer key"]
    options = [option for header in headers for option in ("-H", header)]
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", *options, "--data-binary", "@-", small.url + CHAT],
        input=b"x" * SIZE, capture_output=True, timeout=600, check=True,
    )  # fmt: skip
    assert "at most 2.0 KiB" in json.loads(done.stdout)["error"]["message"]


def test_a_client_that_asks_first_is_told_at_once_and_not_waited_for(small: RunningServer) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Authorization: Bearer key\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n"
    )
    with small.connect() as connection:
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (CHAT, JSON, 401),
        ("/v1/nothing", {"Authorization": "Bearer key"}, 404),
        ("/v1/models", {"Authorization": "Bearer key"}, 405),
        (CHAT, {"Authorization": "Bearer key", "Content-Type": "text/plain"}, 415),
    ],
)
def test_what_is_refused_for_another_reason_reaches_a_client_that_sends_much(
    small: RunningServer, path: str, headers: dict[str, str], status: int
) -> None:
    with small.client() as client:
        assert client.post(path, content=pieces(), headers=headers).status_code == status
        asks = client.post(path, content=b"x" * SIZE, headers={**headers, "Expect": "100-continue"})
        assert asks.status_code == status


def send_without_end(connection: socket.socket) -> int:
    """Bytes that went away until the other side had enough."""
    sent = 0
    try:
        while sent < 1 << 30:
            sent += connection.send(b"x" * (1 << 16))
    except OSError:
        return sent
    raise AssertionError("all of it was read")


def test_what_is_read_for_nothing_has_an_end(
    small: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer key\r\nContent-Length: {1 << 40}\r\n\r\n"
    )
    monkeypatch.setattr(unread, "MOST_BYTES", 1 << 20)
    with small.connect() as connection:
        connection.sendall(head.encode())
        assert connection.recv(10_000).startswith(b"HTTP/1.1 413")
        assert send_without_end(connection) < 1 << 26
    monkeypatch.setattr(unread, "_SILENT_SECONDS", 0.05)
    with small.connect() as connection:
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))  # until it is closed
    assert answer.startswith(b"HTTP/1.1 413")
