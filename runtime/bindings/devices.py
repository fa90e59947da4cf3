"""The devices that llama.cpp can compute on, with the memory that this process can have of each.

Promises that no number is invented: a backend that reports none, or an impossible one, gives None.
For the CPU, whose backend ignores cgroup limits, the number is that of `system.memory`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...errors import EngineError, SettingError, did_you_mean
from ...system.memory import host_memory
from .library import native_function

# enum ggml_backend_dev_type (ggml-backend.h)
_TYPES = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel", 4: "meta"}


@dataclass(frozen=True)
class Device:
    """One device of ggml. ``memory_source`` says who counted the bytes."""

    name: str
    description: str
    type: str
    backend: str
    total_bytes: int | None
    free_bytes: int | None
    memory_source: str


@dataclass(frozen=True)
class NativeDevice:
    """A device that layers can be put on, as llama.cpp takes it.

    ``handle`` is its ``ggml_backend_dev_t`` and ``buffer_type`` the ``ggml_backend_buffer_type_t``
    of what lies there, whose name is ``buffer_name`` in llama.cpp's reports. ``endpoint`` is the
    worker that it belongs to, None for this machine.
    """

    name: str
    handle: int
    buffer_type: int
    buffer_name: str
    endpoint: str | None = None


def list_devices() -> tuple[Device, ...]:
    """Every device of every loaded backend, in ggml's order.

    Raises:
        EngineError: llama.cpp's library does not load, or CUDA was used before this process was
            forked.
    """
    return tuple(describe(handle) for handle in _handles())


def offload_devices() -> tuple[NativeDevice, ...]:
    """The devices of this machine that llama.cpp shares layers among: its GPUs, or else the
    integrated ones.

    Raises:
        EngineError: as `list_devices`.
    """
    by_type: dict[str, list[NativeDevice]] = {"gpu": [], "igpu": []}
    for handle in _handles():
        kind = _type_of(handle)
        if kind in by_type:
            by_type[kind].append(native_device(_name_of(handle), handle))
    return tuple(by_type["gpu"] or by_type["igpu"])


def no_device(problem: str, name: str, names: Iterable[str]) -> SettingError:
    """The error about the name of a device that is not among `names`."""
    names = list(names)
    return SettingError(
        problem,
        expected=", ".join(names) or "none: llama.cpp finds no GPU",
        hint=did_you_mean(name, names) or "`llama4 doctor` lists the devices of this machine.",
    )


def native_device(name: str, handle: int, endpoint: str | None = None) -> NativeDevice:
    """A device with its buffer type, which ggml creates at the first call."""
    buffer_type = native_function("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)(
        handle
    )
    return NativeDevice(
        name, handle, buffer_type, _text("ggml_backend_buft_name", buffer_type), endpoint
    )


def cpu_buffer_type() -> int:
    """The ``ggml_backend_buffer_type_t`` of main memory."""
    return int(native_function("ggml_backend_cpu_buffer_type", ctypes.c_void_p)())


def rpc_function(name: str, result: Any, *arguments: Any) -> Any:
    """A C function of ggml's RPC backend, found as llama.cpp's own tools find it."""
    registry = native_function("ggml_backend_reg_by_name", ctypes.c_void_p, ctypes.c_char_p)
    lookup = native_function(
        "ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
    )
    return ctypes.CFUNCTYPE(result, *arguments)(lookup(registry(b"RPC"), name.encode()))


_process: int | None = None
"""The process that asked for devices first, for which CUDA was made ready."""


def _handles() -> tuple[int, ...]:
    global _process
    count = native_function("ggml_backend_dev_count", ctypes.c_size_t)()
    get = native_function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    handles = tuple(get(index) for index in range(count))
    if _process is None:
        _process = os.getpid()
    if _process != os.getpid() and any(_backend_of(handle) == "CUDA" for handle in handles):
        # Any call of CUDA's would fail, and ggml end the process.
        raise EngineError(
            "CUDA cannot be used in a fork of a process that has used it",
            hint='Start processes with the method "spawn".',
        )
    return handles


def _type_of(handle: int) -> str:
    kind = native_function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)(handle)
    return _TYPES.get(kind, "unknown")


def _backend_of(handle: int) -> str:
    registry = native_function("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)
    return _text("ggml_backend_reg_name", registry(handle))


def _name_of(handle: int) -> str:
    return _text("ggml_backend_dev_name", handle)


def _text(function: str, argument: int) -> str:
    value = native_function(function, ctypes.c_char_p, ctypes.c_void_p)(argument)
    return value.decode("utf-8", "replace") if value else ""


def describe(handle: int) -> Device:
    """The device of a ``ggml_backend_dev_t``."""
    device_type = _type_of(handle)
    total, free, source = _reported_memory(handle)
    if device_type == "cpu":
        host = host_memory()
        total, free, source = host.total, host.free, host.source
    return Device(
        name=_name_of(handle),
        description=_text("ggml_backend_dev_description", handle),
        type=device_type,
        backend=_backend_of(handle),
        total_bytes=total,
        free_bytes=free,
        memory_source=source,
    )


def _reported_memory(handle: int) -> tuple[int | None, int | None, str]:
    """Total and free bytes as the backend reports them, and who reports them."""
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    pointer = ctypes.POINTER(ctypes.c_size_t)
    ask = native_function("ggml_backend_dev_memory", None, ctypes.c_void_p, pointer, pointer)
    ask(handle, ctypes.byref(free), ctypes.byref(total))
    return *believable(total.value, free.value), "ggml"


def believable(total: int, free: int) -> tuple[int | None, int | None]:
    """The two numbers where they are possible: a backend that does not know them reports zeros, and
    a difference below zero comes as a size_t far above the total."""
    if not 0 < total < 2**63:
        return None, None
    return total, free if 0 <= free <= total else None
