"""How threads are waited for whose files are closed next."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress


def end(pool: ThreadPoolExecutor) -> None:
    """Return once all threads of `pool` have ended, however often this is interrupted."""
    ended = threading.Event()

    def wait() -> None:
        pool.shutdown()
        ended.set()

    # Not waited for here: an interrupted join takes the thread for ended (CPython before 3.13).
    threading.Thread(target=wait, name="end").start()
    while not ended.is_set():
        with suppress(KeyboardInterrupt):
            ended.wait()
