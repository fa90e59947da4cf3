"""What is particular to types with blocks of 32 numbers, and to those that ggml alone encodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llama4_edge.quant.encode import (
    NATIVE,
    _encode,
    _encode_by_ggml,
    are_valid,
    decode_blocks,
    encode_bf16,
    encode_rows,
    f32_to_bf16,
    instruction_sets,
)
from llama4_edge.quant.types import TYPES, TensorType
from tests.fuzzing import ORDINARY

BLOCKS = sorted(
    tensor_type.name
    for tensor_type in NATIVE
    if tensor_type.block == 32 or tensor_type.name == "IQ4_XS"
)
GRIDS = ("IQ3_XXS", "IQ2_XXS")  # the quickest to start: ggml makes its tables at the first use


def ggml(numbers: np.ndarray, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """What ggml makes of `numbers`, valid or not."""
    out = np.empty(TYPES[name].nbytes(numbers.shape), np.uint8)
    try:
        _encode_by_ggml(numbers, TYPES[name], out, importance)
    except ValueError as error:
        assert "values too " in str(error)
    return out


def agree(numbers: np.ndarray, tensor_type: TensorType, importance: np.ndarray | None) -> None:
    """Assert that all sets make ggml's bytes of `numbers`, or refuse them where ggml does."""
    expected = ggml(numbers, tensor_type.name, importance)
    valid = are_valid(expected, tensor_type)
    for instruction_set in instruction_sets():
        out = np.empty_like(expected)
        if valid:
            _encode(instruction_set, numbers, tensor_type, out, importance)
            assert out.tobytes() == expected.tobytes(), instruction_set
        else:
            with pytest.raises(ValueError, match=r"too (large|small)"):
                _encode(instruction_set, numbers, tensor_type, out, importance)


# Squares that f32 holds: beyond, ggml makes zeros of groups of IQ4_XS, and we refuse them.
FINITE = st.floats(-(2.0**40), 2.0**40, width=32)
NEAR = st.sampled_from([1.0, -1.0, 0.5, 0.25, -8.0, 7.5, 1e-3, -127.0, 113.0, 0.0, -0.0, 2.0**-126])


@pytest.mark.parametrize("name", BLOCKS)
@settings(ORDINARY, max_examples=60)
@given(
    arrays(np.float32, (3, 256), elements=FINITE | NEAR, fill=NEAR),
    st.none() | arrays(np.float32, 256, elements=st.floats(0, 1e6, width=32), fill=st.just(1)),
)
def test_any_numbers_with_any_importance_become_ggmls_bytes(
    name: str, numbers: np.ndarray, importance: np.ndarray | None
) -> None:
    agree(numbers, TYPES[name], importance)


@pytest.mark.parametrize("name", BLOCKS)
def test_exponents_of_all_sizes_become_ggmls_bytes_or_are_refused_where_ggml_does(
    name: str,
) -> None:
    """Blocks around each power of two; those just below one round to it in MXFP4's logarithm."""
    rng = np.random.default_rng(4)
    shape = (168, 256)
    exponents = np.clip(np.arange(168)[:, None] - rng.integers(0, 4, shape), 0, None)
    fractions = np.where(rng.random(shape) < 0.2, 0x7FFFFF, rng.integers(0, 1 << 23, shape))
    bits = (exponents << 23) | fractions | (rng.integers(0, 2, shape) << 31)
    numbers = bits.astype(np.uint32).view(np.float32)
    importance = rng.exponential(size=256).astype(np.float32)
    for row in range(168):
        for some in (None, importance):
            agree(numbers[row : row + 1], TYPES[name], some)


def test_the_largest_numbers_of_f32_become_ggmls_bytes_in_mxfp4() -> None:
    rng = np.random.default_rng(5)
    numbers = np.full((1, 32), 3.4028e38, np.float32) * rng.uniform(-1, 1, (1, 32)).astype(
        np.float32
    )
    numbers[0, 7] = np.finfo(np.float32).max
    agree(numbers, TYPES["MXFP4"], None)


def test_mxfp4_refuses_blocks_whose_scale_would_be_nan() -> None:
    """ggml's exponent of 2^-126 is -1, which is stored as 255, as NaN is."""
    numbers = np.zeros((1, 32), np.float32)
    numbers[0, 3] = 2.0**-126
    out = np.empty(17, np.uint8)
    with pytest.raises(ValueError, match="too small for MXFP4"):
        encode_rows(numbers, TYPES["MXFP4"], out)
    numbers[0, 3] = 2.0**-125
    encode_rows(numbers, TYPES["MXFP4"], out)
    assert out.tolist() == [0, 0, 0, 0, 6, *[0] * 12]


