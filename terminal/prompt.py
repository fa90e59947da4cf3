"""Where a chat's messages come from: a person at a terminal, or lines of a pipe.

Promises that both read alike: a line that ends in a backslash goes on in the next. Does not know
what a message means; the commands are only completed here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import Llama4EdgeError
from ..units import bytes_text
from .history import open_history
from .keyboard import Keyboard

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.key_binding import KeyBindings


MOST_BYTES = 1 << 26
"""The longest text that is read from a pipe: ten million tokens are about 40 MB."""

# Rows below the prompt that the completions get, where there are twice as many.
_MENU_ROWS = 4

# The fraction of the context from which on the prompt warns.
_NEARLY_FULL = 0.9


class Source(Protocol):
    """Gives one message after the other."""

    def read(self, fullness: float | None) -> str:
        """The next message; EOFError at the end, KeyboardInterrupt at Ctrl-C.

        Args:
            fullness: the fraction of the context that the conversation takes, if that is known.
        """

    def listening(self) -> AbstractContextManager[None]:
        """A block in which what is typed is kept for the next message."""


class Lines:
    """Messages from stdin, one a line, for scripts."""

    def __init__(self) -> None:
        self._ended = False

    def listening(self) -> AbstractContextManager[None]:
        """Nothing is typed: the lines wait in the pipe."""
        return nullcontext()

    def read(self, fullness: float | None = None) -> str:
        """The next line; one that ends in a backslash goes on in the next."""
        # sys.stdin is None when the process was started with stdin closed.
        if sys.stdin is None or self._ended:
            raise EOFError
        message = ""
        for line in iter(lambda: sys.stdin.buffer.readline(MOST_BYTES), b""):
            if len(line) == MOST_BYTES:
                self._ended = True
                raise too_long("a line on standard input")
            text = decode(line.rstrip(b"\r\n"), "a line on standard input")
            if not text.endswith("\\"):
                return message + text
            message += text[:-1] + "\n"
        if not message:
            raise EOFError
        return message


class Prompt:
    """Messages typed at a terminal, with editing, completion and a history on disk.

    Args:
        commands: the commands to complete, each with its slash.
        file_commands: those of them whose argument is a file name.
        history: the file of earlier messages, or None to keep them for this chat only.
    """

    def __init__(
        self, commands: Sequence[str], file_commands: Sequence[str], history: Path | None
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory

        past = InMemoryHistory() if history is None else open_history(history)
        self._keyboard = Keyboard()
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            prompt_continuation=lambda width, _line, _wraps: "… ".rjust(width),
            history=past,
            key_bindings=_keys(),
            completer=_completer(commands, file_commands),
        )
        self._session.app.before_render += self._fit

    def listening(self) -> AbstractContextManager[None]:
        """Keep what is typed in the block, to begin the next message with."""
        return self._keyboard.listening()

    def read(self, fullness: float | None = None) -> str:
        """What was typed before Enter; how full the context is stands before it."""
        text, left = _typed_text(self._keyboard.take())
        if left and not text:
            raise EOFError
        return self._session.prompt(_prompt_text(fullness), default=text)

    def _fit(self, _app: object) -> None:
        """Leave room for completions only where the terminal has it now."""
        rows = self._session.output.get_size().rows
        self._session.reserve_space_for_menu = _MENU_ROWS if rows > 2 * _MENU_ROWS else 0


def _prompt_text(fullness: float | None) -> StyleAndTextTuples:
    """``12% > ``, which is red when little is left."""
    if fullness is None:
        return [("", "> ")]
    style = "ansired" if fullness >= _NEARLY_FULL else "ansibrightblack"
    return [(style, f"{min(fullness, 1.0):.0%}"), ("", " > ")]


def _typed_text(keys: bytes) -> tuple[str, bool]:
    """The text that keys stand for, and whether the last of them was Ctrl-D.

    Enter is a newline, Backspace takes back a character, pastes are kept; other keys do nothing.
    """
    from prompt_toolkit.input.vt100_parser import Vt100Parser
    from prompt_toolkit.key_binding import KeyPress
    from prompt_toolkit.keys import Keys

    pressed: list[KeyPress] = []
    parser = Vt100Parser(pressed.append)
    parser.feed(keys.decode("utf-8", "ignore"))
    parser.flush()
    text = ""
    for press in pressed:
        if press.key in (Keys.ControlM, Keys.ControlJ):
            text += "\n"
        elif press.key is Keys.ControlH:
            text = text[:-1]
        elif press.key is Keys.ControlU:
            text = ""
        elif press.key is Keys.BracketedPaste:
            text += press.data.replace("\r\n", "\n").replace("\r", "\n")
        elif not isinstance(press.key, Keys):
            text += press.data
    return text.strip("\n"), bool(pressed) and pressed[-1].key is Keys.ControlD


def too_long(what: str) -> Llama4EdgeError:
    """The error of input that is longer than any text: of a device, or a disk image."""
    return Llama4EdgeError(
        f"{what} is too long",
        found=f"more than {bytes_text(MOST_BYTES)}",
        expected="text that fits into a context",
    )


def decode(data: bytes, what: str) -> str:
    """`data` as text.

    Raises:
        Llama4EdgeError: it is not UTF-8; says where.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Llama4EdgeError(
            f"{what} is not UTF-8",
            found=f"byte 0x{data[error.start]:02x} at offset {error.start:,}",
            hint="Convert it first, for example with iconv.",
        ) from error


def _keys() -> KeyBindings:
    """Enter sends; Alt-Enter, or Enter after a backslash, begins a new line."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        before = buffer.document.current_line_before_cursor
        if before.endswith("\\") and buffer.document.is_cursor_at_the_end_of_line:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _interrupt(event: KeyPressEvent) -> None:
        # With text typed, Ctrl-C takes it back; only at an empty prompt does it want an answer.
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    return keys


def _completer(commands: Sequence[str], file_commands: Sequence[str]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        """Commands at the start of a message, file names after those that take one."""

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
            text = document.text_before_cursor
            command, space, argument = text.partition(" ")
            if space and command in file_commands:
                yield from paths.get_completions(Document(argument), event)
            elif not space:
                yield from _matching(commands, text)

    def _matching(known: Iterable[str], begun: str) -> Iterator[Completion]:
        if begun.startswith("/"):
            for name in known:
                if name.startswith(begun):
                    yield Completion(name, start_position=-len(begun))

    return Commands()
