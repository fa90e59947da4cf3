"""The likeliest tokens of a model's logits, ready for llama.cpp's samplers.

llama.cpp sorts a copy of all 202,048 logits for each token; what is chosen here is what its top-k
would leave. Knows nothing of samplers.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Candidates = npt.NDArray[np.void]

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data of llama.h."""


def largest(logits: Floats, count: int, out: Candidates) -> bool:
    """Write the ``count`` largest logits to ``out``, the largest first, of equal ones by their ids.

    Args:
        logits: [n_vocab], contiguous.
        count: from 1 to n_vocab.
        out: of `CANDIDATE`, contiguous, [count] or more.

    Returns:
        Whether none is NaN and the largest is finite; else nothing is written.
    """
    native = _native()
    if native is None:
        return _largest(logits, count, out)
    return bool(native(logits.ctypes.data, logits.size, count, out.ctypes.data))


@cache
def _native() -> Callable[[int, int, int, int], int] | None:
    """The same in C++, None where it was not built."""
    library = native_library()
    if library is None:
        return None
    function = library.llama4_edge_largest
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function


@cache
def native_library() -> ctypes.CDLL | None:
    """What is built of ``native/``, None where nothing is."""
    spec = importlib.util.find_spec(".._candidates", __package__)
    return None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)


def _largest(logits: Floats, count: int, out: Candidates) -> bool:
    if not np.isfinite(logits.max()):  # NaN if one is
        return False
    split = logits.size - count
    least = np.partition(logits, split)[split]
    ids = np.flatnonzero(logits >= least)
    ids = ids[np.lexsort((ids, -logits[ids]))[:count]]
    out["id"][:count] = ids
    out["logit"][:count] = logits[ids]
    return True
