"""Files read piece by piece, on all cores, in order: for whoever looks at every byte of them.

Promises that few pieces are held at a time, and that what was read leaves the page cache again.
Knows nothing of what is in a piece.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ...system.page_cache import forget_cached

Bytes = npt.NDArray[np.uint8]

Key = TypeVar("Key")
Finding = TypeVar("Finding")


def in_order(
    pool: ThreadPoolExecutor,
    pieces: Iterable[tuple[Key, Callable[[], Finding]]],
    *,
    ahead: int,
) -> Iterator[tuple[Key, Finding]]:
    """What the function of each piece returns, in their order; `ahead` of them are under way."""
    flights: deque[tuple[Key, Future[Finding]]] = deque()
    try:
        for key, look in pieces:
            if len(flights) == ahead:
                landed, future = flights.popleft()
                yield landed, future.result()
            flights.append((key, pool.submit(look)))
        while flights:
            landed, future = flights.popleft()
            yield landed, future.result()
    finally:
        for _, future in flights:
            future.cancel()


def read_into(descriptor: int, offset: int, data: Bytes) -> None:
    """Fill `data` from byte `offset` of a file on.

    Raises:
        OSError: it cannot be read, or ends before that.
    """
    done = 0
    while done < data.size:
        count = os.preadv(descriptor, [data.data[done:]], offset + done)
        if count == 0:
            raise OSError("it became shorter")
        done += count
    forget_cached(descriptor, offset, data.size)
