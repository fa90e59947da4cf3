"""``--when-full``, and what commands say where the context is full; not how full it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ContextFullError
from . import values
from .declare import option

if TYPE_CHECKING:
    from ..chat.answer import Completion
    from ..chat.conversation import Message


def when_full_option() -> Any:
    """What happens at the end of the context."""
    return option(
        "--when-full", kind=values.when_full, metavar="stop|drop",
        help="At the end of the context: stop, or drop the oldest exchanges and go on. The system "
        "message and the documents of --file stay.  [default: stop]",
    )  # fmt: skip


def dropped_text(messages: Sequence[Message], count: int) -> str:
    """What was dropped of messages, so that the others fit.

    Args:
        count: how many of them, but for the system's.
    """
    from ..chat.documents import documents_in_front

    questions = [message for message in messages if message.role == "user"]
    spoken = [message for message in messages if message.role != "system"]
    left = [message for message in spoken[:count] if message.role == "user"]
    oldest = "The oldest message is" if count == 1 else f"The {count:,} oldest messages are"
    text = f"{oldest} dropped, because the context is full"
    if any(documents_in_front(one.text) for one in left if one is not questions[0]):
        text += ", and so are documents in them, but for those before the first question"
    return f"{text}. What is saved keeps all."


def with_hint(error: ContextFullError, hint: str) -> ContextFullError:
    """The same error with what a person, and not a program, can do about it."""
    return ContextFullError(error.problem, found=error.found, expected=error.expected, hint=hint)


def cut_off(completion: Completion, max_tokens: int | None) -> bool:
    """Whether the answer was cut off by the end of the context, and not by `max_tokens`."""
    return completion.finish_reason == "length" and len(completion.tokens) != max_tokens
