"""Answers as events, made by hand, for the tests of what protocols write."""

from __future__ import annotations

from dataclasses import replace

from llama4_edge.chat.answer import Completion
from llama4_edge.chat.events import (
    AnswerEvent,
    TextPiece,
    ToolCallBegun,
    ToolCallEnded,
    ToolCallPiece,
)
from llama4_edge.chat.tool_calls import ToolCall

COMPLETION = Completion(
    text="",
    tokens=(1, 2, 3),
    finish_reason="stop",
    stop_string=None,
    prompt_tokens=10,
    reused_tokens=4,
    seed=1,
    prefill_seconds=0.1,
    decode_seconds=0.1,
)
"""An answer of three tokens to a prompt of ten, four of which were still there."""


def completion(**changes: object) -> Completion:
    """`COMPLETION` with other values."""
    return replace(COMPLETION, **changes)  # type: ignore[arg-type]


def texts(*pieces: str) -> list[AnswerEvent]:
    """Pieces of text."""
    return [TextPiece(piece) for piece in pieces]


def call(index: int, *pieces: str, name: str = "weather") -> list[AnswerEvent]:
    """The events of a call of a tool, whose arguments come in pieces."""
    made = ToolCall.of(f"call_{index}", name, "".join(pieces))
    return [
        ToolCallBegun(index, made.id, name),
        *(ToolCallPiece(index, piece) for piece in pieces),
        ToolCallEnded(index, made),
    ]


CALL = ToolCall("call_0", "weather")
"""A call of a tool."""
