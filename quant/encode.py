"""Numbers to bytes, the same bytes that ggml's own encoders make of them; and back.

Most types have encoders of our own, many times as fast (``native/``); those of the others are
ggml's, as are the decoders of its types; those of checkpoints' codes are ours. This is the one
file that calls either. Works on whole rows and releases the GIL, so that threads work side by side.
Knows nothing of files or of which tensor gets which type.

Encoders take an importance, float32 [row_length], contiguous: how much an error in each number of
a row counts, the same for all rows, as llama-quantize hands it to ``ggml_quantize_chunk``: finite,
none below 0. Without one they are ggml's reference encoders; Q8_0 and MXFP4 ignore it. Where no
number of a block counts, all become 0 in most types, as ggml has it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import sys
import time
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from .types import F32, Q4_1, Q8_0, TYPES, TensorType

Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]

NATIVE = frozenset(
    TYPES[name]
    for name in (
        "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4",
        "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K",
    )
)  # fmt: skip
"""The types that have encoders of our own, with importance too; those of all others are ggml's."""

# INTERFACE, enum Status and enum Format of native/native.cpp
_INTERFACE = 2
_GOOD, _NOT_FINITE, _OVERFLOW = 0, 1, 2
_FORMATS = {np.dtype(np.uint16): 0, np.dtype(np.float16): 1, np.dtype(np.float32): 2}

