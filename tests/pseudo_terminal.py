"""A pseudo-terminal with the `llama4` command on it."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# A terminal's Ctrl-C reaches the processes whose controlling terminal it is.
AT_A_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
LLAMA4 = "from llama4_edge.__main__ import main; main()"

# An answer of the small checkpoints' random models that goes on until the context is full, always
# the same one: it has none of the tokens that would end it.
ENDLESS = ("-s", "1", *(word for end in (1001, 1007, 1008) for word in ("-l", f"{end}-inf")))

# Far more than any step takes; only a step that never ends reaches it.
PATIENCE = 120.0

# prompt_toolkit asks for bracketed pastes when it is ready for keys, and ends that when it has
# taken a message. All other control sequences are left out of what a test reads.
READY, TAKEN = "<ready>", "<taken>"
MEANINGS = {"\x1b[?2004h": READY, "\x1b[?2004l": TAKEN}
CONTROL_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[^\[])")


class Terminal:
    """A pseudo-terminal of 100 columns with the command on it.

    Args:
        before: Python that the process runs before the command.

    Attributes:
        first_modes: the settings that the terminal had before the process began.
    """

    def __init__(
        self, *arguments: object, term: str, state: Path, rows: int = 30, before: str = ""
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 100, 0, 0))
        self.first_modes = self.modes
        # Nobody answers the question where the cursor is.
        environment = {
            **os.environ,
            "TERM": term,
            "XDG_STATE_HOME": str(state),
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", AT_A_TERMINAL + before + LLAMA4, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self._unread = self._begun = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def modes(self) -> list[Any]:
        """The settings of the terminal, as `termios.tcgetattr` returns them."""
        return termios.tcgetattr(self._master)

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until `pattern` is there; what came up to its end."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self._unread, re.DOTALL)):
            if time.monotonic() > deadline or not self._read():
                pytest.fail(f"no {pattern!r} in {self._unread!r}")
        text, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return text

    def wait_for_end(self) -> tuple[int, str]:
        """The exit code, and what came until then."""
        while self._read():
            pass
        return self._process.wait(PATIENCE), self._unread

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], PATIENCE)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        text = self._begun + self._decoder.decode(data)
        # A sequence may be cut in two where the reading stopped.
        whole = re.sub(r"\x1b(\[[0-9;?]*)?$", "", text)
        self._begun = text[len(whole) :]
        self._unread += CONTROL_SEQUENCE.sub(lambda one: MEANINGS.get(one[0], ""), whole)
        return bool(data)


OpenTerminal = Callable[..., Terminal]
