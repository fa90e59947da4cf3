"""Resizes pictures as torchvision does: bilinear, with antialias, in whole numbers.

Promises each byte of ``torchvision.transforms.v2.functional.resize`` of a uint8 tensor on x86 and
ARM processors, which is what the model's own processor calls. Pillow's ``resize``, which Meta's
reference calls, keeps more bits of each weight: its bytes differ by one here and there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Planes = npt.NDArray[np.uint8]
"""A picture as [3, rows, columns]; any strides."""

_WEIGHT_BITS = 15  # the kernel keeps weights in int16
_MOST_PRECISION = 22
_EXACT_IN_FLOAT32 = 2**24
# Results of one matrix product. Each of them reads the whole stretch of the picture under all.
_BLOCK = 16
# Multiplications up to which OpenBLAS uses no threads: for small products, waking them and waiting
# for them takes longer than the work, and ten times as long where others use the processor.
_UNTHREADED = 1 << 18


def resize(picture: Planes, rows: int, columns: int) -> Planes:
    """The picture at another size, uint8 of [3, rows, columns].

    Along rows first, then along columns, with bytes in between; an axis that keeps its length is
    left alone.

    Args:
        picture: not empty.
        rows, columns: at least 1.
    """
    if picture.shape[2] != columns:
        picture = _along_rows(picture, columns)
    if picture.shape[1] != rows:
        picture = _along_columns(picture, rows)
    return picture


def _along_rows(picture: Planes, length: int) -> Planes:
    """Each row at another length."""
    planes, rows, old_length = picture.shape
    blocks, dtype, precision = _blocks(old_length, length)
    result = np.empty((planes, rows, length), dtype=np.uint8)
    step = max(1, min(_size(block) for block in blocks) // planes)
    for begin in range(0, rows, step):
        some = picture[:, begin : begin + step]
        source = np.ascontiguousarray(some).reshape(-1, old_length).astype(dtype)
        sums = np.empty((len(source), length), dtype=dtype)
        for block in blocks:
            stretch = source[:, block.at : block.at + block.matrix.shape[1]]
            np.matmul(stretch, block.matrix.T, out=sums[:, block.new])
        result[:, begin : begin + step] = _levels(sums, precision).reshape(planes, -1, length)
    return result


def _along_columns(picture: Planes, length: int) -> Planes:
    """Each column at another length."""
    blocks, dtype, precision = _blocks(picture.shape[1], length)
    columns = picture.shape[2]
    result = np.empty((picture.shape[0], length, columns), dtype=np.uint8)
    for plane, target in zip(picture, result, strict=True):
        for block in blocks:
            stretch = plane[block.at : block.at + block.matrix.shape[1]].astype(dtype)
            sums = np.empty((len(block.matrix), columns), dtype=dtype)
            for begin in range(0, columns, _size(block)):
                part = slice(begin, begin + _size(block))
                np.matmul(block.matrix, stretch[:, part], out=sums[:, part])
            target[block.new] = _levels(sums, precision)
    return result


class _Block(NamedTuple):
    """What makes new pixels of a row: a matrix for a stretch of old ones, and where this begins."""

    new: slice
    at: int
    matrix: npt.NDArray[np.floating]


def _size(block: _Block) -> int:
    """How many rows, or columns, are worth one product."""
    return max(1, _UNTHREADED // block.matrix.size)


def _blocks(length: int, new_length: int) -> tuple[list[_Block], type[np.floating], int]:
    """The blocks of all new pixels, the type in which their sums are exact, and the precision.

    Whole numbers in floats, which have BLAS.
    """
    first, weights, precision = _weights(length, new_length)
    largest_sum = 255 * int(weights.sum(axis=1).max())
    dtype = np.float32 if largest_sum < _EXACT_IN_FLOAT32 else np.float64
    blocks = []
    for begin in range(0, new_length, _BLOCK):
        new = slice(begin, min(begin + _BLOCK, new_length))
        at, matrix = _matrix(first[new], weights[new])
        blocks.append(_Block(new, at, matrix.astype(dtype)))
    return blocks, dtype, precision


def _weights(
    length: int, new_length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """For each new pixel the first of the old ones it is made of, and their weights.

    A triangle as wide as two new pixels, or as two old ones where these are larger.

    Returns:
        The indices, [new_length]; the weights, [new_length, most], in units of 2 to the minus
        precision; and the precision, which is as high as the largest weight allows in int16.
    """
    scale = length / new_length
    support = max(scale, 1.0)
    centers = scale * (np.arange(new_length) + 0.5)
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centers + support + 0.5).astype(np.int64), length)
    most = int(np.max(end - first))
    offsets = np.arange(most) + (first - centers + 0.5)[:, None]
    weights = np.maximum(1.0 - np.abs(offsets * (1.0 / support)), 0.0)
    weights[np.arange(most) >= (end - first)[:, None]] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    largest = float(weights.max())
    precision = 0
    while precision < _MOST_PRECISION:
        if math.floor(0.5 + largest * 2 ** (precision + 1)) >= 2**_WEIGHT_BITS:
            break
        precision += 1
    return first, np.floor(0.5 + weights * 2**precision).astype(np.int64), precision


def _matrix(
    first: npt.NDArray[np.int64], weights: npt.NDArray[np.int64]
) -> tuple[int, npt.NDArray[np.int64]]:
    """The matrix that makes new pixels of a stretch of old ones, and where that begins."""
    at = int(first[0])
    # How many there are up to the last that is not 0.
    counts = weights.shape[1] - np.argmax(weights[:, ::-1] > 0, axis=1)
    starts = first - at
    matrix = np.zeros((len(first), int(np.max(starts + counts))), dtype=np.int64)
    for row, values, start, count in zip(matrix, weights, starts, counts, strict=True):
        row[start : start + count] = values[:count]
    return at, matrix


def _levels(sums: npt.NDArray[np.floating], precision: int) -> npt.NDArray[np.uint8]:
    """Sums of weights and bytes as bytes, half a level rounded up."""
    sums *= 2.0**-precision
    sums += 0.5
    np.minimum(sums, 255.0, out=sums)
    return sums.astype(np.uint8)
