"""A server whose answers a test writes, piece by piece; all else of it is real."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llama4_edge import Model
from llama4_edge.server.settings import ServerSettings
from tests.server.running import RunningServer, running_server

USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
TIMINGS = {"predicted_per_second": 12.34}

Step = dict[str, Any] | Response | None
Steps = queue.Queue[Step]


class Script:
    """What ``/v1/chat/completions`` answers. ``requests`` are the bodies that came."""

    def __init__(self) -> None:
        self.requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self.hung_up = threading.Event()
        self._steps: Steps = queue.Queue()

    def say(self, *pieces: str) -> None:
        """Send these pieces of the answer."""
        for piece in pieces:
            self.send({"choices": [{"index": 0, "delta": {"content": piece}}]})

    def send(self, event: dict[str, Any]) -> None:
        self._steps.put(event)

    def end(self, reason: str = "stop") -> None:
        """End the answer as a whole one ends."""
        self.send({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        self.send({"choices": [], "usage": USAGE, "timings": TIMINGS})
        self._steps.put(None)

    def answer(self, *pieces: str) -> None:
        self.say(*pieces)
        self.end()

    def break_off(self) -> None:
        """End the answer in the middle."""
        self._steps.put(None)

    def refuse(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        """Answer the next request with an error."""
        body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._steps.put(JSONResponse(body, status, named))

    def forget(self) -> None:
        """Begin anew: what was not sent is not sent."""
        self._steps, self.requests = queue.Queue(), queue.Queue()

    def request(self) -> dict[str, Any]:
        """The next request that came."""
        return self.requests.get(timeout=600)

    async def _reply(self, request: Request) -> Response:
        steps = self._steps
        self.requests.put(await request.json())
        self.hung_up.clear()
        first = await self._next(steps)
        if isinstance(first, Response):
            return first
        return StreamingResponse(self._events(first, steps), media_type="text/event-stream")

    async def _next(self, steps: Steps) -> Step:
        """The next step of an answer; None if it was forgotten."""
        while steps.empty() and steps is self._steps:
            await asyncio.sleep(0.005)
        return None if steps.empty() else steps.get_nowait()

    async def _events(self, step: Step, steps: Steps) -> AsyncIterator[str]:
        is_whole = False
        try:
            while isinstance(step, dict):
                yield f"data: {json.dumps(step)}\n\n"
                is_whole = is_whole or "usage" in step
                step = await self._next(steps)
            if is_whole:
                yield "data: [DONE]\n\n"
        except (GeneratorExit, asyncio.CancelledError):
            self.hung_up.set()
            raise


@contextmanager
def server_aside(model: Model, settings: ServerSettings | None = None) -> Iterator[RunningServer]:
    """The server, begun and ended in another thread: Playwright has an event loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        server = running_server(model, settings)
        entered = thread.submit(server.__enter__).result()
        try:
            yield entered
        finally:
            thread.submit(server.__exit__, None, None, None).result()


@contextmanager
def scripted_server(
    model: Model, settings: ServerSettings | None = None
) -> Iterator[tuple[RunningServer, Script]]:
    """The server, until the end of the block, and what it answers."""
    script = Script()
    with server_aside(model, settings) as server:
        route = Route("/v1/chat/completions", script._reply, methods=["POST"])
        server.app.router.routes.insert(0, route)
        yield server, script
