"""``--when-full``, and what commands say where the context is full; not how full it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ContextFullError
from . import values
from .declare import option

if TYPE_CHECKING:
    from ..chat.answer import Completion


def when_full_option() -> Any:
    """What happens at the end of the context."""
    return option(
        "--when-full", kind=values.when_full, metavar="stop|drop",
        help="At the end of the context: stop, or drop the oldest exchanges and go on. The system "
        "message and the documents of --file stay.  [default: stop]",
    )  # fmt: skip


def with_hint(error: ContextFullError, hint: str) -> ContextFullError:
    """The same error with what a person, and not a program, can do about it."""
    return ContextFullError(error.problem, found=error.found, expected=error.expected, hint=hint)


def cut_off(completion: Completion, max_tokens: int | None) -> bool:
    """Whether the answer was cut off by the end of the context, and not by `max_tokens`."""
    return completion.finish_reason == "length" and len(completion.tokens) != max_tokens
