"""Waits for a thread pool whose files are closed next."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress


def end(pool: ThreadPoolExecutor) -> None:
    """Return when all threads of `pool` have ended, even if Ctrl-C comes in between."""
    ended = threading.Event()

    def wait() -> None:
        pool.shutdown()
        ended.set()

    # In a thread: CPython before 3.13 takes a thread for ended when its join is interrupted.
    try:
        threading.Thread(target=wait, name="end").start()
    except RuntimeError:  # there can be no more threads
        wait()
    while not ended.is_set():
        with suppress(KeyboardInterrupt):
            ended.wait()
