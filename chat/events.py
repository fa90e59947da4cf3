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


@dataclass(frozen=True)
class TextPiece:
    """Text that was added to the answer, never empty.

    ``logprobs`` are those of the tokens whose last byte is in it, so that the pieces' together are
    the answer's; None where they were not asked for.
    """

    text: str
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class AnswerEnded:
    """The answer is complete, or was closed or cancelled."""

    completion: Completion


AnswerEvent = TextPiece | AnswerEnded
"""What ``Stream.events`` gives."""
