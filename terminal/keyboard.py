"""The keyboard of a terminal while the program is at work: what is typed is kept, and not shown.

Promises that the terminal is as it was found when a block ends, also where an error or a signal
ends it, and that Ctrl-C stays a signal. Does not know what the keys are for.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Ends bracketed pastes, and shows the cursor, which a prompt that was killed had changed.
_LEAVE_PROMPT = b"\x1b[?2004l\x1b[?25h"
# Signals that end or stop a process, where it has not said otherwise.
_ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT")
_STOPPING = "SIGTSTP"


class Keyboard:
    """What is typed on standard input, a terminal, while nobody reads it."""

    def __init__(self) -> None:
        self._typed = bytearray()

    def take(self) -> bytes:
        """All that was typed while `listening`, which is then forgotten."""
        typed = bytes(self._typed)
        self._typed.clear()
        return typed

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what is typed during the block; without it the terminal holds about 4,000 bytes."""
        if sys.platform == "win32":
            yield
            return
        end_reader, end_writer = os.pipe()
        listener = threading.Thread(target=self._listen, args=(end_reader,), daemon=True)
        listener.start()
        try:
            yield
        finally:
            os.close(end_writer)
            listener.join()
            os.close(end_reader)

    def _listen(self, end: int) -> None:
        terminal = sys.stdin.fileno()
        while True:
            ready, _, _ = select.select([terminal, end], [], [])
            if terminal in ready:
                try:
                    data = os.read(terminal, 4096)
                except OSError:  # the terminal has gone
                    return
                if not data:
                    return
                self._typed += data
            if end in ready:
                return


@contextmanager
def silent_terminal() -> Iterator[None]:
    """Neither show what is typed nor wait for whole lines, except where a prompt does so itself.

    Where the platform has no such terminals the block runs as it is.
    """
    if sys.platform == "win32":
        yield
        return
    import termios

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = termios.tcgetattr(terminal)
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    silent[3] |= termios.NOFLSH  # Ctrl-C takes nothing back that was typed
    silent[6][termios.VMIN], silent[6][termios.VTIME] = 1, 0

    def restore() -> None:
        termios.tcsetattr(terminal, termios.TCSANOW, before)

    with _before_signals(restore, terminal):
        termios.tcsetattr(terminal, termios.TCSANOW, silent)
        try:
            yield
        finally:
            restore()


@contextmanager
def _before_signals(restore: Any, terminal: int) -> Iterator[None]:
    """Call `restore` before a signal ends the process, or stops it until it is continued."""
    import termios

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def end(number: int, _frame: FrameType | None) -> None:
        restore()
        if os.environ.get("TERM") not in (None, "dumb"):
            os.write(sys.stdout.fileno(), _LEAVE_PROMPT)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def stop(number: int, _frame: FrameType | None) -> None:
        current = termios.tcgetattr(terminal)
        restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Continued.
        signal.signal(number, stop)
        termios.tcsetattr(terminal, termios.TCSANOW, current)

    handlers = {getattr(signal, name): end for name in _ENDING}
    handlers[getattr(signal, _STOPPING)] = stop
    old = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) == signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
