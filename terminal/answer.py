"""An answer on its way to stdout, piece by piece, and its timings when it has ended.

Promises that an answer ends in exactly one newline, that a pipe gets the model's text byte for byte
in UTF-8, and that a terminal gets it with control characters made visible.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from .progress import reading_progress
from .visible import printable

if TYPE_CHECKING:
    from ..chat.answer import Completion


class AnswerWithPrompt(Protocol):
    """An answer while it is being made, to a prompt that is read first."""

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """How many tokens of the prompt are read, and how many it has."""

    def __iter__(self) -> Iterator[str]: ...


class AnswerWriter:
    """Writes the pieces of one answer as they come."""

    def __init__(self) -> None:
        self._stream = sys.stdout
        self._terminal = self._stream.isatty()
        # Newlines wait until text follows them: those at the end become one.
        self._held = ""
        self._begun = False

    def write(self, piece: str) -> None:
        """Show a piece at once."""
        text = self._held + (printable(piece) if self._terminal else piece)
        shown = text.rstrip("\n")
        self._held = text[len(shown) :]
        if shown:
            self._begun = True
            self._stream.write(shown)
            self._stream.flush()

    def break_off(self) -> None:
        """End the line of an answer that did not come to its end, if it had begun."""
        if self._begun:
            self.end()

    def end(self) -> None:
        """End the last line of a whole answer."""
        self._stream.write("\n")
        self._stream.flush()


def pieces_of(answer: AnswerWithPrompt) -> Iterator[str]:
    """The pieces of an answer; until the first, a terminal is shown how far the prompt is read."""
    pieces = iter(answer)
    with reading_progress(lambda: answer.prompt_progress):
        first = next(pieces, None)
    if first is not None:
        yield first
        yield from pieces


def timings_text(completion: Completion) -> str:
    """How many tokens were read and generated, and how fast."""
    read = completion.prompt_tokens - completion.reused_tokens
    again = f", and {completion.reread_tokens:,} again" if completion.reread_tokens else ""
    return (
        f"{completion.prompt_tokens:,} tokens of prompt, {read:,} of them read{again} at "
        f"{completion.prefill_tokens_per_second:,.1f} tokens/s; {speed_text(completion)}"
    )


def speed_text(completion: Completion) -> str:
    """How many tokens were generated, and how fast; and how many were drafted, if any were."""
    count = len(completion.tokens)
    unit = "token" if count == 1 else "tokens"
    text = f"{count:,} {unit}, {completion.decode_tokens_per_second:,.1f} tokens/s"
    if drafted := completion.drafted_tokens:
        text += f"; {completion.accepted_tokens:,} of {drafted:,} drafted tokens accepted"
    return text
