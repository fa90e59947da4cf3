"""Where the process begins: `llama4`, or ``python -m llama4_edge``.

Promises that Ctrl-C ends the command with one line, also while its modules are being imported, and
while the process ends. Does not know any command.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command, and exit."""
    # A process that a shell started in the background ignores Ctrl-C, and goes on doing so.
    heeds = signal.getsignal(signal.SIGINT) == signal.default_int_handler
    if heeds:
        signal.signal(signal.SIGINT, _end)
    from .cli import main as run

    try:
        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run(prog_name="llama4")
    finally:
        if heeds:
            signal.signal(signal.SIGINT, _end)
    raise SystemExit(0)


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