@pytest.mark.parametrize("name", ["IQ4_NL", "IQ4_XS"])
def test_what_is_halfway_between_two_values_gets_the_larger_one(name: str) -> None:
    """A block in which the best scale is 1, with numbers halfway between all neighbours."""
    values = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    group = np.concatenate([(values[1:] + values[:-1]) / 2, values, [1]])
    numbers = np.tile(group, (1, 8)).astype(np.float32)
    importance = np.tile(np.repeat(np.array([0, 1], np.float32), [15, 17]), 8)
    agree(numbers, TYPES[name], importance)
    out = np.empty(TYPES[name].nbytes((1, 256)), np.uint8)
    encode_rows(numbers, TYPES[name], out, importance)
    decoded = np.empty(256, np.float32)
    decode_blocks(out, TYPES[name], decoded)
    assert decoded[:15].tolist() == values[1:].tolist()


@pytest.mark.parametrize(
    ("name", "kept"), [("Q4_0", False), ("Q5_0", False), ("IQ4_NL", False), ("IQ4_XS", False),
                       ("Q4_1", True), ("Q5_1", True), ("Q8_0", True), ("MXFP4", True)],
)  # fmt: skip
def test_blocks_that_count_for_nothing_become_zeros_where_they_do_in_ggml(
    name: str, kept: bool
) -> None:
    """With weights of 0 only, a scale without a minimum is 0; the others fit the extremes."""
    numbers = np.random.default_rng(6).standard_normal((2, 256), np.float32)
    importance = np.zeros(256, np.float32)
    agree(numbers, TYPES[name], importance)
    out = np.empty(TYPES[name].nbytes(numbers.shape), np.uint8)
    encode_rows(numbers, TYPES[name], out, importance)
    decoded = np.empty(512, np.float32)
    decode_blocks(out, TYPES[name], decoded)
    assert decoded.any() == kept


def test_a_group_of_iq4_xs_whose_squares_overflow_is_refused_where_ggml_makes_zeros_of_it() -> None:
    numbers = np.ones((1, 256), np.float32)
    numbers[0, :32] = 1e20
    assert are_valid(ggml(numbers, "IQ4_XS"), TYPES["IQ4_XS"])
    with pytest.raises(ValueError, match="too large for IQ4_XS"):
        encode_bf16(f32_to_bf16(numbers), TYPES["IQ4_XS"], np.empty(136, np.uint8))


@pytest.mark.parametrize("name", GRIDS)
def test_types_that_need_importance_are_ggmls(name: str) -> None:
    tensor_type = TYPES[name]
    rng = np.random.default_rng(7)
    numbers = rng.standard_normal((4, 512), np.float32)
    importance = rng.exponential(size=512).astype(np.float32)
    importance[256:300] = 0
    out = np.empty(tensor_type.nbytes(numbers.shape), np.uint8)
    assert tensor_type.needs_importance
    encode_rows(numbers, tensor_type, out, importance)
    assert np.array_equal(out, ggml(numbers, name, importance))
    decoded = np.empty(numbers.shape, np.float32)
    decode_blocks(out, tensor_type, decoded)
    assert np.corrcoef(decoded.ravel(), numbers.ravel())[0, 1] > 0.85
    with pytest.raises(ValueError, match=f"{name} needs an importance"):
        encode_bf16(f32_to_bf16(numbers), tensor_type, out)


@pytest.mark.parametrize(
    ("name", "weighed"), [("IQ3_S", False), ("IQ3_S", True), ("IQ3_XXS", True)]
)
def test_what_ggml_aborts_the_process_for_is_refused(name: str, weighed: bool) -> None:
    numbers = np.full((1, 256), 1e20, np.float32)
    importance = np.ones(256, np.float32) if weighed else None
    out = np.empty(TYPES[name].nbytes(numbers.shape), np.uint8)
    for bad, what in ((1e20, f"values too large for {name}"), (np.nan, "NaN"), (np.inf, "NaN")):
        numbers[0, 17] = bad
        with pytest.raises(ValueError, match=what):
            encode_rows(numbers, TYPES[name], out, importance)
    if importance is not None:
        importance[9] = 1e37
        with pytest.raises(ValueError, match=f"importance too large for {name}"):
            encode_rows(np.ones((1, 256), np.float32), TYPES[name], out, importance)
    # The largest that pass.
    numbers[:] = np.random.default_rng(8).uniform(-1e9, 1e9, (1, 256))
    ggml(numbers, name, np.full(256, 1e15, np.float32) if weighed else None)
