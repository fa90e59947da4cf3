"""What is not HTTP, or more of it than is read, gets an error object that arrives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.running import RunningServer

HOST = b"Host: localhost\r\n"
GET = b"GET /health HTTP/1.1\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST


def answer_to(server: RunningServer, data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error object; the connection must be closed in order, not reset."""
    with server.connect() as connection:
        connection.sendall(data)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "data",
    [
        GET + HOST + b"X: " + b"a" * 500_000 + b"\r\n\r\n",
        GET + HOST + b"X: a\r\n" * 100_000 + b"\r\n",
        b"GET /" + b"a" * 500_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * 500_000,
    ],
)
def test_long_lines_before_a_body_are_told_and_not_reset(
    tiny_server: RunningServer, data: bytes
) -> None:
    status, error = answer_to(tiny_server, data)
    assert (status, error["code"]) == (431, "invalid_http")
    assert "at most 16 KiB" in error["message"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (GET + b"\r\n", "Missing mandatory Host: header"),
        (GET + HOST + HOST + b"\r\n", "Found multiple Host: headers"),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}", "Content-Length"),
        (POST + b"Content-Length: -5\r\n\r\n{}", "bad Content-Length"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n{}", "Transfer-Encoding"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + b"a" * 300_000, "chunk"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 300, "request line"),
        (b"GET /health\r\n\r\n", "request line"),
    ],
)
def test_what_is_no_http_is_told(tiny_server: RunningServer, data: bytes, told: str) -> None:
    status, error = answer_to(tiny_server, data)
    assert (status, error["code"]) == (400, "invalid_http")
    assert told in error["message"]


def test_two_requests_sent_at_once_are_answered_in_order(tiny_server: RunningServer) -> None:
    with tiny_server.connect() as connection:
        connection.sendall(GET + HOST + b"\r\nGET /nothing HTTP/1.1\r\n" + HOST +
                           b"Connection: close\r\n\r\n")  # fmt: skip
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert received.index(b"200 OK") < received.index(b"404 Not Found")


def test_an_older_client_gets_its_answer_and_the_end(tiny_server: RunningServer) -> None:
    with tiny_server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n" + HOST + b"\r\n")
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert received.endswith(b'{"status":"ok","model":"ready"}')
