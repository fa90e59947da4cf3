"""The one thread: its calls, their reports, and the ways in which they end early."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from llama4_edge.errors import EngineError, WorkerError
from llama4_edge.runtime.bindings import thread as thread_module
from llama4_edge.runtime.bindings.thread import NativeThread, native_thread
from tests.asking import until


@pytest.fixture
def thread() -> Iterator[NativeThread]:
    made = NativeThread()
    yield made
    made.end()


def interrupt_main_thread() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """A thread that does it, and what came of it: a result or an error."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    started = threading.Thread(target=run)
    started.start()
    return started, outcome


# --- calls and reports


def test_all_calls_are_made_in_one_thread_that_is_not_the_callers(thread: NativeThread) -> None:
    made_in = {thread.call(threading.get_ident) for _ in range(10)}
    assert len(made_in) == 1
    assert made_in != {threading.get_ident()}


def test_an_error_in_the_work_reaches_the_caller(thread: NativeThread) -> None:
    def work() -> None:
        raise ValueError("from the other thread")

    with pytest.raises(ValueError, match="from the other thread"):
        thread.call(work)
    assert thread.call(lambda: 42) == 42


def test_a_call_within_a_call_is_made_at_once(thread: NativeThread) -> None:
    assert thread.call(lambda: thread.call(lambda: thread.is_current))
    assert not thread.is_current


def test_reports_are_made_in_the_callers_thread_and_before_the_call_returns(
    thread: NativeThread,
) -> None:
    values: list[tuple[float, bool]] = []

    def work() -> None:
        for value in (0.0, 0.5, 1.0):
            thread.report(lambda value=value: values.append((value, thread.is_current)))  # type: ignore[misc]

    for _ in range(100):
        thread.call(work)
        assert values == [(0.0, False), (0.5, False), (1.0, False)]
        values.clear()


def test_false_from_a_report_stops_the_work_and_is_no_error(thread: NativeThread) -> None:
    later: list[str] = []

    def work() -> str:
        thread.report(lambda: False)
        until(lambda: thread.stopping)
        thread.report(lambda: later.append("not made any more"))
        return "stopped"

    assert thread.call(work) == "stopped"
    assert later == []
    assert not thread.call(lambda: thread.stopping)


def test_an_error_in_a_report_stops_the_work_and_reaches_the_caller(thread: NativeThread) -> None:
    def fail() -> None:
        raise RuntimeError("no terminal")

    def work() -> None:
        thread.report(fail)
        until(lambda: thread.stopping)
        ended.set()

    ended = threading.Event()
    with pytest.raises(RuntimeError, match="no terminal"):
        thread.call(work)
    assert ended.is_set()


def test_calls_of_many_threads_are_made_one_at_a_time(thread: NativeThread) -> None:
    running: list[int] = []
    most: list[int] = []

    def work() -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.001)
        running.pop()

    def ask() -> None:
        for _ in range(20):
            thread.call(work)

    for asking, _ in [in_background(ask) for _ in range(8)]:
        asking.join()
    assert most == [1] * 160


def test_a_thread_is_used_again_where_it_is_current_and_ended_where_it_was_made() -> None:
    before = threading.enumerate()

    def started() -> int:
        return sum(one not in before for one in threading.enumerate())

    with native_thread() as outer:
        assert started() == 1

        def work() -> bool:
            with native_thread() as inner:
                return inner is outer

        assert outer.call(work)
        assert outer.call(work)
        assert started() == 1
    assert started() == 0


# --- interrupted


def test_an_interrupt_stops_the_work_waits_for_it_and_goes_on(thread: NativeThread) -> None:
    def work() -> str:
        interrupt_main_thread()
        until(lambda: thread.stopping)
        ended.set()
        return "late"

    ended = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        thread.call(work)
    assert ended.is_set()
    assert thread.call(lambda: "next") == "next"


def test_a_second_interrupt_does_not_leave_the_work_running(thread: NativeThread) -> None:
    def work() -> None:
        interrupt_main_thread()
        until(lambda: thread.stopping)
        interrupt_main_thread()
        time.sleep(0.05)
        ended.set()

    ended = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        thread.call(work)
    assert ended.is_set()


def test_an_interrupted_call_that_waits_for_its_turn_is_never_begun(thread: NativeThread) -> None:
    begun, go_on, made = threading.Event(), threading.Event(), threading.Event()

    def slow() -> bool:
        begun.set()
        return go_on.wait(600)

    asking, outcome = in_background(lambda: thread.call(slow))
    begun.wait(600)

    def interrupt() -> None:
        until(lambda: len(thread._pending) == 2)
        interrupt_main_thread()

    with pytest.raises(KeyboardInterrupt):
        interrupting, _ = in_background(interrupt)
        thread.call(made.set)
    interrupting.join()
    go_on.set()
    asking.join()
    assert outcome == [True]  # and the one that ran was not disturbed
    thread.call(lambda: None)
    assert not made.is_set()


def test_ggml_is_told_to_abort_while_a_call_is_to_stop(thread: NativeThread) -> None:
    address, argument = thread.abort_callback
    asked = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(address)
    answers: list[bool] = []

    def work() -> None:
        answers.append(asked(argument))
        thread.report(lambda: False)
        until(lambda: thread.stopping)
        answers.append(asked(argument))

    thread.call(work)
    thread.call(lambda: answers.append(asked(argument)))
    assert answers == [False, True, False]


# --- ended


