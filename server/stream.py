"""Answers that come piece by piece: server-sent events.

Promises that an error in the middle is an event too, and that a stream which is silent for long
says that it is still there. Knows no protocol.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError, api_error

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
"""How OpenAI ends a stream."""

COMMENT = b": \n\n"
"""What clients skip."""


class EventStream(Response):
    """Events of a generator, which is closed whatever ends the answer.

    Args:
        events: whole events, each with its blank line.
        failed: the event that tells an error, which is the last one.
        beat_seconds: silence after which a beat is sent.
        beat: what says that the server is still there.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        failed: Callable[[ApiError], bytes],
        *,
        beat_seconds: float,
        beat: bytes = COMMENT,
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._events, self._failed = events, failed
        self._beat_seconds, self._beat = beat_seconds, beat
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        beats = asyncio.create_task(self._beats(send))
        try:
            await self._send_all(send)
        except asyncio.CancelledError:
            if not scope["app"].state.server.ending:
                raise
            await self._tell(ApiError(503, "The server is stopping.", code="stopping"), scope, send)
        except Exception as error:
            failure = api_error(error)
            if failure.status == 500:
                logger.error("an answer failed: %s", failure.message)
            await self._tell(failure, scope, send)
        finally:
            beats.cancel()
            with suppress(asyncio.CancelledError):
                await beats
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        async for data in self._events:
            await self._send(send, data)

    async def _tell(self, failure: ApiError, scope: Scope, send: Send) -> None:
        scope["llama4.served"].error = failure.message
        await self._send(send, self._failed(failure))

    async def _send(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sent_at = time.monotonic()

    async def _beats(self, send: Send) -> None:
        while self._beat_seconds:
            await asyncio.sleep(self._sent_at + self._beat_seconds - time.monotonic())
            if time.monotonic() - self._sent_at >= self._beat_seconds:
                await self._send(send, self._beat)
