"""How things look in a terminal: consoles, tables, progress and the chat.

Promises: nothing here adds colour, wrapping or control sequences to what is piped, and no text that
came from a model or a file can steer the terminal. Does not know how models run or files convert.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from .visible import LONGEST_LINE, one_line, printable, shortened

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Wider than any line: what is piped is never folded or cut.
_UNFOLDED = 100_000
# Columns that the tables need.
_NARROWEST = 60


def fill_closed_streams() -> None:
    """Open the null device where stdin, stdout or stderr was closed, and send asides there.

    Otherwise the next file that is opened gets that number, and with it what a native library
    prints. ``sys.stdin`` and ``sys.stdout`` stay None where they were: what needs one says so.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (as long as the process)


def abandon_stdout() -> None:
    """Drop what stdout still holds and could not write: at the end it would be tried again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def speak_utf8() -> None:
    """Write UTF-8 whatever the locale says: it is what models speak, and what a pipe expects.

    A file name that is not UTF-8 is shown with escapes for its bytes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def at_terminal() -> bool:
    """Whether a person types and reads here; a stream that was closed is None."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def console(*, stderr: bool = False) -> Console:
    """A console for stdout or stderr that folds to a terminal's width and leaves a pipe alone."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if stream.isatty() else _UNFOLDED,
    )


def screen() -> Console | None:
    """The terminal on stderr, or None where nothing can be redrawn (a pipe, ``TERM=dumb``)."""
    if not sys.stderr.isatty():
        return None
    err = console(stderr=True)
    return None if err.is_dumb_terminal else err


def show(view: RenderableType) -> None:
    """Print a result on stdout; a pipe gets no padding at the ends of lines."""
    out = console()
    if out.file.isatty():
        # Where no table fits, the terminal folds its lines, and no number is cut. So it does with
        # what may neither fold nor be cut, such as a command to copy.
        out.width = max(out.width, _NARROWEST)
        out.print(view, crop=False)
        return
    with out.capture() as captured:
        out.print(view)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")
    # Now, where an error is still told, and not as the interpreter ends.
    sys.stdout.flush()


def note(text: str) -> None:
    """Say a line on stderr as an aside, dim where that can be shown."""
    line = one_line(shortened(text, LONGEST_LINE))
    console(stderr=True).print(line, style="dim", soft_wrap=True)


def complain(text: str) -> None:
    """Write one ``error: …`` line on stderr."""
    from rich.text import Text

    # What a parser says may have several lines.
    words = " ".join(filter(None, map(str.strip, text.split("\n"))))
    line = Text.assemble(
        ("error:", "bold red"), " ", one_line(shortened(words, LONGEST_LINE, end=500))
    )
    console(stderr=True).print(line, soft_wrap=True)


class _LogLines(logging.Handler):
    """What the package logs, as lines on stderr: warnings named as such, the rest plain."""

    def __init__(self, shown: Callable[[str], str]) -> None:
        super().__init__()
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = one_line(f"{record.levelname.lower()}: {self._shown(text)}")
        sys.stderr.write(f"{printable(text)}\n")


def show_log(*, verbose: bool, shown: Callable[[str], str]) -> None:
    """Send the package's warnings to stderr; with `verbose` all of its log, llama.cpp's too.

    Args:
        shown: from the text of a warning to what a person reads.
    """
    package = logging.getLogger("llama4_edge")
    handler = _LogLines(shown)
    if verbose:
        package.setLevel(logging.INFO)
    else:
        handler.setLevel(logging.WARNING)
        # llama.cpp warns about every model; what matters of it comes back as an error.
        handler.addFilter(lambda record: not record.name.startswith("llama4_edge.llama_cpp"))
    package.handlers = [handler]