def test_ending_stops_what_runs_refuses_what_waits_and_frees_last() -> None:
    thread = NativeThread()
    order: list[str] = []
    begun = threading.Event()

    def work() -> None:
        begun.set()
        until(lambda: thread.stopping)
        order.append("stopped")

    thread.on_end = lambda: order.append("freed")
    running = in_background(lambda: thread.call(work))
    begun.wait(600)
    waiting = in_background(lambda: thread.call(lambda: order.append("never")))
    until(lambda: len(thread._pending) == 2)
    thread.end(then=lambda: order.append("left"))
    assert order == ["stopped", "freed", "left"]
    for asking, outcome in (running, waiting):
        asking.join()
        assert [str(one) for one in outcome] == ["the model was closed. Open it again."]
        assert isinstance(outcome[0], EngineError)
    with pytest.raises(EngineError, match="the model was closed"):
        thread.call(lambda: None)
    thread.end()
    assert order == ["stopped", "freed", "left"]


def test_a_thread_may_be_ended_from_within_a_call() -> None:
    thread = NativeThread()
    freed = threading.Event()
    thread.on_end = freed.set
    with pytest.raises(EngineError, match="the model was closed"):
        thread.call(thread.end)
    assert freed.wait(600)


# --- with workers


class Remote:
    """Workers that never answer, and can be cut."""

    def __init__(self) -> None:
        self.lost = False
        self.answered = threading.Event()
        self.threads: list[NativeThread] = []

    def check(self) -> None:
        if self.lost:
            raise WorkerError("the worker was lost")

    def watch(self) -> None:
        pass

    def cut(self) -> None:
        self.lost = True
        for one in self.threads:
            one.wake()


@pytest.fixture
def remote() -> Iterator[Remote]:
    made = Remote()
    yield made
    made.answered.set()


def with_remote(remote: Remote) -> NativeThread:
    remote.threads.append(NativeThread(remote))
    return remote.threads[0]


@pytest.mark.parametrize(("patience", "interrupts"), [(0.1, 1), (1000.0, 2)])
def test_what_does_not_end_when_told_to_is_given_up(
    monkeypatch: pytest.MonkeyPatch, remote: Remote, patience: float, interrupts: int
) -> None:
    """After a while, or at once when interrupted again."""
    monkeypatch.setattr(thread_module, "PATIENCE", patience)
    thread = with_remote(remote)

    def work() -> None:
        for _ in range(interrupts):
            interrupt_main_thread()
            until(lambda: thread.stopping)
            time.sleep(0.2)
        remote.answered.wait()

    with pytest.raises(KeyboardInterrupt):
        thread.call(work)
    with pytest.raises(WorkerError, match="was lost"):
        thread.call(lambda: None)
    thread.end()  # does not wait for it


def test_what_never_takes_long_is_given_up_by_itself(remote: Remote) -> None:
    thread = with_remote(remote)
    with pytest.raises(WorkerError, match="was lost"):
        thread.call(remote.answered.wait, limit=0.1)


def test_all_who_wait_for_a_lost_worker_get_its_error(remote: Remote) -> None:
    thread = with_remote(remote)
    waiting = [in_background(lambda: thread.call(remote.answered.wait)) for _ in range(3)]
    until(lambda: len(thread._pending) == 3)
    remote.cut()
    for asking, outcome in waiting:
        asking.join()
        assert [type(one) for one in outcome] == [WorkerError]


def test_ending_gives_up_a_worker_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, remote: Remote
) -> None:
    monkeypatch.setattr(thread_module, "PATIENCE", 0.1)
    thread = with_remote(remote)

    def wait_for_answer() -> None:
        remote.answered.wait()

    thread.on_end = wait_for_answer
    thread.end()
    assert remote.lost


# --- the end of Python

_PROGRAM = """
import sys, threading, time
from llama4_edge.runtime.bindings.thread import NativeThread
thread = NativeThread()
def work():
    begun.set()
    while not thread.stopping:
        time.sleep(0.001)
    print("stopped", flush=True)
thread.on_end = lambda: print("freed", flush=True)
begun = threading.Event()
threading.Thread(target=lambda: thread.call(work), daemon=True).start()
begun.wait()
sys.exit(7)
"""


def test_the_end_of_python_stops_what_runs_and_frees() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=600
    )
    assert (result.returncode, result.stdout, result.stderr) == (7, "stopped\nfreed\n", "")


def test_a_signal_handler_may_call_where_it_interrupts_one_who_holds_the_lock(
    thread: NativeThread,
) -> None:
    answers: list[int] = []

    def interrupted() -> None:
        with thread._lock, thread._lock:
            answers.append(thread.call(lambda: 1))
            assert thread._lock._is_owned()  # type: ignore[attr-defined]
        thread.end()

    caller = threading.Thread(target=interrupted, daemon=True)
    caller.start()
    caller.join(600)
    assert answers == [1]
    assert not caller.is_alive()


def test_a_thread_whose_start_is_interrupted_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        NativeThread()
    started[0].join(600)
    assert not started[0].is_alive()


def test_threads_that_lost_a_worker_are_awaited_together_at_the_end() -> None:
    program = """
import threading, time
from llama4_edge.errors import WorkerError
from llama4_edge.runtime.bindings.thread import NativeThread
class Remote:
    lost = False
    def check(self):
        if self.lost:
            raise WorkerError("lost")
    def watch(self):
        self.lost = True
    def cut(self):
        self.lost = True
for _ in range(30):
    try:
        NativeThread(Remote()).call(threading.Event().wait, limit=0.01)
    except WorkerError:
        pass
"""
    # One after the other they take 300 s.
    subprocess.run([sys.executable, "-c", program], timeout=250, check=True)
