"""How fast pieces of a mapped file come from its disk, as a decoder wants them.

Promises a measured rate or a reason why there is none, in half a second, and that a file which
becomes shorter meanwhile does no harm. Pages of the file that are cached are dropped around each
piece, unless somebody uses them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from .cores import usable_threads
from .page_cache import forget_cached

_LONG_ENOUGH = 0.4  # seconds
# Fewer bytes lie in a disk's own cache, and take less time than can be measured.
_LEAST = 2**26
_THREADS = 16
# What the kernel may read around a page that is missing, many times its usual window.
_AROUND = 2**24
_MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap has no name for it


@dataclass(frozen=True)
class ReadRate:
    """Bytes a second that a file's disk gives, None where that was not measured; and how, or why
    not."""

    bytes_per_second: int | None
    source: str


def read_rate(path: str | os.PathLike[str], piece: int) -> ReadRate:
    """Read pieces from all over a file, as often as 0.4 seconds allow.

    A piece is mapped, and its parts are wanted by several threads at the same time. What the kernel
    reads beside it, before and behind, takes its time and does not count.

    Args:
        piece: bytes that are wanted together, as those of one expert's matrix.
    """
    if sys.platform != "linux":
        return _unmeasured("only Linux says what it has cached")
    try:
        status = Path(path).stat()
        if status.st_size < max(_LEAST, 2 * piece):
            return _unmeasured("the file is too small")
        if status.st_blocks * 512 < status.st_size // 2:
            return _unmeasured("the file is mostly holes")
        with Path(path).open("rb") as file:
            return _measured(file.fileno(), status.st_size, piece)
    except (OSError, ValueError) as error:  # the latter where the file became empty
        return _unmeasured(f"the file cannot be read: {getattr(error, 'strerror', None) or error}")


def _unmeasured(reason: str) -> ReadRate:
    return ReadRate(None, f"not measured because {reason}")


def _measured(descriptor: int, size: int, piece: int) -> ReadRate:
    # llama.cpp advises so too (llama-mmap.cpp), which makes the kernel read ahead further.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    places = list(range(0, size - piece + 1, piece))
    random.shuffle(places)
    threads = min(usable_threads(), _THREADS)
    with (
        mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapping,
        ThreadPoolExecutor(threads, "read-rate") as pool,
    ):
        address = np.frombuffer(mapping, dtype=np.uint8).ctypes.data
        count, seconds = 0, 0.0
        for place in places:
            forget_cached(descriptor, max(place - _AROUND, 0), piece + 2 * _AROUND)
            begun = time.perf_counter()
            edges = np.linspace(place, place + piece, threads + 1).astype(int).tolist()
            parts = [(address + begin, address + end) for begin, end in pairwise(edges)]
            for error in pool.map(_populate, parts):
                if error == errno.EINVAL:
                    return _unmeasured("Linux is older than 5.14")
                if error:
                    raise OSError(error, os.strerror(error))
            seconds += time.perf_counter() - begun
            count += piece
            if seconds > _LONG_ENOUGH:
                break
    return ReadRate(int(count / seconds), "measured now, by mapping parts of the file")


def _populate(part: tuple[int, int]) -> int:
    """Bring a part of a mapping into memory; the number of the error, 0 if there is none."""
    begin, end = part
    begin -= begin % mmap.PAGESIZE
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return ctypes.get_errno() if madvise(begin, end - begin, _MADV_POPULATE_READ) else 0
