"""What llama.cpp hears of a worker's buffers, and reads from them.

ggml ends the process for an address of 0, a buffer that is smaller than it asked for, or a tensor
of 2**63 bytes; and it computes with an expert of any number that it reads, wherever in memory that
leads.

Promises that llama.cpp gets only buffers that can be, and numbers of experts that there are. What
else a worker computes cannot be checked. Puts its own functions among those of ggml's buffers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from ..bindings.library import native_function

Fault = tuple[str, object, str]
"""What of a worker's cannot be, as it was found, and what was expected."""

_POINTER = ctypes.c_void_p
_WORD = ctypes.sizeof(_POINTER)
_AllocBuffer = ctypes.CFUNCTYPE(_POINTER, _POINTER, ctypes.c_size_t)
_GetBase = ctypes.CFUNCTYPE(_POINTER, _POINTER)

# A type of buffers begins with its functions, and a buffer with its own, before its type, its
# context and its size (ggml-backend-impl.h).
_ALLOC_BUFFER, _GET_BASE, _GET_TENSOR, _SIZE = 1, 1, 5, 13

_TOO_MUCH = 2**62  # bytes of a buffer, with which no sum overflows
_I32 = 26  # enum ggml_type (ggml.h)


class _Tensor(ctypes.Structure):
    """struct ggml_tensor up to ``view_src`` (ggml.h)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", _POINTER),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", _POINTER * 10),
        ("view_src", _POINTER),
    )


_GetTensor = ctypes.CFUNCTYPE(None, *[_POINTER] * 3, *[ctypes.c_size_t] * 2)

# ggml keeps only the addresses of these functions, for ever.
_referenced: list[object] = []


def check_buffers(buffer_type: int, refuse: Callable[[Fault], None]) -> None:
    """Have llama.cpp get only what can be of this ``ggml_backend_buffer_type_t``.

    Args:
        refuse: gives the worker up.
    """
    place = _pointer(buffer_type, _ALLOC_BUFFER)
    allocate = _AllocBuffer(place.value or 0)
    alignment_of = native_function("ggml_backend_buft_get_alignment", ctypes.c_size_t, _POINTER)
    alignment = alignment_of(buffer_type)
    readers: list[Any] = []

    def allocated(buffer_type: int, size: int) -> int | None:
        buffer: int | None = allocate(buffer_type, size) if size < _TOO_MUCH else None
        fault = _buffer_fault(buffer, size, alignment)
        if fault is not None:
            refuse(fault)
            return None
        if buffer:
            reader = _pointer(buffer, _GET_TENSOR)
            if not readers:
                readers.append(_checked(reader.value or 0, refuse))
            reader.value = ctypes.cast(readers[0], _POINTER).value
        return buffer

    callback = _AllocBuffer(allocated)
    _referenced.append(callback)
    place.value = ctypes.cast(callback, _POINTER).value


def _buffer_fault(buffer: int | None, size: int, alignment: int) -> Fault | None:
    """What of a buffer cannot be; None where all can.

    ggml asks for the address once, and keeps it.
    """
    if size >= _TOO_MUCH:
        # Workers say what some tensors take.
        return "size of a tensor", size, f"less than {_TOO_MUCH} bytes"
    if not buffer:
        return None
    base = _GetBase(_pointer(buffer, _GET_BASE).value or 0)(buffer) or 0
    has = ctypes.c_size_t.from_address(buffer + _SIZE * _WORD).value
    if not size <= has < 2 * _TOO_MUCH:
        return "size of a buffer", has, f"{size} bytes, as was asked for"
    if base == 0 or base % alignment or base + has >= 2**64:
        return "address of a buffer", base, f"a multiple of {alignment} above 0"
    return None


def _checked(get_tensor: int, refuse: Callable[[Fault], None]) -> Any:
    """The function at an address, which reads a tensor, with its numbers of experts checked."""
    read = _GetTensor(get_tensor)

    # Called a few times for each layer and token where experts lie on another device.
    def checked(buffer: int, tensor: int, data: int, offset: int, size: int) -> None:
        read(buffer, tensor, data, offset, size)
        if ctypes.c_int.from_address(tensor).value != _I32:
            return
        numbers = np.ctypeslib.as_array((ctypes.c_int32 * (size // 4)).from_address(data))
        count = _experts(_Tensor.from_address(tensor))
        if numbers.size and (numbers.min() < 0 or numbers.max() >= count):
            wrong = numbers[(numbers < 0) | (numbers >= count)][0]
            ctypes.memset(data, 0, size)
            refuse(("number of an expert", int(wrong), f"0 to {count - 1}"))

    callback = _GetTensor(checked)
    _referenced.append(callback)
    return callback


def _experts(chosen: _Tensor) -> int:
    """Among how many experts a tensor chooses: it is what sorts one number for each, or a view."""
    if chosen.view_src:
        chosen = _Tensor.from_address(chosen.view_src)
    if not chosen.src[0]:
        return int(chosen.ne[0])
    return int(_Tensor.from_address(chosen.src[0]).ne[0])


def _pointer(address: int, place: int) -> ctypes.c_void_p:
    """The pointer at a place among those at an address."""
    return ctypes.c_void_p.from_address(address + place * _WORD)
