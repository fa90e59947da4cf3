"""Answers that are large: made and sent in pieces, so that nobody else waits for them.

Promises that no piece is more than a few thousand values of JSON, which are written at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .chunks import compact

_ENTRIES = 100  # of a list, written at once


async def json_answer(make: Callable[[], Any]) -> Response:
    """What is made in another thread, as JSON."""

    def written() -> bytes:
        return "".join(_json_pieces(make())).encode()

    return Response(await asyncio.to_thread(written), media_type="application/json")


def _json_pieces(value: object) -> Iterator[str]:
    """A value as JSON: objects by their fields, and long lists by some entries at a time."""
    if isinstance(value, dict):
        separator = "{"
        for name, inner in value.items():
            yield f"{separator}{compact(name)}:"
            yield from _json_pieces(inner)
            separator = ","
        yield "}" if value else "{}"
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value[:1]):
        separator = "["
        for begin in range(0, len(value), _ENTRIES):
            yield separator + compact(value[begin : begin + _ENTRIES])[1:-1]
            separator = ","
        yield "]"
    elif isinstance(value, list):
        separator = "["
        for begin in range(0, len(value), 10 * _ENTRIES):
            yield separator + compact(value[begin : begin + 10 * _ENTRIES])[1:-1]
            separator = ","
        yield "]" if value else "[]"
    else:
        yield compact(value)


class PiecesAnswer(Response):
    """JSON text that is made piece by piece, each in another thread when the last one was sent.

    Args:
        pieces: makes them.
    """

    media_type = "application/json"

    def __init__(self, pieces: Iterator[str]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; what fails before the first piece was made is an error as any other."""
        piece = await asyncio.to_thread(next, self._pieces, None)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while piece is not None:
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
            piece = await asyncio.to_thread(next, self._pieces, None)
        await send({"type": "http.response.body", "body": b""})
