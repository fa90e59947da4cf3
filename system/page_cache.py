"""Drops cached pages of files that are read or written once, so that others keep theirs."""

from __future__ import annotations

import os
from contextlib import suppress

# The largest folio, the unit in which Linux caches a file and drops it.
_LARGEST_FOLIO = 4 << 20


def forget_cached(descriptor: int, offset: int, length: int) -> None:
    """Drop the cached pages of `length` bytes from `offset` that are on the disk.

    Those just before are dropped again: they may share a folio that was in use the first time.
    Does nothing on a system without ``posix_fadvise``.
    """
    begin = max(0, offset - _LARGEST_FOLIO)
    _advise(descriptor, begin, offset + length - begin)


def start_writing(descriptor: int, offset: int, length: int) -> None:
    """Start writing `length` dirty bytes from `offset` to the disk, without waiting.

    Linux does so when it is told that the pages are not needed; it drops only clean ones.
    """
    _advise(descriptor, offset, length)


def _advise(descriptor: int, offset: int, length: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # a file system that takes no advice
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
