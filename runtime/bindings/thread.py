"""The one thread that calls llama.cpp for an engine: calls go into a queue, callers wait for them.

A context of llama.cpp serves one thread at a time, OpenMP's threads belong to the thread that first
needed them, and a native call holds Python's signal handlers off until it returns. A caller that
waits for another thread can be interrupted, and several callers get their turn.

Promises that a call which is interrupted, or whose thread is ended, is told to stop and is waited
for; that its result is discarded then; that nobody waits for what a lost worker will never answer;
and that no call runs any more when Python ends. Knows nothing of models.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

from ...errors import EngineError

_T = TypeVar("_T")

PATIENCE = 10.0
"""Seconds that a call with workers gets to end after it was told to stop; then they are given up.
A second interrupt gives them up at once."""

# Seconds, for workers that vanish without a word, and because a signal that comes just before
# Python begins to wait does not end the wait.
_LOOK_EVERY = 1.0


class Remote(Protocol):
    """What a call may wait for in vain: workers on other machines."""

    @property
    def lost(self) -> bool:
        """Whether one of them is gone."""

    def check(self) -> None:
        """Raise WorkerError if one of them is gone."""

    def watch(self) -> None:
        """Find out whether one of them has vanished."""

    def cut(self) -> None:
        """Give all of them up: they are lost."""


News = queue.SimpleQueue[None]
"""Tells one caller that what it waits for may have come; what is put in is of no account."""


class _Call(Generic[_T]):
    """One call: begun at most once, and never after it was refused."""

    def __init__(self, work: Callable[[], _T]) -> None:
        self.work: Callable[[], _T] | None = work
        # What the waiting caller is to do; None is to look whether the call has ended.
        self.reports: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.begun: float | None = None
        self.stopping = self.ended = False
        self.results: list[_T] = []
        self.error: BaseException | None = None


class NativeThread:
    """A thread that makes one call after the other, in the order in which they were asked for.

    Args:
        remote: workers that the calls need; a call that waits for a lost one is left behind with
            its thread, and with all the memory that llama.cpp was using.
    """

    def __init__(self, remote: Remote | None = None) -> None:
        self.on_end: Callable[[], None] | None = None
        """What is called last in the thread, if no worker was lost: frees what the calls made."""
        self._remote = remote
        self._process = os.getpid()
        # Reentrant: the garbage collector may end another engine in the middle of anything.
        self._lock = threading.RLock()
        self._calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._pending: list[_Call[Any]] = []
        self._awaited: list[News] = []
        self._current: _Call[Any] | None = None
        self._closed = False
        self._done = threading.Event()
        self._stop_text = ctypes.create_string_buffer(2)
        self._attention = ctypes.c_char(0)
        self._thread = threading.Thread(target=self._run, name="llama.cpp", daemon=True)
        try:
            self._thread.start()  # waits until it runs, which can be interrupted
            _live.add(self)
            # Handlers run in the reverse order: this one comes before all that are there now.
            atexit.unregister(_end_all)
            atexit.register(_end_all)
        except BaseException:
            self._calls.put(None)
            raise

    # --- for those who want something of llama.cpp

    def call(self, work: Callable[[], _T], *, limit: float | None = None) -> _T:
        """What ``work`` returns or raises, called in the thread when its turn comes.

        A work that calls this again has it done at once.

        Args:
            limit: seconds after whose end the workers are given up, for work that never takes long.

        Raises:
            EngineError: the thread was ended, or belongs to the process that this one is a fork of.
            WorkerError: a worker was lost, before or meanwhile.
        """
        if self.is_current:
            return work()
        self.check()
        call = _Call(work)
        interrupt: BaseException | None = None
        while True:
            try:
                if interrupt is not None:
                    self._tell_to_stop(call)
                else:
                    self._submit(call)
                with self._unlocked():
                    self._wait(call, PATIENCE if interrupt is not None else limit)
                break
            except BaseException as error:
                if interrupt is not None and self._remote is not None:
                    self._remote.cut()
                interrupt = error
        _park_if_python_ends()
        try:
            if interrupt is not None:
                raise interrupt
            if not call.ended or self._lost:
                self.check()  # raises: a worker was lost
            if self._closed and call.stopping:
                raise _ended()
            if call.error is not None:
                raise call.error
            return call.results[0]
        finally:
            del interrupt, call  # errors keep their frames, and with them what is named there

    def post(self, work: Callable[[], object]) -> None:
        """Have ``work`` done when its turn comes, without waiting; never, once the thread ends.

        May be called from a finalizer. What the work raises is lost.
        """
        if not self.is_foreign:
            self._calls.put(_Call(work))
            self.ask_attention()

    def wait(self, news: News, is_there: Callable[[], bool]) -> None:
        """Until something is there that posted work brings; looked for whenever there are news.

        Raises:
            EngineError: as `call`, or this is the thread itself, which would wait for ever.
            WorkerError: as `call`.
        """
        if self.is_current:
            raise EngineError("the engine's own thread cannot wait for an answer")
        self._awaited.append(news)
        try:
            with self._unlocked():
                while not is_there():
                    self.check()
                    with suppress(queue.Empty):
                        news.get(timeout=_LOOK_EVERY)
                    if self._remote is not None:
                        self._remote.watch()
        finally:
            self._awaited.remove(news)
        _park_if_python_ends()

    @property
    def is_wanted(self) -> bool:
        """Whether more calls wait for the thread."""
        return not self._calls.empty()

    @property
    def is_current(self) -> bool:
        """Whether this is the thread itself."""
        # Not by its number, which the system gives to another thread later.
        return getattr(_here, "thread", None) is self

    @property
    def is_foreign(self) -> bool:
        """Whether this process is a fork of the one that has the thread."""
        return self._process != os.getpid()

    @property
    def stopping(self) -> bool:
        """Asked in the thread: whether the present call is to end without a result."""
        return self._current is not None and self._current.stopping

    def report(self, action: Callable[[], object]) -> None:
        """From the thread: have the caller of the present call do this while it waits.

        An action that returns False tells the call to stop, and so does one that raises, which is
        what the caller gets.
        """
        if self._current is not None:
            self._current.reports.put(action)

    @property
    def abort_callback(self) -> tuple[int, int]:
        """A ``ggml_abort_callback`` and its argument, by address: true while a call is to stop.

        ggml asks for every operation of a graph. The C library's ``strlen`` answers, on a text
        that is empty until then, without a word of Python and without waiting for its lock.
        """
        c_library = ctypes.CDLL("msvcrt" if os.name == "nt" else None)
        address = ctypes.cast(c_library.strlen, ctypes.c_void_p).value
        assert address is not None
        return address, ctypes.addressof(self._stop_text)

    @property
    def attention(self) -> int:
        """The address of a byte that is 0 until somebody wants something, and then once more."""
        return ctypes.addressof(self._attention)

    def ask_attention(self) -> None:
        """Have a call return that takes long and looks at ``attention``; called anywhere."""
        self._attention.value = b"x"

    def pay_attention(self) -> None:
        """In the thread, before looking whether somebody wants something."""
        self._attention.value = b"\0"

    @property
    def stop(self) -> int:
        """The address of a byte that is 0 unless the present call is to stop."""
        return ctypes.addressof(self._stop_text)

    def abort_graph(self) -> None:
        """Have ggml give up the graph that it computes on the CPU; called anywhere."""
        self._stop_text[0] = b"x"

    def rearm(self) -> bool:
        """In the thread: let ggml compute again, unless the present call is to stop; whether so."""
        self._stop_text[0] = b"\0"
        if self.stopping:
            self._stop_text[0] = b"x"
            return False
        return True

    def check(self) -> None:
        """Raise EngineError or WorkerError if no call can be made."""
        _park_if_python_ends()
        if self.is_foreign:
            raise EngineError(
                "a model cannot be used in a fork of the process that opened it",
                hint='Open it in the child, or start processes with the method "spawn".',
            )
        if self._closed:
            raise _ended()
        if self._remote is not None:
            self._remote.check()

    def wake(self) -> None:
        """Let those who wait see that a worker was lost."""
        with self._lock:
            for call in self._pending:
                call.reports.put(None)
        for news in list(self._awaited):
            news.put(None)

    def end(
        self, *, free: bool = True, then: Callable[[], None] | None = None, wait: bool = True
    ) -> None:
        """Stop the present call, refuse those that wait, and let the thread free what it made.

        Both get an EngineError. Ending twice is harmless, and so is ending in a fork.

        Args:
            free: whether to call ``on_end``.
            then: what to do in the thread after that.
            wait: whether to return only when the thread has ended, or a worker is lost.
        """
        if self.is_foreign:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                posted = () if self._current is None else (self._current,)
                for call in (*self._pending, *posted):
                    self._tell_to_stop(call)
                for news in list(self._awaited):
                    news.put(None)
                for last in (self.on_end if free else None, then):
                    if last is not None:
                        self._calls.put(_Call(last))
                self._calls.put(None)
        if wait and not self.is_current:
            self._await_end()

    # --- waiting

    @property
    def _lost(self) -> bool:
        return self._remote is not None and self._remote.lost

    def _submit(self, call: _Call[Any]) -> None:
        with self._lock:
            self._pending.append(call)
            self._calls.put(call)
            self.ask_attention()
            if self._closed:
                self._tell_to_stop(call)

    def _tell_to_stop(self, call: _Call[Any]) -> None:
        """End a call that has begun soon, and one that has not at once."""
        with self._lock:
            call.stopping = True
            if call is self._current:
                self._stop_text[0] = b"x"
            elif not call.ended:
                call.error = _ended()
                self._finish(call)

    def _finish(self, call: _Call[Any]) -> None:
        """Let the caller go on."""
        if call in self._pending:
            self._pending.remove(call)
        call.work = None
        call.ended = True
        call.reports.put(None)

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        """Have the lock free for a while, which a signal handler may find in its thread's hands."""
        held = 0
        try:
            with suppress(RuntimeError):  # it is free, or another thread's
                while True:
                    self._lock.release()
                    held += 1
            yield
        finally:
            for _ in range(held):
                self._lock.acquire()

    def _wait(self, call: _Call[Any], limit: float | None) -> None:
        """Until the call has ended or a worker is lost; do what it reports meanwhile."""
        look_every = min(limit or _LOOK_EVERY, _LOOK_EVERY)
        since = time.monotonic()
        while not (call.ended and call.reports.empty()) and not self._lost:
            try:
                action = call.reports.get(timeout=look_every)
            except queue.Empty:
                action = None
            if action is not None and not call.stopping and action() is False:
                self._tell_to_stop(call)
            if self._remote is not None and not call.ended:
                self._remote.watch()
                begun = None if call.begun is None else max(call.begun, since)
                if limit is not None and begun is not None and time.monotonic() > begun + limit:
                    self._remote.cut()

    def _await_end(self) -> None:
        """Until the thread has ended or a worker is lost, whatever interrupts the waiting."""
        interrupt: BaseException | None = None
        while True:
            try:
                with self._unlocked():
                    self._see_end()
                break
            except BaseException as error:
                if interrupt is not None and self._remote is not None:
                    self._remote.cut()
                interrupt = error
        if self._done.is_set():
            self._thread.join()
        if interrupt is not None:
            raise interrupt

    def _see_end(self) -> None:
        if self._remote is None:
            self._done.wait()
            return
        deadline = time.monotonic() + PATIENCE
        while not (self._done.wait(min(PATIENCE, _LOOK_EVERY)) or self._remote.lost):
            self._remote.watch()
            if time.monotonic() > deadline:
                self._remote.cut()

    # --- in the thread

    def _run(self) -> None:
        _here.thread = self
        while (call := self._calls.get()) is not None:
            self._make(call)
            del call  # what it returned belongs to the caller alone
        self._done.set()

    def _make(self, call: _Call[Any]) -> None:
        with self._lock:
            if call.ended:
                return
            work, call.begun, self._current = call.work, time.monotonic(), call
        assert work is not None
        try:
            call.results.append(work())
        except BaseException as error:
            call.error = error
        del work
        with self._lock:
            self._current = None
            self._stop_text[0] = b"\0"
            self._finish(call)


