"""The events of answers, as few as there can be."""

from __future__ import annotations

from collections.abc import Sequence

from ..chat.events import AnswerEvent, TextPiece, ToolCallPiece


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
