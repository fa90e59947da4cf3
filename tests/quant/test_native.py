"""Our encoders beside ggml's: the same bytes, on each instruction set that this processor runs."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from llama4_edge.errors import EngineError
from llama4_edge.quant.encode import (
    NATIVE,
    _encode,
    _encode_by_ggml,
    _native,
    bf16_to_f32,
    decode_blocks,
    encode_bf16,
    encode_rows,
    f32_to_bf16,
    instruction_sets,
)
from llama4_edge.quant.types import TYPES, TensorType

TYPE_NAMES = sorted(one.name for one in NATIVE)


def ggml(
    halves: np.ndarray, tensor_type: TensorType, importance: np.ndarray | None = None
) -> np.ndarray:
    floats = np.empty(halves.shape, np.float32)
    bf16_to_f32(np.ascontiguousarray(halves), floats)
    out = np.empty(tensor_type.nbytes(halves.shape), np.uint8)
    _encode_by_ggml(floats, tensor_type, out, importance)
    return out


def ours(
    rows: np.ndarray,
    tensor_type: TensorType,
    instruction_set: str,
    importance: np.ndarray | None = None,
) -> np.ndarray:
    out = np.empty(tensor_type.nbytes(rows.shape), np.uint8)
    _encode(instruction_set, rows, tensor_type, out, importance)
    return out


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Weights as they are: one scale for all."""
    return rng.standard_normal(shape) * 0.02


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Every row of another size, with outliers."""
    return rng.standard_cauchy(shape).clip(-1e3, 1e3) * 10.0 ** rng.uniform(-6, 1, (shape[0], 1))


def any_bits(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Any sign and fraction, any exponent of a number below 2^12."""
    bits = rng.integers(0, 139 << 7, shape) | (rng.integers(0, 2, shape) << 15)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def tiny(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Around where scales lose their last bits in f16, and where numbers count as zero."""
    return rng.standard_normal(shape) * 10.0 ** rng.uniform(-44, -3, shape)


def ties(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Multiples of a half of few sizes: equal extremes of both signs, quotients halfway."""
    return rng.integers(-16, 17, shape) * 0.5 * 2.0 ** rng.integers(-3, 4, (shape[0], 1))


def sparse(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Mostly zero: groups and whole blocks without a number, and with one."""
    return rng.standard_normal(shape) * (rng.random(shape) < 0.01)


def flat(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Runs of one value as long as a group, of either sign."""
    runs = rng.standard_normal((shape[0], -(-shape[1] // 32)))
    return np.repeat(runs, 32, axis=1)[:, : shape[1]]


def one_sided(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Groups far from zero on one side of it, next to groups a million times as small."""
    groups = -(-shape[1] // 32)
    size = 10.0 ** rng.choice([-6.0, 0.0], (shape[0], groups)) * rng.choice([-1, 1], (1, groups))
    return np.repeat(size, 32, axis=1)[:, : shape[1]] * rng.uniform(0.9, 1.1, shape)


KINDS = [normal, heavy_tailed, any_bits, tiny, ties, sparse, flat, one_sided]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", TYPE_NAMES)
def test_every_byte_is_ggmls(
    name: str, kind: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
) -> None:
    halves = f32_to_bf16(kind(np.random.default_rng(7), (208, 1024)).astype(np.float32))
    expected = ggml(halves, TYPES[name])
    for instruction_set in instruction_sets():
        assert np.array_equal(ours(halves, TYPES[name], instruction_set), expected), instruction_set


def channels(rng: np.random.Generator, length: int) -> np.ndarray:
    """Mean squares of activations as they are: a few channels count thousands of times more."""
    return np.exp(rng.normal(0, 2, length)).astype(np.float32)


def unseen(rng: np.random.Generator, length: int) -> np.ndarray:
    """Zeros: of single channels, of groups, of all but one of a group, and of whole blocks."""
    importance = channels(rng, length) * (rng.random(length) < 0.7)
    importance[: length // 4] *= np.repeat(rng.random(length // 64) < 0.5, 16)
    importance[length // 4 : length // 2] *= np.arange(length // 4) % 37 == 0
    importance[length // 2 : length // 2 + 256] = 0
    return importance.astype(np.float32)


def extreme(rng: np.random.Generator, length: int) -> np.ndarray:
    """From where products with it lose their last bits to where they are near the largest."""
    return (10.0 ** rng.uniform(-40, 8, length)).astype(np.float32)


def equal(rng: np.random.Generator, length: int) -> np.ndarray:
    """As without any, almost: the encoders are others."""
    return np.ones(length, np.float32)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", TYPE_NAMES)
def test_every_byte_is_ggmls_with_importance(
    name: str, kind: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
) -> None:
    rng = np.random.default_rng(8)
    halves = f32_to_bf16(kind(rng, (67, 768)).astype(np.float32))
    for vector in (channels, unseen, extreme, equal):
        importance = vector(rng, 768)
        expected = ggml(halves, TYPES[name], importance)
        for instruction_set in instruction_sets():
            got = ours(halves, TYPES[name], instruction_set, importance)
            assert np.array_equal(got, expected), (vector.__name__, instruction_set)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", TYPE_NAMES)
def test_every_byte_is_ggmls_of_rows_stored_otherwise(name: str, dtype: type) -> None:
    """Of float32 with tiny numbers, and of float16 with denormal ones."""
    rng = np.random.default_rng(9)
    numbers: np.ndarray = heavy_tailed(rng, (75, 768)).astype(dtype)
    numbers[:, 256:512] *= dtype(2.0**-8 if dtype is np.float16 else 2.0**-90)
    importance = channels(rng, 768)
    for given in (None, importance):
        expected = np.empty(TYPES[name].nbytes(numbers.shape), np.uint8)
        _encode_by_ggml(numbers.astype(np.float32), TYPES[name], expected, given)
        for instruction_set in instruction_sets():
            for rows in (numbers, np.ascontiguousarray(numbers.T).T):
                assert np.array_equal(ours(rows, TYPES[name], instruction_set, given), expected)


@pytest.mark.parametrize("name", ["Q6_K", "IQ3_S", "F16"])
def test_any_type_takes_any_rows_and_importance(name: str) -> None:
    """What has no encoder of ours is ggml's, in pieces."""
    rng = np.random.default_rng(2)
    numbers = normal(rng, (37, 512)).astype(np.float16)
    halves, importance = f32_to_bf16(numbers.astype(np.float32)), channels(rng, 512)
    out = np.empty(TYPES[name].nbytes(halves.shape), np.uint8)
    for given in (None, importance):
        encode_bf16(np.ascontiguousarray(halves.T).T, TYPES[name], out, given)
        assert np.array_equal(out, ggml(halves, TYPES[name], given))
        encode_rows(np.ascontiguousarray(numbers.T).T, TYPES[name], out, given)
        expected = np.empty_like(out)
        _encode_by_ggml(numbers.astype(np.float32), TYPES[name], expected, given)
        assert np.array_equal(out, expected)
    halves[36, 511], numbers[36, 511] = 0x7F80, np.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode_bf16(halves, TYPES[name], out, importance)
    for rows in (numbers, numbers.astype(np.float32)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            encode_rows(rows, TYPES[name], out)


@pytest.mark.parametrize("name", sorted({*TYPE_NAMES} - {"Q8_0", "MXFP4", "Q5_1", "Q4_1"}))
def test_numbers_none_of_which_counts_become_zero(name: str) -> None:
    """As ggml's do. Q8_0 and MXFP4 ignore importance, Q5_1 and Q4_1 start from the extremes."""
    halves = f32_to_bf16(normal(np.random.default_rng(4), (5, 512)).astype(np.float32))
    importance = np.repeat(np.array([1, 0], np.float32), 256)
    out, decoded = ours(halves, TYPES[name], "portable", importance), np.empty((5, 512), np.float32)
    decode_blocks(out, TYPES[name], decoded)
    assert decoded[:, :256].any() and not decoded[:, 256:].any()


@pytest.mark.parametrize("name", TYPE_NAMES)
def test_rows_of_several_tiles_have_each_their_own_mean(name: str) -> None:
    rng = np.random.default_rng(3)
    halves = f32_to_bf16(heavy_tailed(rng, (300, 768)).astype(np.float32))
    importance = channels(rng, 768)
    expected = ggml(halves, TYPES[name], importance)
    for rows in (halves, np.ascontiguousarray(halves.T).T):
        got = ours(rows, TYPES[name], instruction_sets()[0], importance)
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("name", TYPE_NAMES)
def test_any_number_of_rows_of_any_length_and_columns_as_rows(
    name: str, instruction_set: str
) -> None:
    tensor_type = TYPES[name]
    rng = np.random.default_rng(1)
    for count in (1, 7, 16, 17, 64, 65, 150):
        for blocks in (1, 3, 9):
            shape = (count, blocks * tensor_type.block)
            halves = f32_to_bf16(normal(rng, shape).astype(np.float32))
            expected = ggml(halves, tensor_type)
            assert np.array_equal(ours(halves, tensor_type, instruction_set), expected)
            columns = np.ascontiguousarray(halves.T)
            assert np.array_equal(ours(columns.T, tensor_type, instruction_set), expected)
            # some columns of a wider matrix, and rows of one
            wide = np.zeros((shape[1], count + 5), np.uint16)
            wide[:, 2 : 2 + count] = columns
            view = wide[:, 2 : 2 + count].T
            assert np.array_equal(ours(view, tensor_type, instruction_set), expected)
            long = np.zeros((count, shape[1] + 3), np.uint16)
            long[:, 3:] = halves
            assert np.array_equal(ours(long[:, 3:], tensor_type, instruction_set), expected)


@pytest.mark.parametrize("name", TYPE_NAMES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [(0, 0), (64, 511), (66, 256)])
def test_a_number_that_is_none_is_found_wherever_it_is(
    name: str, bad: float, place: tuple[int, int]
) -> None:
    numbers = normal(np.random.default_rng(0), (67, 512)).astype(np.float32)
    numbers[place] = bad
    for rows in (f32_to_bf16(numbers), numbers.astype(np.float16), numbers):
        for stored in (rows, np.ascontiguousarray(rows.T).T):
            for instruction_set in instruction_sets():
                with pytest.raises(ValueError, match="NaN or infinity"):
                    ours(stored, TYPES[name], instruction_set)


@pytest.mark.parametrize("name", list(TYPES))
def test_the_types_with_encoders_of_ours_are_those_that_are_named(name: str) -> None:
    rows, importance = np.zeros((1, 256), np.uint16), np.ones(256, np.float32)
    for instruction_set in instruction_sets():
        for given in (None, importance):
            if TYPES[name] in NATIVE:
                ours(rows, TYPES[name], instruction_set, given)
            else:
                with pytest.raises(AssertionError, match="no encoder"):
                    ours(rows, TYPES[name], instruction_set, given)


@pytest.mark.parametrize("name", sorted({*TYPE_NAMES} - {"MXFP4"}))
@pytest.mark.parametrize("row", [0, 5, 66])
def test_a_scale_that_overflows_is_refused_where_ggml_refuses_it(name: str, row: int) -> None:
    numbers = np.zeros((67, 512), np.float32)
    numbers[row, 300] = -1e9
    out = np.empty(TYPES[name].nbytes(numbers.shape), np.uint8)
    with pytest.raises(ValueError, match=f"too large for {name}"):
        encode_rows(numbers, TYPES[name], out)
    with pytest.raises(ValueError, match=f"too large for {name}"):
        encode_bf16(f32_to_bf16(numbers), TYPES[name], out)


def test_numbers_whose_squares_overflow_are_refused_where_ggml_makes_zeros_of_them() -> None:
    numbers = np.full((1, 256), 1e20, np.float32)
    out = np.empty(210, np.uint8)
    _encode_by_ggml(numbers, TYPES["Q6_K"], out, None)
    assert not out.any()
    with pytest.raises(ValueError, match="too large for Q6_K"):
        encode_bf16(f32_to_bf16(numbers), TYPES["Q6_K"], out)


@pytest.mark.parametrize("name", ["Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"])
def test_importance_whose_sums_overflow_is_refused(name: str) -> None:
    """ggml makes zeros of some such blocks."""
    halves = f32_to_bf16(normal(np.random.default_rng(5), (3, 512)).astype(np.float32) * 1000)
    out, importance = np.empty(TYPES[name].nbytes(halves.shape), np.uint8), np.ones(512, np.float32)
    importance[256:] = 3e38
    with pytest.raises(ValueError, match=f"values too large for {name}, or their importance"):
        encode_bf16(halves, TYPES[name], out, importance)


def test_the_portable_encoders_run_everywhere() -> None:
    assert instruction_sets()[-1] == "portable"


def test_a_library_of_another_version_is_said_to_be_one(tmp_path: Path) -> None:
    """An editable install has one when its sources went on."""
    source, library = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text("int llama4_edge_encode(void) { return 0; }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    spec = importlib.machinery.ModuleSpec("old", None, origin=str(library))
    with (
        mock.patch.object(importlib.util, "find_spec", return_value=spec),
        pytest.raises(EngineError, match="another version") as caught,
    ):
        _native.__wrapped__()
    assert str(library) in str(caught.value) and "Install llama4-edge again" in str(caught.value)
