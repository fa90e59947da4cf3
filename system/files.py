"""Writes a small file in one step: under its name is the old content or the new one, never a part.

Promises that what was written is on the disk before it has the name, that a symbolic link is
written through, and that nothing but a regular file is replaced.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path


def write_atomically(
    target: str | os.PathLike[str],
    data: str | bytes,
    *,
    private: bool = False,
    temporary: Path | None = None,
) -> None:
    """Write `data`, text as UTF-8, to `target`, which may exist.

    Args:
        private: readable by the owner alone; otherwise as the umask says.
        temporary: what it is called until it is whole; by default a name that nobody else uses. A
            caller that alone writes to `target`, and may be killed, gives the same one each time,
            and leaves one file at most.

    Raises:
        OSError: `target` cannot be written, or is a directory, a device or a pipe.
    """
    # Beside the file that a link points to: a rename works within one file system.
    path = Path(os.path.realpath(target))
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", os.fspath(target))
    if temporary is None:
        temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
