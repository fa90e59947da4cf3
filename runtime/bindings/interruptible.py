"""Runs a long native call so that Ctrl-C stops it, and stops it whole.

Promises that when ``interruptibly`` returns or raises, the work is no longer running. Knows nothing
of llama.cpp.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

PATIENCE = 10.0
"""Seconds in which work that was told to stop should end, if there is a way to give it up."""


def interruptibly(
    work: Callable[[Callable[[], bool], Callable[[float], None]], _T],
    on_report: Callable[[float], bool],
    discard: Callable[[_T], None],
    give_up: Callable[[], None] | None = None,
) -> _T:
    """Run native work in a second thread, so that this one can be interrupted while it waits.

    A call into llama.cpp holds Python's signal handlers off until it returns, which may take
    minutes. ``work`` gets a function that says whether to stop, and one that reports a number to
    ``on_report`` in the calling thread (False stops the work). If the caller is interrupted, the
    work is told to stop and waited for, its result is discarded, and the interrupt goes on.

    Args:
        give_up: makes the work end that was told to stop and goes on for ``PATIENCE`` seconds, or
            after a second interrupt; None waits, whatever may come.
    """
    stop, begun, ended = threading.Event(), threading.Event(), threading.Event()
    reports: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        begun.set()
        try:
            if not stop.is_set():
                results.append(work(stop.is_set, reports.put))
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()
            reports.put(None)

    thread = threading.Thread(target=run, name="llama.cpp", daemon=True)
    interrupt: BaseException | None = None
    try:
        thread.start()
        while (value := reports.get()) is not None:
            if not stop.is_set() and not on_report(value):
                stop.set()
    except BaseException as error:
        interrupt = error
        stop.set()
    # A second Ctrl-C while the work is ending must not leave it running. (Thread.join would do just
    # that: interrupted, Python up to 3.12 takes the thread for ended.)
    while not ended.is_set():
        try:
            if not begun.wait(timeout=1.0):
                break  # the thread could not be started; should it begin yet, it ends at once
            if not ended.wait(PATIENCE if give_up else None) and give_up:
                give_up()
        except BaseException as error:
            if interrupt is not None and give_up:
                give_up()
            interrupt = error
            stop.set()
    if interrupt is not None:
        for result in results:
            discard(result)
        raise interrupt
    if errors:
        raise errors[0]
    return results[0]
