from __future__ import annotations

import math

import numpy as np
import pytest

from llama4_edge.errors import SettingError
from llama4_edge.ranges import as_tuple, check_choice, check_whole, is_number


def test_whole_numbers_within_the_range_pass() -> None:
    for value in (1, 5, 9):
        check_whole("n", value, 1, 9)
    check_whole("n", 10**30, 0)
    check_whole("n", None, 0, or_none=True)


@pytest.mark.parametrize("value", [0, 10, True, 1.0, "1", None, math.nan, np.float32(1), []])
def test_everything_else_is_refused_with_what_was_found(value: object) -> None:
    with pytest.raises(SettingError) as caught:
        check_whole("n", value, 1, 9)
    expected = f"n is outside its range, found {value!r}, expected a whole number from 1 to 9"
    assert str(caught.value) == expected
    with pytest.raises(SettingError, match="expected None or a whole number from 1 up"):
        check_whole("n", -1, 1, or_none=True)


def test_numbers_are_neither_booleans_nor_nan() -> None:
    assert [is_number(value) for value in (1, 0.5, np.float32(1), math.inf)] == [True] * 4
    assert [is_number(value) for value in (True, math.nan, "1", None, 1j)] == [False] * 5


@pytest.mark.parametrize("value", ["ab", b"ab", {"a": 1}, 3, None])
def test_a_list_is_neither_a_string_nor_a_mapping(value: object) -> None:
    with pytest.raises(SettingError, match=r"names is of the wrong type, found .*, expected"):
        as_tuple("names", value, "words")


def test_any_other_collection_is_a_list() -> None:
    assert as_tuple("names", ["a", "b"], "words") == ("a", "b")
    assert as_tuple("names", (name for name in "ab"), "words") == ("a", "b")


def test_an_unknown_choice_is_answered_with_the_nearest() -> None:
    check_choice("kv_type", "f16", ("f16", "q8_0"))
    with pytest.raises(SettingError, match=r"kv_type is unknown, found 'q8'.* Did you mean q8_0\?"):
        check_choice("kv_type", "q8", ("f16", "q8_0"))
    for value in (16, ["f16"], None):
        with pytest.raises(SettingError, match="expected f16, q8_0"):
            check_choice("kv_type", value, ("f16", "q8_0"))


def test_an_error_shows_few_characters_of_a_value() -> None:
    with pytest.raises(SettingError, match=r"found a number of thousands of digits, expected"):
        check_whole("n", 10**5000, 1, 9)
    with pytest.raises(SettingError) as caught:
        check_whole("n", ["x"] * 10**6, 1, 9)
    assert len(str(caught.value)) < 400
