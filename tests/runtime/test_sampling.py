from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from llama4_edge.errors import SettingError
from llama4_edge.runtime.sampling import MAX_SEED, Sampling


def test_defaults_are_those_of_metas_generation_config() -> None:
    assert Sampling() == Sampling(temperature=0.6, top_k=40, top_p=0.9, min_p=0.0, seed=None)


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("temperature", -0.1, "a number from 0.0 up"),
        ("temperature", math.inf, "a number from 0.0 up"),
        ("temperature", "hot", "a number from 0.0 up"),
        ("temperature", math.nan, "a number from 0.0 up"),
        ("top_k", -1, "a whole number from 0 to 2147483647"),
        ("top_k", 2**31, "a whole number from 0 to 2147483647"),
        ("top_k", 1.5, "a whole number from 0 to 2147483647"),
        ("top_k", True, "a whole number from 0 to 2147483647"),
        ("top_p", 0.0, "a number above 0.0, at most 1.0"),
        ("top_p", True, "a number above 0.0, at most 1.0"),
        ("top_p", 1.01, "a number above 0.0, at most 1.0"),
        ("top_p", math.nan, "a number above 0.0, at most 1.0"),
        ("min_p", -0.01, "a number from 0.0 to below 1.0"),
        ("min_p", None, "a number from 0.0 to below 1.0"),
        ("min_p", 1.0, "a number from 0.0 to below 1.0"),
        ("min_p", math.nan, "a number from 0.0 to below 1.0"),
        ("seed", -1, f"None or a whole number from 0 to {MAX_SEED}"),
        ("seed", 2**32 - 1, f"None or a whole number from 0 to {MAX_SEED}"),
        ("seed", 1.0, f"None or a whole number from 0 to {MAX_SEED}"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_range(
    name: str, value: Any, range_: str
) -> None:
    with pytest.raises(SettingError) as caught:
        Sampling(**{name: value})
    expected = f"{name} is outside its range, found {value!r}, expected {range_}"
    assert str(caught.value) == expected
    # Python's own name for it holds too.
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0), ("seed", MAX_SEED)],
)
def test_the_ends_of_each_range_belong_to_it(name: str, value: Any) -> None:
    assert getattr(Sampling(**{name: value}), name) == value


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Sampling().top_k = 1  # type: ignore[misc]


def test_a_missing_seed_is_drawn_and_a_given_one_kept() -> None:
    assert Sampling(seed=7).with_seed() == Sampling(seed=7)
    drawn = {Sampling(top_k=3).with_seed() for _ in range(20)}
    assert {one.top_k for one in drawn} == {3}
    assert all(one.seed is not None and 0 <= one.seed <= MAX_SEED for one in drawn)
    # Twenty equal draws out of 2**32 do not happen.
    assert len(drawn) > 1