# The types whose codes are points of a grid. ggml's encoders search for the nearest one; where sums
# of squares overflow they find none, and abort the process. Larger numbers than this do not fit
# these types, and with an importance up to that nothing overflows.
_GRIDS = frozenset({"IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
_GRID_NUMBER, _GRID_IMPORTANCE = 1e9, 1e15

# Numbers that are widened at a time for ggml's encoders.
_PIECE = 1 << 20

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


def encode_bf16(
    rows: Halves, tensor_type: TensorType, out: Bytes, importance: Floats | None = None
) -> float:
    """Encode `rows` [n, row_length], bf16 as raw 16-bit words, into `out` [n * row_bytes].

    Args:
        rows: with contiguous rows or columns: the view of a matrix that is still to be transposed
            will do.
        tensor_type: any; those of `NATIVE` are many times as fast.
        out: contiguous.
        importance: [row_length]; see above.

    Returns:
        Seconds of it that went into getting the rows as the encoder takes them.

    Raises:
        ValueError: a number is none or infinite, or a scale overflows.
    """
    assert rows.dtype == np.uint16
    return _encode_any(rows, tensor_type, out, importance)


def encode_rows(
    rows: Floats | npt.NDArray[np.float16],
    tensor_type: TensorType,
    out: Bytes,
    importance: Floats | None = None,
) -> float:
    """Encode `rows` [n, row_length], float32 or float16, into `out`; else as `encode_bf16`."""
    assert rows.dtype in (np.float32, np.float16)
    return _encode_any(rows, tensor_type, out, importance)


def _encode_any(
    rows: npt.NDArray[Any], tensor_type: TensorType, out: Bytes, importance: Floats | None
) -> float:
    if tensor_type in NATIVE:
        return _encode(instruction_sets()[0], rows, tensor_type, out, importance)
    return _encode_widened(rows, tensor_type, out, importance)


@cache
def instruction_sets() -> tuple[str, ...]:
    """What the encoders of `NATIVE` are compiled for and this processor runs, the best first."""
    names = (_native().llama4_edge_instruction_set(index) for index in count())
    return tuple(name.decode() for name in takewhile(bool, names))


def _encode(
    instruction_set: str,
    rows: npt.NDArray[Any],
    tensor_type: TensorType,
    out: Bytes,
    importance: Floats | None,
) -> float:
    """As `encode_bf16` and `encode_rows`, by our encoders for `instruction_set`."""
    lines, length = rows.shape
    steps = [stride // rows.itemsize for stride in rows.strides]
    assert 1 in steps and min(steps) > 0
    assert out.flags.c_contiguous and out.nbytes == lines * tensor_type.row_bytes(length)
    seconds = ctypes.c_double()
    status = _native().llama4_edge_encode(
        instruction_set.encode(), tensor_type.name.encode(), _FORMATS[rows.dtype],
        rows.ctypes.data, *steps, lines, length, _importance_of(length, importance),
        out.ctypes.data, ctypes.byref(seconds),
    )  # fmt: skip
    if status == _NOT_FINITE:
        raise ValueError("NaN or infinity")
    if status == _OVERFLOW:
        raise _unfit(tensor_type, importance)
    assert status == _GOOD, f"no encoder for {tensor_type.name} on {instruction_set}"
    return seconds.value


def _encode_widened(
    rows: npt.NDArray[Any], tensor_type: TensorType, out: Bytes, importance: Floats | None
) -> float:
    """As `encode_bf16` and `encode_rows`, by ggml's encoders, for which pieces are widened."""
    lines, length = rows.shape
    step, row_bytes = max(1, _PIECE // length), tensor_type.row_bytes(length)
    floats = np.empty((min(step, lines), length), np.float32)
    seconds = 0.0
    for first in range(0, lines, step):
        started = time.thread_time()
        piece = contiguous_rows(rows[first : first + step])
        seconds += time.thread_time() - started
        if not are_finite(piece):
            raise ValueError("NaN or infinity")
        wide = floats[: len(piece)]
        if piece.dtype == np.uint16:
            bf16_to_f32(piece, wide)
        else:
            wide[:] = piece
        encoded = out[first * row_bytes : (first + len(piece)) * row_bytes]
        _encode_by_ggml(wide, tensor_type, encoded, importance)
    return seconds


def _encode_by_ggml(
    rows: Floats, tensor_type: TensorType, out: Bytes, importance: Floats | None
) -> None:
    """As `encode_rows`, by ggml's encoders: float32 with contiguous rows, all of them finite."""
    count, length = rows.shape
    assert rows.dtype == np.float32 and rows.flags.c_contiguous and out.flags.c_contiguous
    assert out.nbytes == count * tensor_type.row_bytes(length)
    if tensor_type.name in _GRIDS:
        _check_for_grid(rows, tensor_type, importance)
    _ggml().ggml_quantize_chunk(
        tensor_type.ggml_id, rows.ctypes.data, out.ctypes.data, 0, count, length,
        _importance_of(length, importance),
    )  # fmt: skip
    if not are_valid(out, tensor_type):
        raise _unfit(tensor_type, importance)


def _unfit(tensor_type: TensorType, importance: Floats | None) -> ValueError:
    """A block has a scale that the type does not hold: for MXFP4 that is one of 2^-128."""
    size = "small" if tensor_type.name == "MXFP4" else "large"
    beside = "" if importance is None else ", or their importance"
    return ValueError(f"values too {size} for {tensor_type.name}{beside}")


def _check_for_grid(rows: Floats, tensor_type: TensorType, importance: Floats | None) -> None:
    """Refuse what ggml aborts the process for: without importance, or where its sums overflow.

    Raises:
        ValueError: that is so.
    """
    if importance is None and tensor_type.needs_importance:
        raise ValueError(f"{tensor_type.name} needs an importance")
    if not max(rows.max(), -rows.min()) <= _GRID_NUMBER:
        raise _unfit(tensor_type, importance)
    if importance is not None and not importance.max() <= _GRID_IMPORTANCE:
        raise ValueError(f"importance too large for {tensor_type.name}")


def _importance_of(length: int, importance: Floats | None) -> int | None:
    """The address of `importance`, for rows of `length`."""
    if importance is None:
        return None
    assert importance.dtype == np.float32 and importance.shape == (length,)
    assert importance.flags.c_contiguous
    return importance.ctypes.data


def contiguous_rows(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`rows` with rows side by side.

    Columns that are take two copies, since each then walks memory in order: four times as fast as
    one.
    """
    if rows.flags.c_contiguous:
        return rows
    columns = np.ascontiguousarray(rows.T)
    return np.ascontiguousarray(columns.T)


def are_finite(rows: npt.NDArray[Any]) -> bool:
    """Whether none is NaN or infinite; 16-bit words are bf16.

    In bf16 those that are have the largest patterns: of all as signed integers when positive, as
    unsigned ones when negative. Two maxima cost a tenth of masking the signs off.
    """
    if rows.dtype != np.uint16:
        return bool(np.isfinite(rows).all())
    return int(rows.view(np.int16).max()) < 0x7F80 and int(rows.max()) < 0xFF80


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def has_decoder(tensor_type: TensorType) -> bool:
    """Whether ggml turns this type into numbers."""
    return tensor_type.ggml_id == F32.ggml_id or bool(_traits(tensor_type).to_float)


def decode_blocks(data: Bytes, tensor_type: TensorType, out: Floats) -> None:
    """Decode `data`, whole blocks of `tensor_type`, into `out`, as ggml does; both contiguous.

    Args:
        data: the encoded bytes.
        tensor_type: one that `has_decoder`.
        out: as many numbers as the blocks hold, of any shape.
    """
    assert data.flags.c_contiguous and out.flags.c_contiguous
    assert data.nbytes * tensor_type.block == out.size * tensor_type.block_bytes
    if tensor_type.ggml_id == F32.ggml_id:
        out.reshape(-1)[:] = data.view(np.float32)
    else:
        _traits(tensor_type).to_float(data.ctypes.data, out.ctypes.data, out.size)


def _traits(tensor_type: TensorType) -> _TypeTraits:
    traits: _TypeTraits = _ggml().ggml_get_type_traits(tensor_type.ggml_id).contents
    return traits


def are_valid(data: Bytes, tensor_type: TensorType) -> bool:
    """Whether blocks hold neither NaN nor infinity, as ggml judges them."""
    valid: bool = _ggml().ggml_validate_row_data(tensor_type.ggml_id, data.ctypes.data, data.nbytes)
    return valid


def repack(
    codes: Bytes,
    scales: Halves,
    minima: Halves | None,
    group: int,
    tensor_type: TensorType,
    out: Bytes,
    *,
    offset: int = 0,
) -> None:
    """Put integers with scales into blocks that hold the same numbers.

    Args:
        codes: [rows, bytes], contiguous. For Q4_0 and Q4_1 two numbers a byte, the first in the low
            bits; for Q8_0 a byte each.
        scales: f16 as raw words, [rows, groups].
        minima: what a code of 0 stands for, the same way, for Q4_1; else None.
        group: numbers of a row that share a scale: whole blocks, or all.
        tensor_type: Q4_0, Q4_1 or Q8_0.
        out: [rows * row_bytes], contiguous.
        offset: what a code of 8 bits stores 0 as: 0 or 128. One of 4 bits stores it as 8 in Q4_0.
    """
    rows = len(codes)
    length = codes.shape[1] * (1 if tensor_type is Q8_0 else 2)
    assert codes.flags.c_contiguous and scales.flags.c_contiguous and out.flags.c_contiguous
    assert out.nbytes == rows * tensor_type.row_bytes(length)
    assert scales.shape == (rows, -(-length // group)) and (group % 32 == 0 or group >= length)
    assert (minima is not None) == (tensor_type is Q4_1)
    assert minima is None or (minima.flags.c_contiguous and minima.shape == scales.shape)
    status = _native().llama4_edge_repack(
        tensor_type.name.encode(), codes.ctypes.data, rows, length, group, scales.ctypes.data,
        None if minima is None else minima.ctypes.data, offset, out.ctypes.data,
    )  # fmt: skip
    assert status == _GOOD, f"{tensor_type.name} holds no such numbers"


def decode_codes(
    codes: Bytes,
    table: Floats,
    scales: Floats,
    block: tuple[int, int],
    first: int = 0,
    *,
    across: bool = False,
) -> Floats:
    """What codes of a byte stand for, times the scales of their blocks: rounded once, to float32.

    Args:
        codes: [lines, bytes], with contiguous lines or columns.
        table: what a byte stands for: [256], where both codes of NaN differ in their highest bit;
            or [256, 2], without NaN.
        scales: one for each block, [blocks of lines, blocks of numbers], contiguous.
        block: lines and numbers of a block; the last ones may be cut short. Numbers are even
            where a byte has two of a line.
        first: lines of the first block that come before the first line.
        across: whether the two numbers of a byte are each of a line of its own, not of one line.

    Returns:
        [lines, numbers], new. A product that is too large is infinite.

    Raises:
        ValueError: a code is NaN.
    """
    lines, items = codes.shape
    step = 1 if table.ndim == 1 else table.shape[1]
    numbers = np.empty((lines * step, items) if across else (lines, items * step), np.float32)
    # numpy may say anything of the step of an axis that has one.
    sizes = zip(codes.strides, codes.shape, strict=True)
    steps = [stride if size > 1 else 1 for stride, size in sizes]
    assert codes.dtype == np.uint8 and 1 in steps and min(steps) > 0
    assert table.dtype == scales.dtype == np.float32
    assert table.shape in ((256,), (256, 2)) and table.flags.c_contiguous
    height, width = block
    assert scales.flags.c_contiguous and scales.shape == (
        -(-(first + numbers.shape[0]) // height), -(-numbers.shape[1] // width)
    )  # fmt: skip
    assert across or width % step == 0
    status = _native().llama4_edge_decode(
        codes.ctypes.data, *steps, lines, items, table.ctypes.data, step, across,
        scales.ctypes.data, scales.shape[1], height, width, first, numbers.ctypes.data,
    )  # fmt: skip
    if status == _NOT_FINITE:
        raise ValueError("NaN")
    assert status == _GOOD
    return numbers


def bf16_to_f32(halves: Halves, out: Floats) -> None:
    """Widen `halves`, bf16 as raw 16-bit words, into `out` of the same size; exact."""
    assert halves.size == out.size and halves.flags.c_contiguous and out.flags.c_contiguous
    _ggml().ggml_bf16_to_fp32_row(halves.ctypes.data, out.ctypes.data, halves.size)


def f32_to_bf16(floats: Floats) -> Halves:
    """Round `floats` to bf16, to nearest even, as raw 16-bit words of the same shape."""
    halves = np.empty(floats.shape, np.uint16)
    contiguous = np.ascontiguousarray(floats)
    _ggml().ggml_fp32_to_bf16_row_ref(contiguous.ctypes.data, halves.ctypes.data, halves.size)
    return halves


def encoder_version() -> str:
    """ggml's version and commit, and a digest of its library and of our own encoders.

    Other versions, and other builds of one, may encode the same numbers to other bytes.
    """
    ggml = _ggml()
    digest = hashlib.sha256()
    for library in (ggml, _native()):
        with Path(library._name).open("rb") as file:
            while piece := file.read(1 << 16):
                digest.update(piece)
    version, commit = ggml.ggml_version().decode(), ggml.ggml_commit().decode()
    return f"{version} ({commit}, {digest.hexdigest()[:16]})"


@cache
def _native() -> ctypes.CDLL:
    """Our own encoders, with the prototypes of their functions.

    They are a plain library, which needs none of Python's headers to be built.
    """
    spec = importlib.util.find_spec("._native", __package__)
    if spec is None or spec.origin is None:
        raise EngineError(
            "the encoders of llama4-edge are not built",
            hint="Install llama4-edge again, with a C++ compiler at hand.",
        )
    library = ctypes.CDLL(spec.origin)
    if getattr(library, "llama4_edge_interface", lambda: None)() != _INTERFACE:
        raise EngineError(
            "the encoders of llama4-edge are of another version than the rest of it",
            found=spec.origin,
            hint="Install llama4-edge again, with a C++ compiler at hand.",
        )
    pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    library.llama4_edge_instruction_set.argtypes = [size]
    library.llama4_edge_instruction_set.restype = text
    library.llama4_edge_encode.argtypes = [
        text, text, ctypes.c_int, pointer, size, size, size, size, pointer, pointer, pointer,
    ]  # fmt: skip
    library.llama4_edge_encode.restype = ctypes.c_int
    library.llama4_edge_repack.argtypes = [
        text, pointer, size, size, size, pointer, pointer, ctypes.c_uint8, pointer,
    ]  # fmt: skip
    library.llama4_edge_repack.restype = ctypes.c_int
    library.llama4_edge_decode.argtypes = [
        pointer, size, size, size, size, pointer, size, ctypes.c_bool,
        pointer, size, size, size, size, pointer,
    ]  # fmt: skip
    library.llama4_edge_decode.restype = ctypes.c_int
    return library


@cache
def _ggml() -> ctypes.CDLL:
    """libggml-base with the prototypes of the functions used here (ggml.h)."""
    path = _library_directory() / f"libggml-base{_SUFFIX}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(
            f"ggml's library {path} does not load",
            found=str(error),
            hint="Run `llama4 doctor` for the command that builds it.",
        ) from None
    pointer, int64 = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, pointer, pointer, int64, int64, int64, pointer,
    ]  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    for name in ("ggml_bf16_to_fp32_row", "ggml_fp32_to_bf16_row_ref"):
        getattr(library, name).argtypes = [pointer, pointer, int64]
        getattr(library, name).restype = None
    for name in ("ggml_version", "ggml_commit"):
        getattr(library, name).argtypes = []
        getattr(library, name).restype = ctypes.c_char_p
    return library


def _library_directory() -> Path:
    """Where llama-cpp-python keeps its native libraries, without importing it."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EngineError(
            "llama-cpp-python is not installed", hint="Run `llama4 doctor` for the command."
        )
    return Path(spec.origin).parent / "lib"
