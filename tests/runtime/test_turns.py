"""Whose adapters the next batch has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from llama4_edge.runtime.adapters import Scales
from llama4_edge.runtime.turns import SLICE_SECONDS, Turns

A, B, C = (0.0,), (0.5,), (1.0,)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("llama4_edge.runtime.turns.time", made)
    return made


def chosen(
    turns: Turns, clock: Clock, sets: Sequence[Scales], count: int, *, batch: float, switch: float
) -> list[Scales]:
    """The sets of so many batches that take so long."""
    current: Scales | None = None
    result = []
    for _ in range(count):
        current = turns.choose(sets, current, switch)
        result.append(current)
        clock.now += batch
    return result


def test_one_set_goes_on_without_a_change(clock: Clock) -> None:
    assert chosen(Turns(), clock, [B, B], 5, batch=1.0, switch=0.0) == [B] * 5


def test_sets_take_turns_of_a_slice(clock: Clock) -> None:
    batch = SLICE_SECONDS / 2.5
    assert (
        chosen(Turns(), clock, [A, B, C], 9, batch=batch, switch=0.0) == [A] * 3 + [B] * 3 + [C] * 3
    )


def test_a_change_that_takes_long_is_made_less_often(clock: Clock) -> None:
    sets = chosen(Turns(), clock, [A, B], 80, batch=0.25, switch=0.2)
    changes = sum(one != other for one, other in pairwise(sets))
    assert changes * 0.2 <= 0.1 * 80 * 0.25
    assert sets.count(A) == sets.count(B)


def test_who_has_waited_longest_is_next_and_who_is_new_at_once(clock: Clock) -> None:
    turns = Turns()
    assert turns.choose([A], None, 0.0) == A
    clock.now += 10
    assert turns.choose([A, B], A, 0.0) == B
    clock.now += SLICE_SECONDS / 2
    assert turns.choose([A, B, C], B, 0.0) == B
    clock.now += SLICE_SECONDS
    # A, whose last turn was before anybody kept count, and C have waited longer than B.
    assert turns.choose([A, B, C], B, 0.0) == A
    clock.now += 2 * SLICE_SECONDS
    assert turns.choose([A, B, C], A, 0.0) == C
    clock.now += 2 * SLICE_SECONDS
    assert turns.choose([A, B, C], C, 0.0) == B


def test_a_set_that_cannot_go_on_loses_its_turn(clock: Clock) -> None:
    turns = Turns()
    assert turns.choose([A, B], None, 0.0) == A
    assert turns.choose([B], A, 0.0) == B
