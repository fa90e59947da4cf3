"""Keeps an open file for one process at a time, on any system.

The lock is on the file itself and not on another one beside it (as `filelock` has it), so that
nothing is left behind: it ends when the file is closed, by whatever end of the process.
"""

from __future__ import annotations

import errno
import logging
import os
import sys

logger = logging.getLogger(__name__)

# What file systems answer that have no locks: some mounts of NFS, Lustre and FUSE.
_UNSUPPORTED = {
    errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP,
    errno.EINVAL, errno.EPERM, errno.EACCES,
}  # fmt: skip
# What says that another process has the lock.
_HELD = (BlockingIOError, PermissionError) if os.name == "nt" else (BlockingIOError,)


def lock(descriptor: int, name: str | os.PathLike[str]) -> bool:
    """Lock the open file until it is closed; False where it is locked already.

    On a file system that has no locks it stays unlocked, which a warning says.

    Args:
        descriptor: of the file.
        name: of the file, for the warning.

    Raises:
        OSError: it cannot be locked for another reason.
    """
    try:
        return try_lock(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        logger.warning(
            "%s cannot be locked (%s): its file system has no locks. "
            "Do not write to it from two processes at once.",
            os.fspath(name),
            error.strerror,
        )
        return True


def try_lock(descriptor: int) -> bool:
    """The same, but an OSError where the file system has no locks."""
    try:
        _lock(descriptor)
    except _HELD:
        return False
    return True


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        # Windows locks ranges of bytes, and nobody else may read them: one far behind the end.
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, 2**62, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
