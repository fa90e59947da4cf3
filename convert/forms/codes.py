"""What small codes stand for.

The floats of four bits (E2M1) and the scales of eight (E8M0) are those of the OCP Microscaling
Formats specification, 1.0; a line is a row of numbers that go to one output. Works on blocks in
memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...quant.encode import Bytes, Floats

Table = Floats
"""What each code stands for, by the code."""

Pairs = Floats
"""What each byte of two codes stands for, [256, 2]."""

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1: Table = np.array(_MAGNITUDES + tuple(-number for number in _MAGNITUDES), np.float32)

# 2^-127 to 2^127, and NaN.
E8M0: Table = np.append(np.ldexp(1.0, np.arange(-127, 128)), np.nan).astype(np.float32)


def pairs(table: Table, *, high_first: bool = False) -> Pairs:
    """A table for bytes of two codes, the low four bits first unless `high_first`."""
    codes = np.arange(256)
    low, high = table[codes & 15], table[codes >> 4]
    both = (high, low) if high_first else (low, high)
    return np.stack(both, axis=1).astype(np.float32)


def contiguous(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`codes` [lines, items] with contiguous lines.

    Contiguous columns take two copies, since each then walks memory in order: four times as fast
    as one.
    """
    if codes.flags.c_contiguous:
        return codes
    columns = np.ascontiguousarray(codes.T)
    return np.ascontiguousarray(columns.T)


def look_up_pairs(codes: Bytes, table: Pairs) -> Floats:
    """The numbers of `codes` [lines, bytes]: a new array [lines, 2 * bytes]."""
    codes = contiguous(codes)
    numbers = np.empty(codes.shape, np.uint64)
    # Every code is a valid index; "clip" spares numpy the check, and a copy.
    np.take(table.view(np.uint64)[:, 0], codes, mode="clip", out=numbers)
    return numbers.view(np.float32)
