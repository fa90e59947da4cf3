"""One answer as a protocol of events writes it: as a stream, or whole.

Promises that both are made of the same events. Knows no protocol.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response

from ..async_model import AsyncStream, taken_together
from ..chat.answer import Completion
from ..chat.events import AnswerEnded, AnswerEvent
from .chunks import compact
from .endpoint import Call
from .errors import ApiError
from .stream import COMMENT, EventStream

Event = dict[str, Any]
"""One event of a stream, whose "type" is its name."""


class Writer(Protocol):
    """What a protocol makes of the events of an answer, in their order."""

    def opened(self) -> Iterable[Event]:
        """The events that come before the prompt is read."""

    def begun(self, prompt_tokens: int, reused_tokens: int) -> Iterable[Event]:
        """The events that come when it was read, before the first of an answer."""

    def events(self, event: AnswerEvent) -> Iterable[Event]:
        """The events that one of ours is."""

    def ended(self, completion: Completion) -> Iterable[Event]:
        """The events with which a stream ends."""

    def whole(self) -> dict[str, Any]:
        """The answer of which all events were taken."""

    def failed(self, error: ApiError) -> Event:
        """The event that tells an error."""


async def whole_answer(call: Call[Any], stream: AsyncStream, writer: Writer) -> Response:
    """The answer in one piece."""
    async for ((_, events),) in taken_together([stream]):
        for event in events:
            if isinstance(event, AnswerEnded):
                call.record.note(event.completion)
                list(writer.ended(event.completion))
            else:
                list(writer.events(event))
    return JSONResponse(writer.whole())


def streamed_answer(
    call: Call[Any], stream: AsyncStream, writer: Writer, *, beat: bytes = COMMENT
) -> Response:
    """The answer as it is made.

    Args:
        beat: what says that the server is still there.
    """
    return EventStream(
        _events(call, stream, writer),
        lambda error: encoded(writer.failed(error)),
        beat_seconds=call.server.settings.beat_seconds,
        beat=beat,
    )


async def _events(
    call: Call[Any], stream: AsyncStream, writer: Writer
) -> AsyncGenerator[bytes, None]:
    has_begun = False
    if opened := b"".join(map(encoded, writer.opened())):
        yield opened
    async for ((_, events),) in taken_together([stream]):
        call.record.note_first()
        written: list[Event] = []
        if not has_begun:
            # What of the prompt was there already is known when it was read.
            written += writer.begun(stream.prompt_progress[1], stream.reused_tokens)
            has_begun = True
        for event in events:
            if isinstance(event, AnswerEnded):
                call.record.note(event.completion)
                written += writer.ended(event.completion)
            else:
                written += writer.events(event)
        if written:
            yield b"".join(map(encoded, written))


def encoded(event: Event) -> bytes:
    """An event as it is sent."""
    return f"event: {event['type']}\ndata: {compact(event)}\n\n".encode()
