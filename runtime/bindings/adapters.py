"""llama.cpp's adapters of one model, and which of them its context computes with.

Promises that adapters lie where llama.cpp puts them, counted by its own words; that buffers are
made for all of them together when they are loaded; and that memory which is short then, or later,
is an error and does not end the process. Used in the thread that calls llama.cpp alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from ...errors import AllocationError, EngineError
from ..adapters import Scales
from ..checked_adapters import CheckedAdapters
from .candidates import native_library
from .library import CapturedLog, captured_log, llama, native_function, refused

# llama_context::sched_reserve, which llama_decode calls first after a change: it makes graphs and
# buffers anew, and throws where memory is short, which would end the process there.
_RESERVE = "_ZN13llama_context13sched_reserveEv"

_PLACED = re.compile(r"lora for '(.+)' -> '(.+)'")
_FLOAT = 4
_TEXT_BYTES = 512


class NativeAdapters:
    """The loaded adapters of a model. Free them before it.

    ``sizes`` has the bytes of adapters in each kind of memory, ``vector_sizes`` those of control
    vectors on each device, both by llama.cpp's names. ``scales`` are those that the context
    computes with, None before `attach` and after a failure; ``switch_seconds`` is what the last
    change of them took.

    Args:
        model: a ``llama_model``, loaded or without its weights.
        layers: the device of each layer, by llama.cpp's name.
        name: of the model's file, for errors.

    Raises:
        EngineError: llama.cpp refuses one; its own words are given.
    """

    def __init__(
        self, model: Any, checked: CheckedAdapters, layers: Mapping[int, str], name: str
    ) -> None:
        self.sizes: Counter[str] = Counter()
        self.vector_sizes: Counter[str] = Counter()
        if checked.direction is not None:
            n_layers, n_embd = checked.direction.shape
            for layer in range(1, n_layers + 1):
                self.vector_sizes[layers[layer]] += _aligned(_FLOAT * n_embd, layers[layer])
        self.scales: Scales | None = None
        self.switch_seconds = 0.0
        self._direction = checked.direction
        self._handles: list[int] = []
        self._name = name
        self._context: Any = None
        try:
            for adapter in checked.adapters:
                with captured_log() as log:
                    handle = _function("init")(model, os.fsencode(adapter.path))
                if not handle:
                    raise refused(f"{adapter.path}: llama.cpp cannot load the adapter", log)
                self._handles.append(handle)
                for target, memory in _PLACED.findall(log.text):
                    pair = adapter.matrices[target]
                    for tensor in (pair.a, pair.b):
                        self.sizes[memory] += _aligned(tensor.nbytes, memory)
        except BaseException:
            self.close()
            raise

    def attach(self, context: Any, layers: tuple[int, int] | None, scales: Scales) -> None:
        """Have a context compute with all of these, and its buffers be large enough for that.

        Args:
            layers: the first and the last that control vectors are added after; None is all.
            scales: that hold first; those of 0.0 count as 1.0 for the buffers.

        Raises:
            AllocationError: a device is short of memory.
            EngineError: llama.cpp failed otherwise.
        """
        self._context, self.scales = context, None
        if self._direction is not None:
            n_layer, n_embd = self._direction.shape
            first, last = layers or (1, n_layer)
            status = llama().llama_set_adapter_cvec(
                context,
                np.ascontiguousarray(self._direction).ctypes.data_as(_FLOATS),
                self._direction.size, n_embd, first, last,
            )  # fmt: skip
            if status:
                raise EngineError(f"{self._name}: llama.cpp does not take the control vectors")
        self.use(tuple(scale or 1.0 for scale in scales))

    def use(self, scales: Scales) -> None:
        """Have the context compute with so much of each adapter from the next batch on.

        Raises:
            AllocationError: a device is short of memory; the context goes on without adapters.
            EngineError: llama.cpp failed otherwise.
        """
        if scales == self.scales:
            return
        begun = time.perf_counter()
        self.scales = None
        self._set(scales)
        with captured_log() as log:
            problem = _reserve(self._context)
        if problem is not None:
            self._set((0.0,) * len(scales))
            _reserve(self._context)
            raise _short(self._name, problem, log)
        self.scales = scales
        self.switch_seconds = time.perf_counter() - begun

    def close(self) -> None:
        """Free them; nothing computes with them any more."""
        while self._handles:
            _function("free")(self._handles.pop())

    def _set(self, scales: Scales) -> None:
        count = len(self._handles)
        handles = (ctypes.c_void_p * max(count, 1))(*self._handles)
        numbers = (ctypes.c_float * max(count, 1))(*scales)
        _function("set")(self._context, handles, count, numbers)


_FLOATS = ctypes.POINTER(ctypes.c_float)


def _aligned(nbytes: int, memory: str) -> int:
    """The bytes that a tensor takes there: the CPU aligns to 32, and CUDA to 128."""
    size = 32 if memory.startswith("CPU") or memory.endswith("_Host") else 128
    return -(-nbytes // size) * size


@cache
def _function(name: str) -> Callable[..., Any]:
    pointer = ctypes.c_void_p
    if name == "init":
        return native_function("llama_adapter_lora_init", pointer, pointer, ctypes.c_char_p)
    if name == "free":
        return native_function("llama_adapter_lora_free", None, pointer)
    if name == "set":
        return native_function(
            "llama_set_adapters_lora", ctypes.c_int32, pointer, pointer, ctypes.c_size_t, _FLOATS
        )
    return native_function(_RESERVE, None, pointer)


def _reserve(context: Any) -> str | None:
    """Have a context make its graphs and buffers anew; what went wrong, None where nothing did."""
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    guarded: Any = getattr(native_library(), "llama4_edge_guarded", None)
    reserve = _function("reserve")
    if guarded is None:  # C++ was not built
        reserve(context)
        return None
    guarded.restype = ctypes.c_int32
    guarded.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    address = ctypes.cast(reserve, ctypes.c_void_p)  # type: ignore[arg-type]
    if not guarded(address, context, text, _TEXT_BYTES):
        return None
    return text.value.decode("utf-8", "replace")


def _short(name: str, problem: str, log: CapturedLog) -> EngineError:
    """The error where buffers cannot be made."""
    what = f"{name}: llama.cpp cannot make buffers for the adapters"
    if log.shortage or "alloc" in problem:
        return refused(what, log) if log.shortage else AllocationError(what, found=problem)
    return EngineError(what, found=problem)
