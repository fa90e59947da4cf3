"""The choice under a budget is the best one: against brute force, and against its own bound."""

from __future__ import annotations

import random
from itertools import product

import pytest

from llama4_edge.quant import knapsack
from llama4_edge.quant.knapsack import Choice, solve

BITS = (16, 8.5, 6.5625, 5.5, 4.5, 4.25, 3.4375, 2.625)


def random_options(rng: random.Random) -> list[list[Choice]]:
    """A few tensors, some with equal bytes, equal costs and choices that others beat."""
    return [
        [
            Choice(rng.randint(0, 30), rng.choice((rng.random(), float(rng.randint(0, 5)))))
            for _ in range(rng.randint(1, 5))
        ]
        for _ in range(rng.randint(1, 5))
    ]


def scout_like(seed: int) -> list[list[Choice]]:
    """482 tensors of Scout's sizes, each with a sensitivity of its own."""
    rng = random.Random(seed)
    matrices = [5120 * 5120, 5120 * 1024, 5120 * 1024, 5120 * 5120, *[5120 * 8192] * 3]
    experts = [16 * 5120 * 8192] * 3
    options = []
    for parameters in [*(matrices + experts) * 48, 202048 * 5120, 202048 * 5120]:
        weight = rng.lognormvariate(0, 1)
        options.append(
            [
                Choice(int(parameters * bits / 8), weight * 4**-bits * rng.lognormvariate(0, 0.1))
                for bits in BITS
            ]
        )
    return options


def test_random_choices_are_those_of_brute_force() -> None:
    rng = random.Random(0)
    for _ in range(400):
        options, budget = random_options(rng), rng.randint(0, 120)
        fitting = [
            sum(one.cost for one in chosen)
            for chosen in product(*options)
            if sum(one.nbytes for one in chosen) <= budget
        ]
        if not fitting:
            with pytest.raises(ValueError, match="the smallest choices take"):
                solve(options, budget)
            continue
        found = solve(options, budget)
        taken = [choices[it] for choices, it in zip(options, found.chosen, strict=True)]
        assert found.cost == pytest.approx(min(fitting), rel=1e-9, abs=1e-12)
        assert found.nbytes == sum(one.nbytes for one in taken) <= budget
        assert found.cost == sum(one.cost for one in taken)
        assert found.gap == 0


def test_a_model_of_the_size_of_scout_is_solved_without_a_gap() -> None:
    options = scout_like(1)
    budget = 48_000_000_000
    found = solve(options, budget)
    assert found.gap == 0
    assert 0 <= budget - found.nbytes < 1_000_000
    # No single other choice that fits is better: a necessary condition, cheap to look at.
    for choices, chosen in zip(options, found.chosen, strict=True):
        for other in choices:
            saved = choices[chosen].cost - other.cost
            more = other.nbytes - choices[chosen].nbytes
            assert saved <= 0 or more > budget - found.nbytes
    # With a price on bytes, no answer costs less than this.
    priced = sum(min(one.cost + found.price * one.nbytes for one in each) for each in options)
    bound = priced - found.price * budget
    assert bound <= found.cost <= bound * 1.001


def test_the_same_numbers_give_the_same_choice() -> None:
    assert solve(scout_like(2), 60_000_000_000) == solve(scout_like(2), 60_000_000_000)


def test_a_budget_for_everything_takes_the_cheapest_of_each() -> None:
    options = [[Choice(10, 1.0), Choice(20, 0.0), Choice(30, 0.0)], [Choice(5, 2.0)]]
    found = solve(options, 1000)
    assert (found.chosen, found.nbytes, found.cost, found.price) == ((1, 0), 25, 2.0, 0.0)


def test_the_price_is_what_a_byte_less_costs() -> None:
    # One tensor at a time changes from 4 to 2 bytes, the one that costs least a byte first.
    options = [[Choice(2, cost), Choice(4, 0.0)] for cost in (1.0, 3.0, 10.0)]
    assert solve(options, 10).price == pytest.approx(0.5)
    assert solve(options, 9).price == pytest.approx(1.5)
    assert [solve(options, budget).cost for budget in (12, 10, 8, 6)] == [0, 1, 4, 14]


def test_short_of_memory_the_answer_says_by_how_much_it_may_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options, budget = scout_like(3), 48_000_000_000
    best = solve(options, budget)
    monkeypatch.setattr(knapsack, "MOST_STATES", 2)
    found = solve(options, budget)
    assert found.nbytes <= budget
    assert found.gap > 0
    assert found.cost - found.gap <= best.cost <= found.cost
