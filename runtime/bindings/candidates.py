"""The likeliest tokens of a model's logits, ready for llama.cpp's samplers.

llama.cpp sorts a copy of all 202,048 logits for each token; what is chosen here is what its top-k
would leave. Knows nothing of samplers.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Candidates = npt.NDArray[np.void]

Mask = npt.NDArray[np.uint32]
"""Tokens that may be chosen, of [ceil(n_vocab / 32)], contiguous: bit ``i`` of word ``w`` is the
token ``32 * w + i``. Bits beyond the vocabulary are ignored."""

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data of llama.h."""


def largest(logits: Floats, count: int, out: Candidates, mask: Mask | None = None) -> int:
    """Write the ``count`` largest logits to ``out``, the largest first, of equal ones by their ids.

    Args:
        logits: [n_vocab], contiguous.
        count: from 1 to n_vocab.
        out: of `CANDIDATE`, contiguous, [count] or more.
        mask: those that count.

    Returns:
        How many there are: ``count``, or as many as the mask allows. 0 where a logit is NaN, or the
        largest is infinite.
    """
    native = _native()
    if native is None:
        return _largest(logits, count, out, mask)
    words = None if mask is None else mask.ctypes.data
    return native.largest(logits.ctypes.data, logits.size, words, count, out.ctypes.data)


def log_sum(logits: Floats, most: float) -> float:
    """The logarithm of the sum of exp(logits).

    Args:
        logits: [n_vocab], contiguous, none NaN.
        most: the largest, finite.
    """
    native = _native()
    if native is None:
        return most + math.log(float(np.exp(logits - np.float32(most)).sum(dtype=np.float64)))
    return native.log_sum(logits.ctypes.data, logits.size, most)


def masked(logits: Floats, mask: Mask) -> Floats:
    """A copy of the logits, minus infinity where the mask does not allow a token."""
    if (native := _native()) is not None:
        copy = np.empty_like(logits)
        native.masked(logits.ctypes.data, logits.size, mask.ctypes.data, copy.ctypes.data)
        return copy
    return np.where(_bits(mask, logits.size), logits, np.float32(-np.inf))


class _Native(NamedTuple):
    """Functions of ``native/candidates.cpp``."""

    largest: Callable[[int, int, int | None, int, int], int]
    log_sum: Callable[[int, int, float], float]
    masked: Callable[[int, int, int, int], None]


@cache
def _native() -> _Native | None:
    """The same in C++, None where it was not built."""
    library = native_library()
    # (None too where an editable installation was not built again.)
    if library is None or not hasattr(library, "llama4_edge_masked"):
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    largest, log_sum = library.llama4_edge_largest, library.llama4_edge_log_sum
    masked = library.llama4_edge_masked
    largest.argtypes, largest.restype = [pointer, size, pointer, size, pointer], size
    log_sum.argtypes, log_sum.restype = [pointer, size, ctypes.c_float], ctypes.c_double
    masked.argtypes, masked.restype = [pointer, size, pointer, pointer], None
    return _Native(largest, log_sum, masked)


@cache
def native_library() -> ctypes.CDLL | None:
    """What is built of ``native/``, None where nothing is."""
    spec = importlib.util.find_spec(".._candidates", __package__)
    return None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)


def _largest(logits: Floats, count: int, out: Candidates, mask: Mask | None) -> int:
    if np.isnan(most := logits.max()):  # if one is
        return 0
    if mask is not None:
        logits = masked(logits, mask)
        most = logits.max()
    if not np.isfinite(most):
        return 0
    split = logits.size - count
    least = np.partition(logits, split)[split]
    is_large = logits >= least
    ids = np.flatnonzero(is_large if mask is None else is_large & _bits(mask, logits.size))
    ids = ids[np.lexsort((ids, -logits[ids]))[:count]]
    out["id"][: ids.size] = ids
    out["logit"][: ids.size] = logits[ids]
    return ids.size


def _bits(mask: Mask, count: int) -> npt.NDArray[np.bool_]:
    """Of each token whether the mask allows it."""
    octets = mask.astype("<u4", copy=False).view(np.uint8)
    return np.unpackbits(octets, count=count, bitorder="little").view(np.bool_)
