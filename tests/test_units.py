"""Bytes, counts, durations and rates as text for people."""

from __future__ import annotations

import pytest

from llama4_edge.units import (
    bytes_text,
    context_text,
    count_text,
    rate_text,
    seconds_text,
    told_apart,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (65_379_074_048, "60.9 GiB"),
        (5 * 1024**5, "5120.0 TiB"),
    ],
)
def test_bytes_are_in_binary_units(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_bytes_take_more_digits_where_they_are_compared() -> None:
    assert bytes_text(66_196_000_000, digits=2) == "61.65 GiB"
    assert bytes_text(1024**3 - 1, digits=2) == "1.00 GiB"
    assert bytes_text(-3 * 1024**2, digits=2) == "-3.00 MiB"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0K"),
        (999_940, "999.9K"),
        (999_950, "1.0M"),
        (999_952, "1.0M"),
        (107_769_861_120, "107.8B"),
    ],
)
def test_counts_are_in_thousands(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("n_ctx", "text"),
    [(1024, "1k"), (4608, "4.5k"), (32_768, "32k"), (1_048_576, "1M"), (10_485_760, "10M")],
)
def test_contexts_are_in_binary_thousands(n_ctx: int, text: str) -> None:
    assert context_text(n_ctx) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (9.31, "9.3 tokens/s"),
        (99.96, "100.0 tokens/s"),
        (100, "100 tokens/s"),
        (240.4, "240 tokens/s"),
        (4974.2, "4,974 tokens/s"),
    ],
)
def test_rates_have_a_digit_after_the_point_below_100(rate: float, text: str) -> None:
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (185, "3 min 05 s"),
     (3599.6, "1 h 00 min"), (3720, "1 h 02 min")],
)  # fmt: skip
def test_durations_are_as_a_person_says_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("first", "second", "texts"),
    [
        (2**30, 2**31, ("1.0 GiB", "2.0 GiB")),
        (2**30, 2**30 + 2**24, ("1.00 GiB", "1.02 GiB")),
        (2**30, 2**30 + 2**20, ("1.000 GiB", "1.001 GiB")),
        (2**30, 2**30 + 1, ("1,073,741,824 bytes", "1,073,741,825 bytes")),
        (0, 1, ("0 B", "1 B")),
        (1023, 1024, ("1023 B", "1.0 KiB")),
    ],
)
def test_two_numbers_of_a_sentence_look_different(
    first: int, second: int, texts: tuple[str, str]
) -> None:
    assert told_apart(first, second) == texts
