"""Where the process begins: `llama4`, or ``python -m llama4_edge``.

Promises that Ctrl-C ends the command with one line, also while its modules are being imported, and
while the process ends. Does not know any command.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the command, and exit."""
    # A process that a shell started in the background ignores Ctrl-C, and goes on doing so.
    heeds = signal.getsignal(signal.SIGINT) == signal.default_int_handler
    if heeds:
        signal.signal(signal.SIGINT, _end)
    from .cli import main as run

    sys.unraisablehook = _end_or_report
    try:
        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run(prog_name="llama4")
    except (Exception, KeyboardInterrupt) as error:
        # A module that is being imported may turn the interrupt into an error of its own.
        if _is_interrupt(error):
            _end()
        raise
    finally:
        if heeds:
            signal.signal(signal.SIGINT, _end)
    raise SystemExit(0)


def _end(_number: int = signal.SIGINT, _frame: FrameType | None = None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def _is_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _end_or_report(unraisable: sys.UnraisableHookArgs) -> None:
    """Python goes on after an interrupt in a destructor or a callback; the command ends."""
    if _is_interrupt(unraisable.exc_value):
        _end()
    sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    main()
