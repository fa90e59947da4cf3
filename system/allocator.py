"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
import os

# M_MMAP_THRESHOLD of glibc's malloc.h, and from how many bytes on a block is mapped by itself.
_MMAP_THRESHOLD, _BYTES = -3, 1 << 20


def return_large_blocks() -> None:
    """Have large blocks given back to the system when they are freed.

    glibc maps them by itself at first, and takes them from its heaps once some were freed, where
    smaller ones that live on keep what was freed around them. Whoever keeps states of sequences
    for days, each of another size, would hold half as much again. Does nothing with another C
    library, or where MALLOC_MMAP_THRESHOLD_ says what the user wants.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        set_option(_MMAP_THRESHOLD, _BYTES)
