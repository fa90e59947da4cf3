"""How far schemas lead from one to the next, and how many ways to go on they leave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama4_edge.chat.alternatives import Alternatives, optional_run
from llama4_edge.chat.chains import longest_chain
from tests.fuzzing import ORDINARY


def test_a_chain_a_ring_and_both() -> None:
    assert longest_chain({}) == 0
    assert longest_chain({"a": ["b"], "b": ["c"], "c": []}) == 3
    assert longest_chain({"a": ["b"], "b": ["a"]}) == 2
    assert longest_chain({"a": ["b", "x"], "b": ["a"], "x": ["y"], "y": [], "z": ["z"]}) == 4
    assert longest_chain({str(at): [str(at + 1)] for at in range(9999)} | {"9999": []}) == 10_000


GRAPHS = st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=7, max_size=7)


@ORDINARY
@given(GRAPHS)
def test_no_path_is_longer(graph: list[list[int]]) -> None:
    following = {str(at): [str(one) for one in ones] for at, ones in enumerate(graph)}

    def longest(path: tuple[str, ...]) -> int:
        rest = (one for one in following[path[-1]] if one not in path)
        return max((longest((*path, one)) for one in rest), default=len(path))

    bound = longest_chain(following)
    assert max(longest((one,)) for one in following) <= bound <= 7


def test_properties_that_may_be_left_out_are_counted_in_a_row() -> None:
    names: dict[str, dict[str, str]] = {name: {} for name in "abcde"}
    assert optional_run([{"properties": names}]) == 5
    assert optional_run([{"properties": names, "required": ["b"]}]) == 3
    assert (
        optional_run([{"properties": names}, {"required": ["c"]}, {"properties": {"f": {}}}]) == 3
    )


def test_alternatives_are_added_once_each() -> None:
    definitions = {"a": {"properties": {"x": {}, "y": {}}}, "b": {"anyOf": [{"$ref": "a"}] * 2}}
    count = Alternatives(definitions.__getitem__)
    assert count.of(definitions["a"]) == 16
    assert count.of(definitions["b"]) == 1 + 16
    assert count.of({"anyOf": [{"$ref": "a"}, {"type": "null"}, True]}) == 1 + 16 + 1 + 1
