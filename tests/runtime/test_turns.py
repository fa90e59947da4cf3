from __future__ import annotations

import threading
import time
from collections import deque

import pytest

from llama4_edge.errors import EngineError
from llama4_edge.runtime.turns import Turn, Turns


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order = Turns(), list[int]()

    def ask(number: int) -> None:
        with turns.turn():
            order.append(number)

    waiting: list[threading.Thread] = []
    with turns.turn():
        for number in range(5):
            waiting.append(threading.Thread(target=ask, args=(number,)))
            waiting[-1].start()
            while len(turns._line) < number + 2:
                time.sleep(0.001)
        assert order == []
    for thread in waiting:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_later_turn_of_the_same_thread_supersedes_the_earlier_one() -> None:
    turns = Turns()
    with turns.turn() as first, turns.turn() as second:
        second.check()
        with pytest.raises(EngineError, match="ended by a later request to the same model"):
            first.check()


def test_the_turn_of_a_thread_that_has_ended_is_superseded() -> None:
    turns = Turns()
    abandoned = turns.turn()
    thread = threading.Thread(target=abandoned.__enter__)
    thread.start()
    thread.join()
    with turns.turn() as turn:
        assert turn.usable


def test_closing_ends_the_turn_and_those_that_wait_for_one() -> None:
    turns = Turns()
    errors: list[str] = []

    def ask() -> None:
        try:
            with turns.turn():
                pass
        except EngineError as error:
            errors.append(error.problem)

    with turns.turn() as turn:
        waiting = threading.Thread(target=ask)
        waiting.start()
        while len(turns._line) < 2:
            time.sleep(0.001)
        turns.close()
        waiting.join()
        with pytest.raises(EngineError, match="the model was closed"):
            turn.check()
    assert errors == ["the model was closed"]
    with pytest.raises(EngineError, match="the model was closed"), turns.turn():
        pass


def test_a_turn_may_leave_the_line_at_any_moment() -> None:
    turns = Turns()

    class Interrupted(deque[Turn]):
        """A signal handler or the garbage collector takes out what was to be taken out."""

        def remove(self, turn: Turn) -> None:
            super().remove(turn)
            super().remove(turn)

    turns._line = Interrupted()
    with turns.turn() as first, turns.turn() as second:
        assert first.superseded
        assert second.usable
    assert not turns._line
