"""One choice for each of many tensors, within a budget of bytes, at the least total cost.

The multiple-choice knapsack problem, solved exactly: the linear relaxation (Dyer, Zemel; on the
convex hull of each tensor's choices) gives a price for a byte and a bound; choices that the bound
excludes are dropped (Sinha, Zoltners); what is left goes through dynamic programming over Pareto
states that are held against the same bound (Pisinger's core: the tensors about which it says least
come first). Promises the same answer for the same numbers, memory that is bounded, and to say by
how much the answer may miss the best where the bound on memory was met. Knows neither tensors nor
types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_Whole = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]

MOST_STATES = 100_000
"""Pareto states that are kept at a time; models of 800 tensors need a few thousand."""

_EXACT = 1e-12  # of the cost: what sums of floats are told apart by


@dataclass(frozen=True)
class Choice:
    """One of the choices for a tensor: its bytes, and what it costs in any unit, from 0 up."""

    nbytes: int
    cost: float


@dataclass(frozen=True)
class Solution:
    """The number of the choice for each tensor, and what they add up to.

    ``price`` is what a byte less costs in the linear relaxation, 0 where the budget is not
    reached. No answer costs less than ``cost - gap``, and ``gap`` is 0 unless memory ran short.
    """

    chosen: tuple[int, ...]
    nbytes: int
    cost: float
    price: float
    gap: float


@dataclass(frozen=True)
class _Class:
    """The choices for one tensor that are worth having: bytes ascending, costs descending.

    ``numbers`` are those of the choices as they were given.
    """

    numbers: _Whole
    nbytes: _Whole
    costs: _Floats

    def taking(self, kept: _Whole) -> _Class:
        """Some of the choices."""
        return _Class(self.numbers[kept], self.nbytes[kept], self.costs[kept])


def solve(options: Sequence[Sequence[Choice]], budget: int) -> Solution:
    """The choices of least cost, one of each of `options`, that take `budget` bytes at most.

    Raises:
        ValueError: even the smallest choices take more.
    """
    classes = [_undominated(choices) for choices in options]
    least = sum(int(one.nbytes[0]) for one in classes)
    if least > budget:
        raise ValueError(f"the smallest choices take {least} bytes of {budget}")
    if sum(int(one.nbytes[-1]) for one in classes) <= budget:
        return _answer(options, [int(one.numbers[-1]) for one in classes], 0.0, 0.0)
    price, start = _relaxed(classes, budget)
    search = _Search(classes, budget, price, start)
    chosen = search.best()
    return _answer(options, chosen, price, search.gap)


def _answer(
    options: Sequence[Sequence[Choice]], chosen: Sequence[int], price: float, gap: float
) -> Solution:
    taken = [choices[number] for choices, number in zip(options, chosen, strict=True)]
    return Solution(
        tuple(chosen), sum(one.nbytes for one in taken), sum(one.cost for one in taken), price, gap
    )


def _undominated(choices: Sequence[Choice]) -> _Class:
    """Without what another choice beats in bytes at no more cost; the first of equals stays."""
    order = sorted(range(len(choices)), key=lambda it: (choices[it].nbytes, choices[it].cost, it))
    kept: list[int] = []
    for number in order:
        if not kept or choices[number].cost < choices[kept[-1]].cost:
            kept.append(number)
    return _Class(
        np.array(kept, np.int64),
        np.array([choices[number].nbytes for number in kept], np.int64),
        np.array([choices[number].cost for number in kept], np.float64),
    )


def _hull(one: _Class) -> list[int]:
    """The lower convex hull of cost over bytes, from the smallest choice on."""
    hull: list[int] = []
    for it in range(len(one.nbytes)):
        while len(hull) > 1 and _slope(one, hull[-2], hull[-1]) >= _slope(one, hull[-2], it):
            hull.pop()
        hull.append(it)
    return hull


def _slope(one: _Class, begin: int, end: int) -> float:
    return float((one.costs[end] - one.costs[begin]) / (one.nbytes[end] - one.nbytes[begin]))


def _relaxed(classes: Sequence[_Class], budget: int) -> tuple[float, list[int]]:
    """The price of a byte in the linear relaxation, and its choices without the fractional one.

    All begin with their smallest choice; steps along the hulls are taken from the one that saves
    most a byte on, until one does not fit any more. Smaller ones after it are still taken.
    """
    steps = []
    for number, one in enumerate(classes):
        hull = _hull(one)
        for begin, end in pairwise(hull):
            steps.append((_slope(one, begin, end), number, begin, end))
    steps.sort()
    at = [0] * len(classes)
    left = budget - sum(int(one.nbytes[0]) for one in classes)
    price = 0.0
    for slope, number, begin, end in steps:
        size = int(classes[number].nbytes[end] - classes[number].nbytes[begin])
        if at[number] == begin and size <= left:
            at[number], left = end, left - size
        elif not price:
            price = -slope
    return price, at


@dataclass(frozen=True)
class _Stage:
    """The states after one tensor more: where each comes from, and by which choice."""

    parents: npt.NDArray[np.int32]
    choices: npt.NDArray[np.int16]


class _Search:
    """Dynamic programming over the tensors, the most open ones first.

    With a price on bytes every tensor has a choice of least ``cost + price * bytes``; what another
    choice costs beyond that is its excess. A sum of excesses says how far an answer is from the
    bound, so that states are dropped whose excess is more than the best answer's.
    """

    def __init__(
        self, classes: Sequence[_Class], budget: int, price: float, start: Sequence[int]
    ) -> None:
        self.gap = 0.0
        self._classes, self._budget, self._price = classes, budget, price
        self._best = self._completed(list(start))
        self._best_cost = self._cost_of(self._best)

    def best(self) -> list[int]:
        """The number of the choice for each tensor."""
        allowed = self._allowed_excess()
        if allowed > 0:
            self._improve(allowed)
        return [int(one.numbers[at]) for one, at in zip(self._classes, self._best, strict=True)]

    def _improve(self, allowed: float) -> None:
        """Take a better answer, if there is one, of choices with no more excess than allowed."""
        excesses = [self._excess(one) for one in self._classes]
        kept = [np.flatnonzero(excess <= allowed) for excess in excesses]
        order = sorted(range(len(kept)), key=lambda it: (_second(excesses[it]), it))
        chosen = self._run([self._classes[it].taking(kept[it]) for it in order])
        if chosen is not None:
            for it, choice in zip(order, chosen, strict=True):
                self._best[it] = int(kept[it][choice])

    def _excess(self, one: _Class) -> _Floats:
        priced = one.costs + self._price * one.nbytes
        excess: _Floats = priced - priced.min()
        return excess

    def _bound(self) -> float:
        """What no answer costs less than (the Lagrangian dual at the price)."""
        priced = sum(float((one.costs + self._price * one.nbytes).min()) for one in self._classes)
        return priced - self._price * self._budget

    def _allowed_excess(self) -> float:
        """The excess that an answer may have at most to beat the best one."""
        return self._best_cost * (1 - _EXACT) - self._bound()

    def _cost_of(self, at: Sequence[int]) -> float:
        return float(sum(one.costs[it] for one, it in zip(self._classes, at, strict=True)))

    def _completed(self, at: list[int]) -> list[int]:
        """The same with what is left of the budget used, by the step that saves most each time."""
        used = sum(int(one.nbytes[it]) for one, it in zip(self._classes, at, strict=True))
        while True:
            best, step = 0.0, None
            for number, one in enumerate(self._classes):
                fitting = np.flatnonzero(one.nbytes - one.nbytes[at[number]] <= self._budget - used)
                saved = float(one.costs[at[number]] - one.costs[fitting[-1]])
                if saved > best:
                    best, step = saved, (number, int(fitting[-1]))
            if step is None:
                return at
            number, it = step
            used += int(self._classes[number].nbytes[it] - self._classes[number].nbytes[at[number]])
            at[number] = it

    def _run(self, classes: Sequence[_Class]) -> list[int] | None:
        """The choices of an answer that beats the best one, or None where there is none."""
        rest = _Rest(classes, self._price)
        nbytes, costs = np.zeros(1, np.int64), np.zeros(1, np.float64)
        stages: list[_Stage] = []
        trail: list[_Stage] | None = None  # to the best answer so far
        for number, one in enumerate(classes):
            nbytes, costs, stage = _extended(nbytes, costs, one)
            after = number + 1
            complete = costs + rest.cost[after]
            complete[nbytes + rest.nbytes[after] > self._budget] = np.inf
            it = int(complete.argmin())
            if complete[it] < self._best_cost * (1 - _EXACT):
                self._best_cost = float(complete[it])
                trail = [*stages, _Stage(stage.parents[[it]], stage.choices[[it]])]
            bounds = costs + self._price * (nbytes - self._budget) + rest.priced[after]
            keep = bounds < self._best_cost * (1 - _EXACT)
            keep &= nbytes + rest.least[after] <= self._budget
            kept = self._bounded(np.flatnonzero(keep), bounds)
            nbytes, costs = nbytes[kept], costs[kept]
            stages.append(_Stage(stage.parents[kept], stage.choices[kept]))
            if not len(kept):
                break
        return None if trail is None else _followed(trail) + rest.chosen[len(trail) :]

    def _bounded(self, kept: _Whole, bounds: _Floats) -> _Whole:
        """Of states those of the least bounds, where there are too many; the gap grows by that."""
        if len(kept) <= MOST_STATES:
            return kept
        order = np.argsort(bounds[kept], kind="stable")
        dropped = float(bounds[kept[order[MOST_STATES]]])
        self.gap = max(self.gap, self._best_cost - dropped)
        return np.sort(kept[order[:MOST_STATES]])


def _second(excess: _Floats) -> float:
    """By how little the second best choice is worse; more than anything where there is none."""
    return float(np.partition(excess, 1)[1]) if len(excess) > 1 else np.inf


class _Rest:
    """What the tensors from each on add, by their choices at the price."""

    def __init__(self, classes: Sequence[_Class], price: float) -> None:
        count = len(classes)
        self.chosen: list[int] = []
        self.nbytes, self.least = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
        self.cost, self.priced = np.zeros(count + 1), np.zeros(count + 1)
        for number, one in enumerate(classes):
            priced = one.costs + price * one.nbytes
            # Of equals the smaller one, which leaves most to others.
            it = int(priced.argmin())
            self.chosen.append(it)
            self.nbytes[number], self.least[number] = one.nbytes[it], one.nbytes[0]
            self.cost[number], self.priced[number] = one.costs[it], priced[it]
        for sums in (self.nbytes, self.least, self.cost, self.priced):
            sums[:] = sums[::-1].cumsum()[::-1]


def _extended(nbytes: _Whole, costs: _Floats, one: _Class) -> tuple[_Whole, _Floats, _Stage]:
    """Every state with every choice of one tensor more, but for those that others beat."""
    all_bytes = (nbytes[:, None] + one.nbytes).reshape(-1)
    all_costs = (costs[:, None] + one.costs).reshape(-1)
    order = np.lexsort((all_costs, all_bytes))
    sorted_costs = all_costs[order]
    before = np.minimum.accumulate(sorted_costs)
    useful = np.ones(len(order), bool)
    useful[1:] = sorted_costs[1:] < before[:-1]
    order = order[useful]
    parents, choices = np.divmod(order, len(one.nbytes))
    stage = _Stage(parents.astype(np.int32), choices.astype(np.int16))
    return all_bytes[order], all_costs[order], stage


def _followed(stages: Sequence[_Stage]) -> list[int]:
    """The choices that led to the first state of the last stage."""
    at, choices = 0, []
    for stage in reversed(stages):
        choices.append(int(stage.choices[at]))
        at = int(stage.parents[at])
    return choices[::-1]