def _ended() -> EngineError:
    return EngineError("the model was closed", hint="Open it again.")


# What each thread knows of itself: the NativeThread that it is.
_here = threading.local()


@contextmanager
def native_thread() -> Iterator[NativeThread]:
    """The thread that this is, or else a new one for as long as the block lasts."""
    here: NativeThread | None = getattr(_here, "thread", None)
    if here is not None:
        yield here
        return
    thread = NativeThread()
    try:
        yield thread
    finally:
        thread.end()


# --- the end of the process

_live: weakref.WeakSet[NativeThread] = weakref.WeakSet()
_python_ends = False


def _end_all() -> None:
    """End every call before what it uses is taken apart.

    Workers see the end of the process by themselves, and one that does not answer must not keep it
    from ending.
    """
    global _python_ends
    _python_ends = True
    ours = [thread for thread in _live if not thread.is_foreign]
    for thread in ours:
        thread.end(free=thread._remote is None, wait=not thread._lost)
    # All that lost a worker together, since most of them wait for ever.
    until = time.monotonic() + _LOOK_EVERY
    for thread in ours:
        thread._done.wait(max(0.0, until - time.monotonic()))


def _park_if_python_ends() -> None:
    """Keep a daemon thread where Python would stop it anyway, instead of letting it fail.

    Not a thread that calls llama.cpp: whoever ends it waits for it.
    """
    is_native = getattr(_here, "thread", None) is not None
    if _python_ends and not is_native and threading.current_thread() is not threading.main_thread():
        threading.Event().wait()
