"""What commands say where the context is full. Does not know how full it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ContextFullError

if TYPE_CHECKING:
    from ..chat.answer import Completion


def with_hint(error: ContextFullError, hint: str) -> ContextFullError:
    """The same error with what a person, and not a program, can do about it."""
    return ContextFullError(error.problem, found=error.found, expected=error.expected, hint=hint)


def cut_off(completion: Completion, max_tokens: int | None) -> bool:
    """Whether the answer was cut off by the end of the context, and not by `max_tokens`."""
    return completion.finish_reason == "length" and len(completion.tokens) != max_tokens
