"""The messages of earlier chats, in a file that their owner alone can read.

Promises that a file of any size and content is offered in bounded memory, and that a disk which is
full ends no chat. Does not know when a message is sent.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SessionError
from .console import note

if TYPE_CHECKING:
    from prompt_toolkit.history import History

_MOST_BYTES = 1 << 20
"""How much of the end of the file is offered: thousands of messages."""


def history_file() -> Path:
    """The file of earlier messages, made if it is absent, readable by its owner only.

    Raises:
        SessionError: it cannot be made or written.
    """
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # the XDG rules say to ignore it then
        state = Path("~/.local/state")
    path = state / "llama4-edge" / "history"
    try:
        path = path.expanduser()
        folder = path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        if not regular:  # reading a pipe would wait, and a device never ends
            raise OSError(0, "not a regular file")
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody has a home here
        raise SessionError(
            f"the history {path} cannot be written, earlier messages will not be offered",
            found=error.strerror if isinstance(error, OSError) else str(error),
        ) from error
    return path


def open_history(path: Path) -> History:
    """The messages in the file, and a place for the next ones, for a prompt."""
    from prompt_toolkit.history import FileHistory

    class BoundedHistory(FileHistory):
        """The end of the file; what cannot be written to it stays for this chat."""

        def __init__(self) -> None:
            super().__init__(path)
            self._writable = True

        def load_history_strings(self) -> Iterable[str]:
            """The messages, the last one first."""
            return reversed(_messages(path))

        def store_string(self, string: str) -> None:
            """Append a message."""
            try:
                super().store_string(string)
            except OSError as error:
                if self._writable:
                    note(f"The history {path} cannot be written: {error.strerror}.")
                self._writable = False

    return BoundedHistory()


def _messages(path: Path) -> list[str]:
    """The messages at the end of the file: its lines that begin with +, next to each other."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _MOST_BYTES))
            lines = file.read(_MOST_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return []
    return [
        "\n".join(line[1:] for line in group)
        for is_message, group in groupby(lines, key=lambda line: line.startswith("+"))
        if is_message
    ]
