"""The events of several answers that are made at the same time, as they come.

Promises that what is there already is given at once, so that whoever writes it writes once; that a
slow reader slows the answers down; and that all of them are ended when the reader is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress

from ..async_model import AsyncStream
from ..chat.events import AnswerEvent, TextPiece, ToolCallPiece

_AHEAD = 256  # events that are not written yet, of all answers together


async def events_of(
    streams: Sequence[AsyncStream],
) -> AsyncGenerator[list[tuple[int, AnswerEvent]], None]:
    """What happens in some answers, each event with the number of its answer.

    Raises:
        Llama4EdgeError: what ended one of them; the others are ended too.
    """
    queue: asyncio.Queue[tuple[int, AnswerEvent | Exception | None]] = asyncio.Queue(_AHEAD)

    async def read(number: int, stream: AsyncStream) -> None:
        try:
            async for event in stream.events():
                await queue.put((number, event))
            await queue.put((number, None))
        except Exception as error:
            await queue.put((number, error))

    readers = [asyncio.create_task(read(*one)) for one in enumerate(streams)]
    left = len(streams)
    try:
        while left:
            items = [await queue.get()]
            while not queue.empty():
                items.append(queue.get_nowait())
            events = []
            for number, event in items:
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    left -= 1
                else:
                    events.append((number, event))
            if events:
                yield events
    finally:
        for reader in readers:
            reader.cancel()
        for stream in streams:
            stream.close()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*readers, return_exceptions=True)


def runs(
    events: Iterable[tuple[int, AnswerEvent]],
) -> Iterable[tuple[int, list[AnswerEvent]]]:
    """The events of each answer."""
    runs: dict[int, list[AnswerEvent]] = {}
    for index, event in events:
        runs.setdefault(index, []).append(event)
    return runs.items()


def merged(events: Sequence[AnswerEvent]) -> list[AnswerEvent]:
    """The same events, with pieces that follow each other as one."""
    merged: list[AnswerEvent] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, TextPiece) and isinstance(last, TextPiece):
            logprobs = None if event.logprobs is None else (last.logprobs or ()) + event.logprobs
            merged[-1] = TextPiece(last.text + event.text, logprobs)
        elif (
            isinstance(event, ToolCallPiece)
            and isinstance(last, ToolCallPiece)
            and event.index == last.index
        ):
            merged[-1] = ToolCallPiece(last.index, last.arguments + event.arguments)
        else:
            merged.append(event)
    return merged
