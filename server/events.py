"""The events of several answers that are made at the same time, as they come.

Promises that what is there already is given at once, so that whoever writes it writes once; that a
slow reader slows the answers down; and that all of them are ended when the reader is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from ..async_model import AsyncStream
from ..chat.events import AnswerEvent

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
