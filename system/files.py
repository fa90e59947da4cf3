"""Writes a small file in one step, and knows what disks cannot do and why they refuse.

Promises that under a file's name is the old content or the new one, never a part; that what was
written is on the disk before it has the name, that a symbolic link is written through, and that
nothing but a regular file is replaced.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

# What file systems answer that have no fsync: names and bytes are as safe there as they get.
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

_DISK_HINTS = {
    errno.ENOSPC: "Free some space there, or choose another disk.",
    errno.EDQUOT: "Your quota is used up there: remove files of yours, or choose another disk.",
    errno.EROFS: "That file system is read-only: choose another directory.",
    errno.EACCES: "Change its permissions, or choose another directory.",
    errno.EPERM: "Its permissions or its file system do not allow it: choose another directory.",
    errno.ENAMETOOLONG: "Choose a directory with a shorter path, or another file system.",
    errno.EFBIG: "That file system, or a limit of this process (ulimit -f), allows no file as "
    "large: choose another disk (FAT ends at 4 GiB).",
    errno.EIO: "The disk, or the network that it is on, fails: check it, or choose another.",
    errno.ESTALE: "The network file system lost the directory: mount it again.",
    errno.ENOENT: "Make the directory first.",
    errno.ENOTDIR: "A file lies where a directory is needed: move it away.",
    errno.EISDIR: "A directory lies where a file is needed: move it away.",
    errno.EEXIST: "Something else lies there: move it away.",
    errno.ELOOP: "A symbolic link lies there: move it away.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n).",
}


def disk_hint(error: OSError) -> str:
    """What to do about a file that cannot be written: one sentence, by the system's reason."""
    return _DISK_HINTS.get(error.errno or 0, "Check that disk, or choose another.")


def is_file(path: Path) -> bool:
    """Whether a regular file is there that can be reached; a name too long for a file is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """Whether a directory is there that can be reached."""
    try:
        return path.is_dir()
    except OSError:
        return False


def sync(descriptor: int, *, data_only: bool = False) -> None:
    """Bring what was written to the disk, as far as its file system can.

    Args:
        descriptor: of a file or a directory.
        data_only: times of the last change may be lost.

    Raises:
        OSError: the disk failed, so that what was written may be lost.
    """
    # macOS and Windows have no fdatasync.
    how = getattr(os, "fdatasync", os.fsync) if data_only else os.fsync
    try:
        how(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def open_partial(path: Path) -> BinaryIO:
    """Open a file that is written bit by bit, by several runs: for reading, and to append.

    Raises:
        OSError: it cannot be, or is a link, a device or a pipe.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EEXIST, "Not a regular file, or one with another name", str(path))
    return os.fdopen(descriptor, "a+b")


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
        temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
