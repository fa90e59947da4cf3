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
    """Read pieces from all over a file, once at least, and as often as 0.4 seconds allow.

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
    threads = min(usable_threads(), _THREADS)
    count, seconds, begun = 0, 0.0, time.perf_counter()
    with (
        mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapping,
        ThreadPoolExecutor(threads, "read-rate") as pool,
    ):
        address = np.frombuffer(mapping, dtype=np.uint8).ctypes.data
        while True:
            place = random.randrange(size - piece + 1)
            forget_cached(descriptor, max(place - _AROUND, 0), piece + 2 * _AROUND)
            if not _is_cached(descriptor, place + piece // 2):
                edges = np.linspace(place, place + piece, threads + 1).astype(int).tolist()
                parts = [(address + begin, address + end) for begin, end in pairwise(edges)]
                started = time.perf_counter()
                errors = [error for error in pool.map(_populate, parts) if error]
                seconds += time.perf_counter() - started
                if errno.EINVAL in errors:
                    return _unmeasured("Linux is older than 5.14")
                if errors:
                    raise OSError(errors[0], os.strerror(errors[0]))
                count += piece
            if time.perf_counter() - begun >= _LONG_ENOUGH:
                break
    if not count:
        return _unmeasured("the file stays in memory: it lies there, or somebody uses it")
    return ReadRate(int(count / seconds), "measured now, by mapping parts of the file")


def _is_cached(descriptor: int, place: int) -> bool:
    """Whether a byte of a file is in memory."""
    try:
        return os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT) > 0
    except OSError:  # it would have to wait, or the file system does not say
        return False


def _populate(part: tuple[int, int]) -> int:
    """Bring a part of a mapping into memory; the number of the error, 0 if there is none."""
    begin, end = part
    begin -= begin % mmap.PAGESIZE
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return ctypes.get_errno() if madvise(begin, end - begin, _MADV_POPULATE_READ) else 0
