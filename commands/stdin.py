"""The prompt of a single answer: the argument, and standard input where it is meant.

Promises that a loop which reads lines keeps them: with a prompt, only a file given with ``<`` is
read, or what ``-`` asks for. Does not know what a prompt means.
"""

from __future__ import annotations

import os
import select
import stat
import sys

from ..errors import SettingError
from ..terminal.prompt import MOST_BYTES, decode, too_long
from ..units import told_apart
from ..untrusted import Reader

_MOST_TEXT = 1 << 30


def read_prompt(
    argument: str | None = None, *, document: bool = False, is_taken: bool = False
) -> str:
    """The argument, standard input, or one after the other.

    Without an argument, standard input is read unless it is a terminal; for ``-`` always. After an
    argument it is read where `document` is set, or where it is a regular file at its beginning: one
    that was given to this command with ``<``, and not to a loop around it, which has read from it
    before. One newline at its end is dropped, because editors and ``echo`` write it.

    Args:
        is_taken: whether something else reads it, such as ``--image -``.

    Raises:
        Llama4EdgeError: standard input, or the argument, is not UTF-8; or it is endless.
    """
    parts = []
    if argument is not None and argument != "-":
        # The interpreter hands over bytes that are not UTF-8 as lone surrogates.
        parts.append(decode(os.fsencode(argument), "the prompt"))
    # sys.stdin is None when the process was started with stdin closed.
    if sys.stdin is not None and not is_taken and (document or _is_meant(argument)):
        data = sys.stdin.buffer.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise too_long("standard input")
        parts.append(decode(data, "standard input").removesuffix("\n"))
    return "\n\n".join(part for part in parts if part)


def unread_pipe(argument: str | None, *, document: bool) -> bool:
    """Whether a pipe on standard input holds text that `read_prompt` has left there."""
    if sys.stdin is None or document or argument in (None, "-"):
        return False
    descriptor = _descriptor()
    if descriptor is None or not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return False
    if sys.platform == "win32":
        return False
    import fcntl
    import termios

    ready, _, _ = select.select([descriptor], [], [], 0)
    return bool(ready) and any(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))


def _is_meant(argument: str | None) -> bool:
    """Whether standard input is the prompt, or goes with this one, without being asked for."""
    if argument is None:
        return not sys.stdin.isatty()
    if argument == "-":
        return True
    descriptor = _descriptor()
    return (
        descriptor is not None
        and stat.S_ISREG(os.fstat(descriptor).st_mode)
        and os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    )


def _descriptor() -> int | None:
    """The descriptor of standard input; None where Python replaced it by something else."""
    try:
        return sys.stdin.fileno()
    except OSError:
        return None


def text_of_file(name: str) -> str:
    """A long text for a model to read; - is standard input.

    Raises:
        SettingError: it cannot be read, is not UTF-8, or has more than a GiB.
    """
    reader = Reader(SettingError, _MOST_TEXT)
    if name != "-":
        return reader.text(name)
    # sys.stdin is None when the process was started with stdin closed.
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(_MOST_TEXT + 1)
    if len(data) > _MOST_TEXT:
        found, limit = told_apart(len(data), _MOST_TEXT)
        raise SettingError("standard input is too long", found=found, expected=f"at most {limit}")
    return reader.decoded(data, "standard input")
