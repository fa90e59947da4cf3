"""Numbers as a checkpoint stores them, on their way to a tensor type.

Works on blocks in memory. bf16 is held as its raw 16-bit words.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from ..quant.encode import (
    Bytes,
    Floats,
    are_finite,
    bf16_to_f32,
    contiguous_rows,
    encode_bf16,
    encode_rows,
    f32_to_bf16,
)
from ..quant.types import BF16, F16, F32, TensorType

Block = npt.NDArray[Any]

# What is rounded to infinity in F16, and all that is larger.
_F16_END = 65520.0


def encode_stored(
    rows: Block, tensor_type: TensorType, place: Bytes, importance: Floats | None = None
) -> float:
    """Encode `rows` [n, length] as stored into `place`.

    Numbers stored as F16 or F32 are rounded once, to the type itself, as llama-quantize does with a
    file of that precision; those stored as F64 are rounded to F32 before.

    Args:
        rows: a view is welcome whose columns lie side by side in memory.
        tensor_type: what they are encoded to.
        place: the encoded bytes.
        importance: [length], how much an error in each column counts; None is all alike.

    Returns:
        Seconds of this thread that went into getting rows side by side.

    Raises:
        ValueError: a number is none, infinite, or too large for the type.
    """
    if rows.dtype == np.float64:
        rows = _to_f32(rows)
    if tensor_type.quantized:
        encode = encode_bf16 if rows.dtype == np.uint16 else encode_rows
        return encode(rows, tensor_type, place, importance)
    if not are_finite(rows):
        raise ValueError("NaN or infinity")
    started = time.thread_time()
    rows = contiguous_rows(rows)
    seconds = time.thread_time() - started
    if tensor_type is F32 and rows.dtype != np.uint16:
        place.view(np.float32)[:] = rows.reshape(-1)
        return seconds
    if tensor_type is BF16:
        halves = rows if rows.dtype == np.uint16 else f32_to_bf16(rows.astype(np.float32))
        place.view(np.uint16)[:] = halves.reshape(-1)
        return seconds
    if rows.dtype == np.uint16:
        floats = np.empty(rows.shape, np.float32)
        bf16_to_f32(rows, floats)
    else:
        floats = rows.astype(np.float32)
    # Of itself ggml finds these too, and says so on stderr.
    if tensor_type is F16 and max(floats.max(), -floats.min()) >= _F16_END:
        raise ValueError("values too large for F16")
    encode_rows(floats, tensor_type, place, importance)
    return seconds


def encode_decoded(
    rows: Floats, tensor_type: TensorType, place: Bytes, importance: Floats | None = None
) -> float:
    """Encode `rows` [n, length], which a form was decoded to, into `place`.

    F32 and F16 take them as they are. For other types they are rounded to bf16 first, as by the
    packages that load such a checkpoint: the file is that of the model so decompressed.

    Args, returns, raises: as `encode_stored`.
    """
    exact = tensor_type in (F32, F16)
    return encode_stored(rows if exact else f32_to_bf16(rows), tensor_type, place, importance)


def widened(rows: Block) -> Floats:
    """`rows` as stored, as float32 of its own memory; exact but for F64, which is rounded.

    Raises:
        ValueError: a number is too large for float32.
    """
    rows = contiguous_rows(rows)
    if rows.dtype == np.float64:
        return _to_f32(rows).astype(np.float32, copy=False)
    floats = np.empty(rows.shape, np.float32)
    if rows.dtype == np.uint16:
        bf16_to_f32(rows, floats)
    else:
        floats[:] = rows
    return floats


def _to_f32(rows: Block) -> Block:
    with np.errstate(over="ignore"):
        floats = rows.astype(np.float32)
    if not are_finite(floats):
        raise ValueError("a number too large for F32")
    return floats
