"""What is compiled: a few at a time, within a time, and not for nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from llama4_edge.chat import making
from llama4_edge.chat.making import GivenUpError, Makers, go_on
from llama4_edge.errors import BusyError, SettingError
from tests.asking import until

# Seconds, which nothing takes that ends.
PATIENCE = 600.0


class Endless:
    """Things to make that end when they are told to."""

    def __init__(self) -> None:
        self.ending, self.begun = threading.Event(), threading.Semaphore(0)
        self.gave_up = threading.Semaphore(0)

    def stubborn(self) -> None:
        """As native code does: it looks at nothing."""
        self.begun.release()
        self.ending.wait(PATIENCE)

    def polite(self) -> None:
        """As our own code does."""
        self.begun.release()
        try:
            while not self.ending.wait(0.001):
                go_on()
        except GivenUpError:
            self.gave_up.release()


@pytest.fixture
def endless() -> Iterator[Endless]:
    endless = Endless()
    yield endless
    endless.ending.set()


@pytest.fixture(autouse=True)
def nothing_else_is_made() -> None:
    """What tests before this one began has ended."""
    until(lambda: threads() == 0)


def threads() -> int:
    return sum(thread.name == "compiling" for thread in threading.enumerate())


def test_what_is_made_is_the_result_and_what_is_raised_too() -> None:
    makers = Makers()
    assert makers.begin(lambda: 5, "regex").result(PATIENCE) == 5
    with pytest.raises(ZeroDivisionError):
        makers.begin(lambda: 1 // 0, "regex").result(PATIENCE)
    assert asyncio.run(makers.begin(lambda: 5, "regex").awaited(PATIENCE)) == 5
    with pytest.raises(ZeroDivisionError):
        asyncio.run(makers.begin(lambda: 1 // 0, "regex").awaited(PATIENCE))


def test_however_many_are_given_up_no_more_are_made_at_a_time(endless: Endless) -> None:
    makers = Makers()
    for _ in range(making.MOST_AT_ONCE):
        begun = makers.begin(endless.stubborn, "grammar")
        assert endless.begun.acquire(timeout=PATIENCE)
        with pytest.raises(SettingError, match="grammar takes too long to compile"):
            begun.result(0.01)
    for _ in range(50):
        with pytest.raises(BusyError, match="regex cannot be compiled now"):
            makers.begin(endless.stubborn, "regex").result(0.001)
        with pytest.raises(BusyError):
            asyncio.run(makers.begin(endless.stubborn, "regex").awaited(0.001))
    assert threads() == making.MOST_AT_ONCE
    assert not endless.begun.acquire(blocking=False)  # none of those was begun
    endless.ending.set()
    assert makers.begin(lambda: "goes on", "regex").result(PATIENCE) == "goes on"


def test_what_waits_is_made_in_its_turn(endless: Endless) -> None:
    makers = Makers()
    ahead = [makers.begin(endless.stubborn, "regex") for _ in range(making.MOST_AT_ONCE)]
    last = makers.begin(lambda: "last", "regex")
    endless.ending.set()
    assert last.result(PATIENCE) == "last"
    for one in ahead:
        one.result(PATIENCE)


def test_more_than_may_wait_are_refused_at_once(
    endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "MOST_WAITING", 2)
    makers = Makers()
    for _ in range(making.MOST_AT_ONCE):
        makers.begin(endless.stubborn, "regex")
        assert endless.begun.acquire(timeout=PATIENCE)
    waiting = [makers.begin(lambda: 1, "regex") for _ in range(2)]
    with pytest.raises(BusyError, match="found 2 others that wait"):
        makers.begin(lambda: 1, "regex")
    endless.ending.set()
    assert [one.result(PATIENCE) for one in waiting] == [1, 1]


def test_our_own_code_ends_when_nobody_waits_any_more(endless: Endless) -> None:
    makers = Makers()
    begun = makers.begin(endless.polite, "schema")
    assert endless.begun.acquire(timeout=PATIENCE)
    with pytest.raises(SettingError):
        begun.result(0.01)
    assert endless.gave_up.acquire(timeout=PATIENCE)


def test_a_task_that_is_cancelled_gives_up_what_it_waits_for(endless: Endless) -> None:
    makers = Makers()

    async def ask() -> None:
        task = asyncio.ensure_future(makers.begin(endless.polite, "schema").awaited(PATIENCE))
        await asyncio.to_thread(endless.begun.acquire, timeout=PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    assert endless.gave_up.acquire(timeout=PATIENCE)


def test_threads_end_when_there_is_nothing_to_make() -> None:
    makers = Makers()
    for _ in range(20):
        assert makers.begin(lambda: 1, "regex").result(PATIENCE) == 1
    until(lambda: threads() == 0)
