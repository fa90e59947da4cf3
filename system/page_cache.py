"""Letting go of the page cache of what is read or written once, so that others keep theirs."""

from __future__ import annotations

import os

# The largest unit in which Linux caches a file. It is dropped only as a whole.
_LARGEST_FOLIO = 4 << 20


def forget_cached(descriptor: int, offset: int, length: int) -> None:
    """Drop what the page cache holds of `length` bytes from `offset`, as far as it is on the disk.

    Once more what lies before them too, with which they may have shared a unit that was still in
    use when that part was dropped.
    """
    if hasattr(os, "posix_fadvise"):
        begin = max(0, offset - _LARGEST_FOLIO)
        os.posix_fadvise(descriptor, begin, offset + length - begin, os.POSIX_FADV_DONTNEED)


def start_writing(descriptor: int, offset: int, length: int) -> None:
    """Have what was written to `length` bytes from `offset` brought to the disk, without waiting.

    Linux does so when it is told that nobody wants the pages, and drops only those that are clean.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
