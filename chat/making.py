"""What takes long is made in threads of its own, a few at a time, and waited for within a time.

Promises that no more is under way than that, even where nobody waits any more; that what has not
begun is given up with whoever waited for it; and that what asks `go_on` ends soon after. Knows
nothing of what is made.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent import futures
from typing import Any, Generic, TypeVar

from ..errors import BusyError, SettingError

_T = TypeVar("_T")

MOST_AT_ONCE = 4
"""How many are made at a time."""

STACK = 2**26
"""Bytes of the stack of each thread, of which what recursion does not need is never touched."""

MOST_WAITING = 256
"""How many may wait until they are begun."""


class Making(Generic[_T]):
    """Something that is made, or waits until it is.

    Args:
        make: makes it, in another thread.
        what: the setting that asks for it, for errors.
    """

    def __init__(self, make: Callable[[], _T], what: str) -> None:
        self._make: Callable[[], _T] | None = make
        self._what = what
        self._future: futures.Future[_T] = futures.Future()
        self.is_wanted = True

    def run(self) -> None:
        """Make it, if somebody still waits."""
        make, self._make = self._make, None
        if make is None or not self._future.set_running_or_notify_cancel():
            return
        _here.making = self
        try:
            self._future.set_result(make())
        except BaseException as error:
            # Without its frames: what was begun may be hundreds of MB.
            self._future.set_exception(error.with_traceback(None))
        finally:
            _here.making = None

    def result(self, seconds: float) -> _T:
        """What is made, waited for.

        Raises:
            BusyError: it has not begun within that time.
            SettingError: it takes longer.
            BaseException: what ``make`` raises.
        """
        try:
            futures.wait([self._future], seconds)
            return self._result(seconds)
        finally:
            self._give_up()

    async def awaited(self, seconds: float) -> _T:
        """The same for a task."""
        future = asyncio.wrap_future(self._future)
        try:
            await asyncio.wait([future], timeout=seconds)
            return future.result() if future.done() else self._result(seconds)
        finally:
            future.cancel()
            self._give_up()

    def _result(self, seconds: float) -> _T:
        if self._future.done():
            return self._future.result()
        if self._future.cancel():
            raise BusyError(
                f"{self._what} cannot be compiled now",
                found=f"{MOST_AT_ONCE} others that take long",
                hint="Try again later.",
            )
        raise SettingError(f"{self._what} takes too long to compile", expected=f"{seconds:g} s")

    def _give_up(self) -> None:
        self.is_wanted = False
        if self._future.cancel():
            self._make = None


class Makers:
    """The threads in which things are made; they end when there is nothing to make."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Making[Any]] = deque()
        self._n_threads = 0

    def begin(self, make: Callable[[], _T], what: str) -> Making[_T]:
        """Have something made, as soon as others are.

        Raises:
            BusyError: too many wait already.
        """
        making = Making(make, what)
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                raise BusyError(
                    f"{what} cannot be compiled now",
                    found=f"{len(self._waiting)} others that wait",
                    hint="Try again later.",
                )
            self._waiting.append(making)
            if self._n_threads < MOST_AT_ONCE:
                self._n_threads += 1
                self._start()
        return making

    def _start(self) -> None:
        # Daemons: no process waits at its end for what nobody wants.
        thread = threading.Thread(target=self._work, name="compiling", daemon=True)
        before = threading.stack_size(STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._n_threads -= 1
                    return
                making = self._waiting.popleft()
            making.run()
            del making


class _Here(threading.local):
    making: Making[Any] | None = None


_here = _Here()


class GivenUpError(Exception):
    """Nobody waits any more for what this thread makes."""


def go_on() -> None:
    """Return if somebody waits for what this thread makes, or it makes nothing.

    Raises:
        GivenUpError: nobody does.
    """
    if _here.making is not None and not _here.making.is_wanted:
        raise GivenUpError
