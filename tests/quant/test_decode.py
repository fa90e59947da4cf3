"""Codes times scales beside numpy's formula, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama4_edge.convert.forms.codes import E2M1, pairs
from llama4_edge.convert.forms.fp8 import VALUES
from llama4_edge.quant.encode import decode_codes
from tests.fuzzing import ORDINARY

TABLES = {"one of a byte": VALUES, "two of a byte": pairs(E2M1)}
NAN = (0x7F, 0xFF)

# About the sides of the squares that columns are turned in: 16 and 256.
SIZES = st.sampled_from([1, 2, 15, 16, 17, 33, 255, 256, 257, 300])


def formula(
    codes: np.ndarray,
    table: np.ndarray,
    scales: np.ndarray,
    block: tuple[int, int],
    first: int,
    across: bool,
) -> np.ndarray:
    """Each number's value times the scale of its block."""
    values = table[codes]
    if across and values.ndim == 3:
        values = values.transpose(0, 2, 1).reshape(-1, codes.shape[1])
    values = values.reshape(len(values), -1)
    lines = (first + np.arange(values.shape[0])) // block[0]
    columns = np.arange(values.shape[1]) // block[1]
    with np.errstate(over="ignore"):
        numbers: np.ndarray = values * scales[lines[:, np.newaxis], columns]
    return numbers


def layouts(codes: np.ndarray) -> dict[str, np.ndarray]:
    """The same codes in the ways that they may lie in memory."""
    wide = np.zeros((codes.shape[1], codes.shape[0] + 5), np.uint8)
    wide[:, 2 : 2 + len(codes)] = codes.T
    long = np.zeros((codes.shape[0], codes.shape[1] + 3), np.uint8)
    long[:, 3:] = codes
    return {
        "rows": codes,
        "columns": np.ascontiguousarray(codes.T).T,
        "some columns": wide[:, 2 : 2 + len(codes)].T,
        "some of each row": long[:, 3:],
    }


def scales_for(
    rng: np.random.Generator, shape: tuple[int, int], block: tuple[int, int], first: int
) -> np.ndarray:
    """Of any size, so that products overflow, lose bits below the smallest, and are zero."""
    rows, columns = -(-(first + shape[0]) // block[0]), -(-shape[1] // block[1])
    exponents = rng.integers(-149, 128, (rows, columns))
    scales: np.ndarray = np.ldexp(rng.uniform(0.5, 1, (rows, columns)), exponents)
    return scales.astype(np.float32)


@pytest.mark.parametrize("across", [False, True], ids=["along lines", "across lines"])
@pytest.mark.parametrize("table", TABLES)
@settings(ORDINARY, max_examples=60)
@given(
    lines=SIZES,
    items=SIZES,
    height=st.sampled_from([1, 3, 32, 128, 1000]),
    width=st.sampled_from([1, 2, 6, 16, 32, 40, 128, 1000]),
    before=st.integers(0, 127),
    seed=st.integers(0, 1 << 32),
)
def test_numbers_are_the_products_that_numpy_takes(
    table: str,
    across: bool,
    lines: int,
    items: int,
    height: int,
    width: int,
    before: int,
    seed: int,
) -> None:
    rng, values = np.random.default_rng(seed), TABLES[table]
    step = values.size // 256
    if not across:
        width += width % step  # even where a byte has two numbers of a line
    block, first = (height, width), before % height
    codes = rng.integers(0, 256, (lines, items), dtype=np.uint8)
    if step == 1:
        codes[np.isin(codes, NAN)] = 0x7E
    shape = (lines * step, items) if across else (lines, items * step)
    scales = scales_for(rng, shape, block, first)
    expected = formula(codes, values, scales, block, first, across)
    for layout, same in layouts(codes).items():
        numbers = decode_codes(same, values, scales, block, first, across=across)
        assert numbers.flags.c_contiguous and numbers.shape == shape
        assert np.array_equal(numbers.view(np.uint32), expected.view(np.uint32)), layout


@pytest.mark.parametrize("code", NAN)
@pytest.mark.parametrize("place", [(0, 0), (16, 255), (256, 256), (299, 270)])
def test_a_code_that_is_nan_is_found_wherever_it_is(code: int, place: tuple[int, int]) -> None:
    codes = np.full((300, 271), 0x7E, np.uint8)
    scales = np.ones((300, 1), np.float32)
    for same in layouts(codes).values():
        assert decode_codes(same, VALUES, scales, (1, 271)).min() == 448
    codes[place] = code
    for same in layouts(codes).values():
        with pytest.raises(ValueError, match="NaN"):
            decode_codes(same, VALUES, scales, (1, 271))


def test_two_codes_in_a_byte_are_never_nan() -> None:
    codes = np.arange(256, dtype=np.uint8)[np.newaxis]
    numbers = decode_codes(codes, TABLES["two of a byte"], np.ones((1, 1), np.float32), (1, 512))
    low, high = np.arange(256) & 15, np.arange(256) >> 4
    assert np.array_equal(numbers, np.stack([E2M1[low], E2M1[high]], 1).reshape(1, 512))
