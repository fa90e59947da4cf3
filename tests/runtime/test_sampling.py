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
        ("typical_p", 0.0, "a number above 0.0, at most 1.0"),
        ("top_n_sigma", -1.0, "a number from 0.0 up"),
        ("xtc_probability", 1.1, "a number from 0.0 to 1.0"),
        ("repeat_penalty", 0.0, "a number from 0.01 to 100.0"),
        ("frequency_penalty", math.nan, "a number from -1000.0 to 1000.0"),
        ("repeat_last_n", -1, "a whole number from 0 to 10485760"),
        ("dry_base", 0.5, "a number from 1.0 to 1000.0"),
        ("dry_penalty_last_n", 2**31, "a whole number from 0 to 10485760"),
        ("mirostat", 1, "0, or 2 for Mirostat 2.0"),
        ("mirostat", True, "0, or 2 for Mirostat 2.0"),
        ("mirostat", [], "0, or 2 for Mirostat 2.0"),
        ("mirostat_eta", "x", "a number from 0.0 to 1.0"),
        ("logit_bias", 3, "a mapping of token ids to numbers"),
        ("logit_bias", [(1, 2, 3)], "a mapping of token ids to numbers"),
        ("dry_sequence_breakers", 3, "a list of texts"),
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


def test_biases_are_a_mapping_or_pairs_and_a_later_one_wins() -> None:
    assert Sampling(logit_bias={3: 1, 4: -math.inf}).logit_bias == ((3, 1.0), (4, -math.inf))  # type: ignore[arg-type]
    assert Sampling(logit_bias=[(3, 1.0), (3, 2.0)]).logit_bias == ((3, 2.0),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        ({-1: 1.0}, "a token id of logit_bias is outside its range, found -1"),
        ({"a": 1.0}, "a token id of logit_bias"),
        ({1: math.inf}, "expected a number from -1000 to 1000, or -inf"),
        ({1: math.nan}, "expected a number from -1000 to 1000, or -inf"),
        ({1: "x"}, "expected a number from -1000 to 1000, or -inf"),
    ],
)
def test_a_bias_that_is_none_is_refused(bias: Any, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        Sampling(logit_bias=bias)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 41, "\ud800", 3])
def test_a_breaker_that_llama_cpp_would_cut_or_drop_is_refused(text: Any) -> None:
    with pytest.raises(SettingError, match="a text of dry_sequence_breakers cannot be one"):
        Sampling(dry_sequence_breakers=(text,))


def test_mirostat_needs_a_temperature() -> None:
    with pytest.raises(SettingError, match=r"a number above 0\.0 with mirostat"):
        Sampling(mirostat=2, temperature=0.0)
