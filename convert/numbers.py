"""Numbers as a checkpoint stores them, on their way to a tensor type.

Works on blocks in memory. bf16 is held as its raw 16-bit words, FP8 as its codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..quant.encode import Bytes, bf16_to_f32, encode_rows, f32_to_bf16
from ..quant.types import BF16, F32, TensorType
from . import fp8

Block = npt.NDArray[Any]

# How numpy holds each dtype that a conversion reads.
VIEWS: dict[str, type] = {
    "BF16": np.uint16,
    "F16": np.float16,
    "F32": np.float32,
    fp8.DTYPE: np.uint8,
}


def transposed(block: Block, begin: int, end: int) -> Block:
    """Columns `begin` to `end` as rows.

    In two copies, since each then walks memory in order: four times as fast as one.
    """
    columns = np.ascontiguousarray(block[:, begin:end])
    return np.ascontiguousarray(columns.T)


def encode_stored(rows: Block, tensor_type: TensorType, place: Bytes) -> None:
    """Encode `rows` [n, length] as stored into `place`.

    Numbers stored as F16 or F32 pass through bf16 on their way to any type but F32, as they do on
    llama.cpp's way through a bf16 file.

    Raises:
        ValueError: a number is none, infinite, or too large for the type.
    """
    if not _all_finite(rows):
        raise ValueError("not a number, or infinity")
    if tensor_type is F32 and rows.dtype != np.uint16:
        place.view(np.float32)[:] = rows.reshape(-1)
        return
    halves = rows if rows.dtype == np.uint16 else f32_to_bf16(rows.astype(np.float32))
    if tensor_type is BF16:
        place.view(np.uint16)[:] = halves.reshape(-1)
        return
    floats = np.empty(halves.shape, np.float32)
    bf16_to_f32(halves, floats)
    encode_rows(floats, tensor_type, place)


def _all_finite(rows: Block) -> bool:
    """Whether every number as stored is one.

    What is not finite in bf16 has the largest patterns: of all as signed integers when positive, as
    unsigned ones when negative. Two maxima cost a tenth of masking the signs off.
    """
    if rows.dtype != np.uint16:
        return bool(np.isfinite(rows).all())
    return int(rows.view(np.int16).max()) < 0x7F80 and int(rows.max()) < 0xFF80
