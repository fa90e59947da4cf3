"""How fast a file is read from its disk, past the page cache.

Promises a measured rate or a reason why there is none, in half a second, and that what others have
cached stays cached.
"""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .cores import usable_threads

_BLOCK = 2**20
_LONG_ENOUGH = 0.4  # seconds
_MOST = 2**30
# Fewer bytes lie in a disk's own cache, and take less time than can be measured.
_LEAST = 2**26
_THREADS = 4


@dataclass(frozen=True)
class ReadRate:
    """Bytes a second that a file's disk gives, None where that was not measured; and how, or why
    not."""

    bytes_per_second: int | None
    source: str


def read_rate(path: str | os.PathLike[str]) -> ReadRate:
    """Read blocks of a file from all over it, as often as 0.4 seconds allow.

    Several threads read at the same time, as the threads of a decoder do. Linux alone can read past
    the page cache without dropping what is in it (``O_DIRECT``).
    """
    direct = getattr(os, "O_DIRECT", None)
    if direct is None:
        return ReadRate(None, "not measured because this system has no reads past its cache")
    path = Path(path)
    try:
        status = path.stat()
        if status.st_size < _LEAST:
            return ReadRate(None, "not measured because the file is too small")
        if status.st_blocks * 512 < status.st_size // 2:
            return ReadRate(None, "not measured because the file is mostly holes")
        descriptor = os.open(path, os.O_RDONLY | direct)
        try:
            return _measured(descriptor, status.st_size)
        finally:
            os.close(descriptor)
    except OSError as error:
        return ReadRate(None, f"not measured because the file cannot be read: {error.strerror}")


def _measured(descriptor: int, size: int) -> ReadRate:
    places = list(range(0, size - _BLOCK + 1, _BLOCK))
    random.shuffle(places)
    places = places[: _MOST // _BLOCK]
    end = time.perf_counter() + _LONG_ENOUGH
    local = threading.local()

    def read(place: int) -> int:
        if time.perf_counter() > end:
            return 0
        if not hasattr(local, "buffer"):
            local.buffer = mmap.mmap(-1, _BLOCK)  # on a page's edge, as direct reads want it
        return os.preadv(descriptor, [local.buffer], place)

    with ThreadPoolExecutor(min(usable_threads(), _THREADS), "read-rate") as pool:
        begun = time.perf_counter()
        count = sum(pool.map(read, places))
        seconds = time.perf_counter() - begun
    if not count:
        return ReadRate(None, "not measured because the file became shorter")
    return ReadRate(int(count / seconds), "measured now, by reading parts of the file")
