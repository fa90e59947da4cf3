"""Resizes pictures as torchvision does: bilinear, with antialias, in whole numbers.

Promises each byte of ``torchvision.transforms.v2.functional.resize`` of a uint8 tensor on x86 and
ARM processors, which is what the model's own processor calls. Pillow's ``resize``, which Meta's
reference calls, keeps more bits of each weight: its bytes differ by one here and there.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Planes = npt.NDArray[np.uint8]
"""A picture as [3, rows, columns]; any strides."""

_WEIGHT_BITS = 15  # the kernel keeps weights in int16
_MOST_PRECISION = 22
_EXACT_IN_FLOAT32 = 2**24
# Results of one matrix product. Each of them reads the whole stretch of the picture under all.
_BLOCK = 16


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
    first, weights, precision = _weights(picture.shape[2], length)
    result = np.empty((*picture.shape[:2], length), dtype=np.uint8)
    for begin in range(0, length, _BLOCK):
        at, matrix = _matrix(first, weights, begin)
        source = picture[:, :, at : at + matrix.shape[1]]
        stretch = np.array(source, dtype=matrix.dtype, order="C")
        sums = stretch.reshape(-1, matrix.shape[1]) @ matrix.T
        block = result[:, :, begin : begin + _BLOCK]
        block[...] = _levels(sums, precision).reshape(block.shape)
    return result


def _along_columns(picture: Planes, length: int) -> Planes:
    """Each column at another length."""
    first, weights, precision = _weights(picture.shape[1], length)
    result = np.empty((picture.shape[0], length, picture.shape[2]), dtype=np.uint8)
    for begin in range(0, length, _BLOCK):
        at, matrix = _matrix(first, weights, begin)
        for plane, target in zip(picture, result, strict=True):
            stretch = plane[at : at + matrix.shape[1]].astype(matrix.dtype)
            target[begin : begin + _BLOCK] = _levels(matrix @ stretch, precision)
    return result


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
    first: npt.NDArray[np.int64], weights: npt.NDArray[np.int64], begin: int
) -> tuple[int, npt.NDArray[np.floating]]:
    """What makes new pixels from ``begin`` on of a stretch of old ones: where it begins, and how.

    Whole numbers in floats, which have BLAS: every sum of such products is exact in the type.
    """
    starts = first[begin : begin + _BLOCK]
    some = weights[begin : begin + _BLOCK]
    at = int(starts[0])
    # How many there are up to the last that is not 0.
    counts = some.shape[1] - np.argmax(some[:, ::-1] > 0, axis=1)
    largest_sum = 255 * int(some.sum(axis=1).max())
    exact = np.float32 if largest_sum < _EXACT_IN_FLOAT32 else np.float64
    matrix = np.zeros((len(starts), int(np.max(starts + counts)) - at), dtype=exact)
    for row, values, start, count in zip(matrix, some, starts - at, counts, strict=True):
        row[start : start + count] = values[:count]
    return at, matrix


def _levels(sums: npt.NDArray[np.floating], precision: int) -> npt.NDArray[np.uint8]:
    """Sums of weights and bytes as bytes, half a level rounded up."""
    sums *= 2.0**-precision
    sums += 0.5
    np.minimum(sums, 255.0, out=sums)
    return sums.astype(np.uint8)
