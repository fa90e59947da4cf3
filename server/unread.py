"""What is left of a body when its request is answered already: an error, most of the time.

Promises that a client which is still sending finds the answer. A connection that is closed before
all was read is reset, and what was sent on it is lost. Knows no protocol but HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive

MOST_BYTES = 1 << 28
"""Bytes that are read for nothing."""

_SECONDS = 15.0  # for all of them
_SILENT_SECONDS = 3.0  # without any: whoever sends nothing more has the answer


class UnreadBody:
    """The body of a request, and how much of it was read.

    Args:
        receive: gives the pieces of the body.
        headers: of the request.
    """

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        self._has_ended = headers.get("content-length", "0") == "0" and (
            "transfer-encoding" not in headers
        )
        # A client that waits for the word to send its body sends none without it.
        self._is_held_back = headers.get("expect", "").lower() == "100-continue"
        self._will_close = False

    async def receive(self) -> Message:
        """The next piece of the body, or that the client hung up."""
        self._is_held_back = False
        message = await self._receive()
        if not (message["type"] == "http.request" and message.get("more_body", False)):
            self._has_ended = True
        return message

    def will_close(self, headers: MutableHeaders) -> None:
        """Take note of the headers of the answer, and add that the connection is closed."""
        if self._is_held_back and not self._has_ended:
            headers["Connection"] = "close"  # nobody knows whether the body comes or a request
        self._will_close = headers.get("connection", "").lower() == "close"

    @property
    def is_to_be_discarded(self) -> bool:
        """Whether a client that is still sending would lose the answer."""
        return self._will_close and not (self._has_ended or self._is_held_back)

    async def discard(self, is_ending: Callable[[], bool]) -> None:
        """Read the rest for nothing, within bounds.

        Args:
            is_ending: whether there is no time for that.
        """
        size, end = 0, time.monotonic() + _SECONDS
        while not (self._has_ended or is_ending()) and size < MOST_BYTES:
            left = min(end - time.monotonic(), _SILENT_SECONDS)
            try:
                message = await asyncio.wait_for(self.receive(), max(left, 0.0))
            except asyncio.TimeoutError:
                return
            size += len(message.get("body", b""))
