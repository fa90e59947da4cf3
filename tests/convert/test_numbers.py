"""Numbers on their way from a checkpoint to a type: how often they are rounded."""

from __future__ import annotations

import numpy as np
import pytest

from llama4_edge.convert.numbers import encode_stored, widened
from llama4_edge.quant import type_named
from llama4_edge.quant.encode import encode_rows, f32_to_bf16

SHAPE = (4, 512)


def encoded(rows: np.ndarray, name: str) -> np.ndarray:
    tensor_type = type_named(name)
    place = np.empty(rows.shape[0] * tensor_type.row_bytes(rows.shape[1]), np.uint8)
    encode_stored(rows, tensor_type, place)
    return place


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_0", "q4_k", "q6_k"])
def test_what_is_stored_in_f16_or_f32_is_rounded_once(
    name: str, dtype: type[np.float16 | np.float32]
) -> None:
    rows = np.random.default_rng(3).standard_normal(SHAPE).astype(dtype)
    expected = np.empty_like(encoded(rows, name))
    encode_rows(rows.astype(np.float32), type_named(name), expected)
    assert np.array_equal(encoded(rows, name), expected)


@pytest.mark.parametrize("name", ["f32", "bf16", "q4_0"])
def test_what_is_stored_in_f64_is_rounded_to_f32_first(name: str) -> None:
    rows = np.random.default_rng(3).standard_normal(SHAPE)
    assert np.array_equal(encoded(rows, name), encoded(rows.astype(np.float32), name))
    with pytest.raises(ValueError, match="too large for F32"):
        encoded(np.full(SHAPE, 1e39), name)


def test_f16_comes_through_f16_unchanged() -> None:
    rows = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float16)
    assert np.array_equal(encoded(rows, "f16").view(np.float16).reshape(SHAPE), rows)


def test_a_view_of_columns_is_encoded_as_its_copy() -> None:
    columns = np.random.default_rng(3).standard_normal(SHAPE[::-1]).astype(np.float32).T
    for name in ("bf16", "f32", "q8_0"):
        assert np.array_equal(encoded(columns, name), encoded(columns.copy(), name))
    halves = encoded(columns, "bf16").view(np.uint16).reshape(SHAPE)
    assert np.array_equal(halves, f32_to_bf16(np.ascontiguousarray(columns)))


@pytest.mark.parametrize("name", ["q4_k", "iq3_s"])
def test_importance_counts_however_numbers_are_stored(name: str) -> None:
    """The one type has an encoder of ours, the other ggml's."""
    rng, tensor_type = np.random.default_rng(3), type_named(name)
    floats = rng.standard_normal(SHAPE).astype(np.float16).astype(np.float32)
    importance = rng.exponential(size=SHAPE[1]).astype(np.float32)
    for stored in (f32_to_bf16(floats), floats.astype(np.float16), floats, floats.astype(float)):
        place, expected = encoded(stored, name), encoded(stored, name)
        encode_stored(stored, tensor_type, place, importance)
        numbers = widened(stored)
        encode_rows(numbers, tensor_type, expected, importance)
        assert np.array_equal(place, expected)
        assert not np.array_equal(place, encoded(stored, name))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(value: float) -> None:
    rows = np.zeros(SHAPE, np.float32)
    rows[1, 7] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        encoded(rows, "q8_0")


def test_values_beyond_f16_are_refused_rather_than_made_infinite() -> None:
    with pytest.raises(ValueError, match="too large for F16"):
        encoded(np.full(SHAPE, 1e5, np.float32), "f16")
