"""What happens while an answer is made, as values.

Promises that the events of an answer, in their order, are all of it. Knows nothing of how they
come about, or of how a protocol writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runtime.logprobs import TokenLogprobs
    from .answer import Completion
    from .tool_calls import ToolCall


@dataclass(frozen=True)
class TextPiece:
    """Text that was added to the answer, never empty.

    ``logprobs`` are those of the tokens whose last byte is in it, so that the pieces' together are
    the answer's; None where they were not asked for.
    """

    text: str
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class ToolCallBegun:
    """The answer calls a tool: the call's place among those of the answer, its id, and the tool."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallPiece:
    """Some of the arguments of a call, never empty.

    A call's pieces together are the JSON text of its arguments, whichever way the model wrote them.
    """

    index: int
    arguments: str


@dataclass(frozen=True)
class ToolCallEnded:
    """The whole call, with what is wrong with it, if something is."""

    index: int
    call: ToolCall


@dataclass(frozen=True)
class AnswerEnded:
    """The answer is complete, or was closed or cancelled."""

    completion: Completion


CallEvent = ToolCallBegun | ToolCallPiece | ToolCallEnded
"""Those of tool calls: begun, pieces, ended, one call after the other."""

AnswerEvent = TextPiece | CallEvent | AnswerEnded
"""What ``Stream.events`` gives."""
