"""Experts that saw too few tokens get what the others saw beside their own."""

from __future__ import annotations

import numpy as np
import pytest

from llama4_edge.quant.importance import Activations, Importance
from llama4_edge.quant.starved import FEWEST, with_substitutes

UP, DOWN = "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"


def activations(sums: object, counts: list[int]) -> Activations:
    return Activations(np.array(sums, np.float32), np.array(counts, np.int64))


def substituted(name: str, one: Activations) -> Activations:
    return with_substitutes(Importance({name: one})).tensors[name]


# The others' means: 4 and 6.
SEEN = [[80, 120], [320, 480]]
COUNTS = [20 + FEWEST - 20, 100 - FEWEST]


def test_an_expert_that_saw_nothing_gets_the_mean_of_the_others() -> None:
    found = substituted(UP, activations([*SEEN, [0, 0]], [*COUNTS, 0]))
    assert found.weights()[2].tolist() == pytest.approx([4, 6])
    # A count of 0 would be no statistics for llama.cpp.
    assert found.counts.tolist() == [*COUNTS, 1]
    assert found.starved is not None and found.starved.experts == (2,)
    assert found.measured().counts.tolist() == [*COUNTS, 0]
    assert found.measured().sums[2].tolist() == [0, 0]


def test_what_a_starved_expert_saw_counts_beside() -> None:
    found = substituted(UP, activations([*SEEN, [80, 16]], [*COUNTS, 8]))
    expected = [(80 + 4 * 4) / 12, (16 + 4 * 6) / 12]
    assert found.weights()[2].tolist() == pytest.approx(expected)
    assert found.counts.tolist() == [*COUNTS, 8]


def test_columns_of_a_down_matrix_are_not_taken_from_other_experts() -> None:
    found = substituted(DOWN, activations([*SEEN, [80, 16]], [*COUNTS, 8]))
    assert found.weights()[2].tolist() == pytest.approx([(80 + 1 * 5) / 9, (16 + 1 * 5) / 9])


def test_all_others_stay_as_they_were() -> None:
    fed = activations([*SEEN, [1, 2]], [*COUNTS, FEWEST])
    assert substituted(UP, fed).starved is None
    assert (substituted(UP, fed).sums == fed.sums).all()
    # A matrix that is no expert's has no others.
    assert substituted("blk.0.attn_q.weight", activations([[1, 2]], [3])).starved is None
    nothing = substituted(UP, activations([[0, 0], [0, 0]], [0, 0]))
    assert nothing.starved is None


def test_substitutes_are_made_anew_of_what_was_measured() -> None:
    once = substituted(UP, activations([*SEEN, [80, 16]], [*COUNTS, 8]))
    twice = substituted(UP, once)
    assert (twice.sums == once.sums).all() and (twice.counts == once.counts).all()


def test_where_one_expert_saw_all_it_gives_the_others_theirs() -> None:
    found = substituted(UP, activations([[10, 20], [0, 0]], [10, 0]))
    assert found.weights().tolist() == [pytest.approx([1, 2])] * 2
