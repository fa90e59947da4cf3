"""A client that vanishes while its prompt is read: whoever comes next does not wait for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from llama4_edge import Model
from llama4_edge.runtime import scheduler as scheduler_module
from llama4_edge.runtime import sequence as sequence_module
from llama4_edge.runtime.handles import Handles
from llama4_edge.runtime.request import Request
from llama4_edge.runtime.sequence import Piece
from tests.asking import until
from tests.server.running import RunningServer, running_server

_UBATCH = 64


class Reading:
    """The engine's batches, each of which waits until it is let through."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.requests: list[Request] = []
        self.goes_on = threading.Event()

    def decode(self, handles: Handles, pieces: Sequence[Piece]) -> bool:
        """As the scheduler's, later."""
        self.sizes.append(sum(len(piece.tokens) for piece in pieces))
        assert self.goes_on.wait(600)
        return sequence_module.decode(handles, pieces)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    held = Reading()
    monkeypatch.setattr(scheduler_module, "decode", held.decode)
    return held


@pytest.fixture
def slow_server(tiny_path: Path, reading: Reading) -> Iterator[RunningServer]:
    """One answer at a time, whose prompts are read in small pieces."""
    with (
        Model(
            tiny_path, n_ctx=4096, n_batch=_UBATCH, n_ubatch=_UBATCH, n_threads=1, n_parallel=1
        ) as model,
        running_server(model) as server,
    ):
        ask = model.engine.request

        def noted(*args: object, **how: object) -> Request:
            request = ask(*args, **how)  # type: ignore[arg-type]
            reading.requests.append(request)
            return request

        model.engine.request = noted  # type: ignore[method-assign]
        yield server


def message(text: str, **fields: object) -> bytes:
    """A request as it goes over the wire."""
    body = json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_slot_of_a_client_that_vanishes_is_free_after_the_ubatch_that_is_read(
    slow_server: RunningServer, reading: Reading, stream: bool
) -> None:
    with slow_server.connect() as client:
        client.sendall(message("word " * 500, stream=stream, max_tokens=4))
        until(lambda: len(reading.sizes) == 1)
    (request,) = reading.requests
    assert request.n_prompt > 20 * _UBATCH
    # The engine is in a ubatch; the server sees that the client is gone all the same.
    until(lambda: request.cancelled)
    with slow_server.client() as other:
        waiting = threading.Thread(
            target=lambda: other.post(
                "/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
            )
        )
        waiting.start()
        until(lambda: len(reading.requests) == 2)
        reading.goes_on.set()
        waiting.join()
    # One ubatch of the long prompt, and then what the other one asked.
    assert reading.sizes[0] <= _UBATCH
    assert sum(reading.sizes[1:]) <= reading.requests[1].n_prompt + 2
    assert request.ended and request.n_chosen == 0
    until(lambda: slow_server.server.queue.in_flight == 0)
