"""Clients that hang up, are slow, or are too many: over real sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from threading import Thread
from typing import Any

import httpx
import pytest

from llama4_edge import Model
from llama4_edge.server import running as running_module
from llama4_edge.server.settings import ServerSettings
from llama4_edge.server.state import Served
from tests.asking import until
from tests.server.holding import HeldEngine
from tests.server.running import RunningServer, running_server
from tests.tiny_model import never_ending

CHAT = "/v1/chat/completions"
N_CTX, N_UBATCH = 16_384, 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """One answer at a time, which goes on until it is ended."""
    path = never_ending().write(tmp_path_factory.mktemp("endless") / "endless.gguf")
    with Model(path, n_ctx=N_CTX, n_ubatch=N_UBATCH, n_batch=N_UBATCH, n_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[RunningServer]:
    with running_server(model, ServerSettings(max_queue=2)) as one:
        yield one


@pytest.fixture
def served(server: RunningServer) -> Iterator[list[Served]]:
    """What the server tells of its requests."""
    records: list[Served] = []
    server.server.observers.append(records.append)
    yield records
    server.server.observers.remove(records.append)


@pytest.fixture(autouse=True)
def nothing_is_asked(server: RunningServer, model: Model) -> None:
    """What tests before this one asked has ended, and was told: `asked` counts what is under way,
    and `served` is what is told."""
    until(lambda: not (server.running.server_state.tasks or model.engine.scheduler._running))


def request_bytes(body: dict[str, Any], path: str = CHAT) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def endless(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, **more}


def asked(server: RunningServer, body: dict[str, Any], path: str = CHAT) -> socket.socket:
    """A connection on which this was asked, and is not answered before the engine is let go on."""
    before = server.server.queue.in_flight
    connection = server.connect()
    connection.sendall(request_bytes(body, path))
    until(lambda: server.server.queue.in_flight > before)
    return connection


def test_a_client_that_vanishes_in_its_prompt_frees_the_sequence(
    server: RunningServer, served: list[Served], model: Model
) -> None:
    prompt = {"prompt": [5 + number % 200 for number in range(N_CTX - 8)], "max_tokens": 4}
    scheduler = model.engine.scheduler
    (sequence,) = scheduler._sequences
    with HeldEngine(model) as engine:
        connection = asked(server, prompt, "/v1/completions")
        engine.step_until(lambda: scheduler.uses(sequence) and len(sequence.tokens) > 10 * N_UBATCH)
        connection.close()
        until(lambda: bool(served))
        seen = len(sequence.tokens)
    until(lambda: not scheduler.uses(sequence))
    assert len(model.engine.tokens) == seen < N_CTX - 8
    assert served[0].vanished
    assert server.server.queue.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_in_its_answer_ends_it(
    server: RunningServer, served: list[Served], model: Model, stream: bool
) -> None:
    scheduler = model.engine.scheduler
    (sequence,) = scheduler._sequences
    with HeldEngine(model) as engine:
        connection = asked(server, endless(stream=stream))
        engine.step_until(lambda: any(one.n_chosen > 30 for one in scheduler._running))
        connection.close()
        until(lambda: bool(served))
        seen = len(sequence.tokens)
    until(lambda: not scheduler.uses(sequence))
    assert len(model.engine.tokens) == seen < N_CTX
    assert [record.vanished for record in served] == [True]
    with server.client() as client:
        answer = client.post(CHAT, json=endless(max_tokens=3)).json()
    assert answer["usage"]["completion_tokens"] == 3


def test_a_client_that_vanishes_while_it_waits_leaves_the_queue(
    server: RunningServer, served: list[Served], model: Model
) -> None:
    with HeldEngine(model):
        first = asked(server, endless(stream=True))
        asked(server, endless(stream=True)).close()
        until(lambda: len(served) == 1)
        assert server.server.queue.in_flight == 1
        first.close()
        until(lambda: server.server.queue.in_flight == 0)


def test_more_than_may_wait_are_refused_and_told_when_to_come_again(
    server: RunningServer, model: Model
) -> None:
    with HeldEngine(model):
        waiting = [asked(server, endless(stream=True)) for _ in range(3)]
        with server.client() as client:
            answer = client.post(CHAT, json=endless())
            assert answer.status_code == 429
            assert answer.json()["error"]["code"] == "queue_full"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert client.get("/health").status_code == 200
        for connection in waiting:
            connection.close()
        until(lambda: server.server.queue.in_flight == 0)


def test_a_client_that_reads_too_slowly_loses_its_connection(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_module, "_STALL_SECONDS", 0.2)
    with running_server(model, send_buffer=4096) as server, socket.socket() as connection:
        served: list[Served] = []
        server.server.observers.append(served.append)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(server.address)
        # More at once than the sockets and the server hold.
        body = {"prompt": "x" * 3000, "echo": True, "n": 128, "stream": True}
        connection.sendall(request_bytes(body, "/v1/completions"))
        until(lambda: bool(served))
        assert served[0].vanished
        until(lambda: server.server.queue.in_flight == 0)


def test_a_client_that_sends_no_request_loses_its_connection(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_module, "_HEAD_SECONDS", 0.2)
    with server.connect() as silent, server.connect() as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        for connection in (silent, slow):
            with pytest.raises(ConnectionResetError):
                assert connection.recv(100) == b""
                raise ConnectionResetError


def test_two_requests_in_one_packet_are_both_answered(server: RunningServer) -> None:
    with server.connect() as connection:
        connection.sendall(request_bytes(endless(max_tokens=2)) * 2)
        data = b""
        while data.count(b"HTTP/1.1 200") < 2 or not data.endswith(b"}"):
            piece = connection.recv(10_000)
            assert piece, f"the connection ended after {data.count(b'HTTP/1.1 200')} answers"
            data += piece


def test_sixty_clients_at_once_are_answered_or_refused(server: RunningServer) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        with server.client() as client:
            answers.append(client.post(CHAT, json=endless(max_tokens=5)))

    threads = [Thread(target=ask) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 429}
    texts = {
        answer.json()["choices"][0]["message"]["content"]
        for answer in answers
        if answer.status_code == 200
    }
    assert len(answers) == 60
    assert len(texts) == 1
