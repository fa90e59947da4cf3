from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from llama4_edge.runtime.bindings import interruptible
from llama4_edge.runtime.bindings.interruptible import interruptibly

Stopping = Callable[[], bool]
Report = Callable[[float], None]


def interrupt_main_thread() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def never(_: object) -> None:
    raise AssertionError("there was nothing to discard")


def test_the_result_of_the_work_is_returned():
    assert interruptibly(lambda stopping, report: 42, lambda _: True, never) == 42


def test_an_error_in_the_work_reaches_the_caller():
    def work(stopping: Stopping, report: Report) -> None:
        raise ValueError("from the other thread")

    with pytest.raises(ValueError, match="from the other thread"):
        interruptibly(work, lambda _: True, never)


def test_the_work_runs_in_another_thread_and_reports_into_this_one():
    threads: list[threading.Thread] = []
    values: list[float] = []

    def work(stopping: Stopping, report: Report) -> None:
        threads.append(threading.current_thread())
        for value in (0.0, 0.5, 1.0):
            report(value)

    def on_report(value: float) -> bool:
        threads.append(threading.current_thread())
        values.append(value)
        return True

    interruptibly(work, on_report, never)
    assert values == [0.0, 0.5, 1.0]
    assert threads[0] is not threading.current_thread()
    assert set(threads[1:]) == {threading.current_thread()}


def test_false_from_the_report_stops_the_work_and_is_no_error():
    values: list[float] = []

    def work(stopping: Stopping, report: Report) -> str:
        report(0.0)
        while not stopping():
            threading.Event().wait(0.001)
        report(1.0)
        return "stopped"

    def on_report(value: float) -> bool:
        values.append(value)
        return False

    assert interruptibly(work, on_report, never) == "stopped"
    assert values == [0.0]


def test_an_interrupt_stops_the_work_waits_for_it_and_goes_on():
    discarded: list[str] = []
    ended = threading.Event()

    def work(stopping: Stopping, report: Report) -> str:
        interrupt_main_thread()
        while not stopping():
            threading.Event().wait(0.001)
        ended.set()
        return "late"

    with pytest.raises(KeyboardInterrupt):
        interruptibly(work, lambda _: True, discarded.append)
    assert ended.is_set()
    assert discarded == ["late"]


def test_a_second_interrupt_does_not_leave_the_work_running():
    ended = threading.Event()

    def work(stopping: Stopping, report: Report) -> None:
        interrupt_main_thread()
        while not stopping():
            threading.Event().wait(0.001)
        interrupt_main_thread()
        threading.Event().wait(0.05)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        interruptibly(work, lambda _: True, lambda _: None)
    assert ended.is_set()


def test_an_error_in_the_report_stops_the_work_and_reaches_the_caller():
    stopped = threading.Event()

    def work(stopping: Stopping, report: Report) -> None:
        report(0.0)
        while not stopping():
            threading.Event().wait(0.001)
        stopped.set()

    def fail(_: float) -> bool:
        raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        interruptibly(work, fail, lambda _: None)
    assert stopped.is_set()


@pytest.mark.parametrize(("patience", "interrupts"), [(0.1, 1), (1000.0, 2)])
def test_work_that_does_not_end_when_told_to_is_given_up(monkeypatch, patience, interrupts):
    """After a while, or at once when interrupted again."""
    monkeypatch.setattr(interruptible, "PATIENCE", patience)
    given_up = threading.Event()
    told: list[bool] = []

    def work(stopping: Stopping, report: Report) -> None:
        for _ in range(interrupts):
            interrupt_main_thread()
            while not stopping():
                time.sleep(0.01)
            time.sleep(0.2)
        given_up.wait()
        told.append(stopping())

    with pytest.raises(KeyboardInterrupt):
        interruptibly(work, lambda _: True, lambda _: None, given_up.set)
    assert told == [True]
