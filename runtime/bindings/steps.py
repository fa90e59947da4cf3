"""Several tokens of each sequence in one call: decoded and chosen in C++, one after the other.

Promises the tokens that `Sampler.choose` would choose after each decoding. Used in the thread that
calls llama.cpp alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .batch import Batch
from .candidates import native_library

_FUNCTIONS = (
    "llama_decode", "llama_synchronize", "llama_get_logits_ith", "llama_sampler_apply",
    "llama_vocab_is_eog",
)  # fmt: skip


class Choice(ctypes.Structure):
    """How the tokens of a sequence are chosen: by a chain of llama.cpp's, of the likeliest.

    ``chain`` is None where the likeliest itself is. ``ends`` is whether tokens that end an answer
    end this one.
    """

    _fields_ = (("chain", ctypes.c_void_p), ("top_k", ctypes.c_int32), ("ends", ctypes.c_int32))


class _Llama(ctypes.Structure):
    """``struct Llama`` of native/steps.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _FUNCTIONS),
        ("context", ctypes.c_void_p),
        ("vocab", ctypes.c_void_p),
        ("n_vocab", ctypes.c_int32),
    )


class Taken(NamedTuple):
    """What several steps brought.

    ``tokens`` are those that were chosen, int32 of [n_steps, n_sequences]; ``n_decoded`` is how
    often all sequences were decoded: once more than there are steps where logits are NaN.
    ``failed`` is whether a decoding after these failed, or was aborted.
    """

    tokens: npt.NDArray[np.int32]
    n_decoded: int
    failed: bool


class Steps:
    """The steps of one context.

    Args:
        bindings: the module ``llama_cpp``.
        end_ids: tokens that end an answer, beside those that llama.cpp takes for ends.
        stop, attention: addresses of bytes that are 0 while the steps may go on.
    """

    def __init__(
        self,
        bindings: Any,
        context: Any,
        vocab: Any,
        n_vocab: int,
        end_ids: Sequence[int],
        stop: int,
        attention: int,
    ) -> None:
        addresses = [_address(getattr(bindings, name)) for name in _FUNCTIONS]
        self._llama = _Llama(*addresses, _address(context), _address(vocab), n_vocab)
        self._ends = (ctypes.c_int32 * max(len(end_ids), 1))(*end_ids)
        self._n_ends = len(end_ids)
        self._stop, self._attention = stop, attention
        self._tokens = np.empty(0, np.int32)
        self._address = 0

    def take(
        self, batch: Batch, choices: Sequence[Choice], most: int, seconds: float
    ) -> Taken | None:
        """Decode and choose until something is to be done; None where C++ was not built.

        That is at the latest after ``most`` steps or about so many seconds, or when a token ends an
        answer.

        Args:
            batch: a token for each sequence, with logits.
            choices: for each sequence.
        """
        native = _native()
        if native is None:
            return None
        size = most * len(choices)
        if size > self._tokens.size:
            self._tokens = np.empty(size, np.int32)
            self._address = self._tokens.ctypes.data  # takes microseconds
        n_decoded, status = ctypes.c_int32(), ctypes.c_int32()
        every = (Choice * len(choices))(*choices)
        n_steps = native(
            ctypes.byref(self._llama), ctypes.byref(batch.native), every, self._ends, self._n_ends,
            most, seconds, self._stop, self._attention,
            self._address, ctypes.byref(n_decoded), ctypes.byref(status),
        )  # fmt: skip
        tokens = self._tokens[: n_steps * len(choices)].reshape(n_steps, len(choices)).copy()
        return Taken(tokens, int(n_decoded.value), bool(status.value))


@cache
def _native() -> Callable[..., int] | None:
    # (None too where an editable installation was not built again.)
    function: Any = getattr(native_library(), "llama4_edge_steps", None)
    if function is None:
        return None
    function.restype = ctypes.c_int32
    function.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32,
        ctypes.c_int32, ctypes.c_double, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    return function  # type: ignore[no-any-return]


def _address(pointer: Any) -> int | None:
    """Of a function or of an object of llama.cpp's."""
    return ctypes.cast(pointer, ctypes.c_void_p).value
