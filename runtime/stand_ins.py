"""Devices of llama.cpp's type GPU for GPUs that are not here, to be measured on without loading.

Promises devices on which llama.cpp places, counts and schedules as on a GPU in this machine, also
what it copies there of weights that lie in main memory. They live in a process of their own, on the
loopback interface, which ends with this one, and are in nobody's list of devices. Nothing is ever
stored or computed on them: they are for ``memory.measure`` alone, and know nothing of how much
memory a GPU has.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from ..errors import EngineError, SettingError
from .devices import Target, target
from .library import build_command, library_info, native_function

MOST_STAND_INS = 15
"""llama.cpp's scheduler takes 16 devices, of which main memory is one (GGML_SCHED_MAX_BACKENDS)."""

_STARTED_WITHIN = 20.0  # seconds
# Fewer tokens than these at a time are computed where the weights are, more on the GPU, to which
# the weights are copied then (op_offload_min_batch_size in ggml-cuda.cu).
_OFFLOADED_FROM = 32

# The child: a worker of ggml with the CPU as each of its devices. It ends when its input does.
_WORKER = """
import ctypes, os, sys, threading
base, cpu, rpc = (ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in sys.argv[1:4])
endpoint, count = sys.argv[4].encode(), int(sys.argv[5])
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
cpu.ggml_backend_cpu_reg.restype = base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
base.ggml_backend_reg_dev_get.argtypes = ctypes.c_void_p, ctypes.c_size_t
device = base.ggml_backend_reg_dev_get(cpu.ggml_backend_cpu_reg(), 0)
start = rpc.ggml_backend_rpc_start_server
start.argtypes = (ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_size_t] * 2, ctypes.c_void_p)
start(endpoint, None, 1, count, (ctypes.c_void_p * count)(*[device] * count))
"""


def stand_ins(names: Sequence[str]) -> tuple[Target, ...]:
    """One stand-in for each name, to be handed to ``memory.measure`` as workers.

    Raises:
        SettingError: there are more names than llama.cpp takes devices.
        EngineError: the library was built without RPC, or the process does not start.
    """
    if len(names) > MOST_STAND_INS:
        raise SettingError(
            "there are more GPUs than llama.cpp takes",
            found=str(len(names)),
            expected=f"at most {MOST_STAND_INS}",
        )
    if not names:
        return ()
    return tuple(target(name, handle) for name, handle in zip(names, _handles(), strict=False))


@functools.cache
def _handles() -> tuple[int, ...]:
    """All stand-ins that there can be. The process behind them is started once: ggml ends this one
    where it meets a worker that has gone."""
    endpoint = _start()
    add = native_function("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
    get = native_function(
        "ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    )
    registry = add(endpoint.encode())
    handles = tuple(get(registry, index) for index in range(MOST_STAND_INS))
    for handle in handles:
        place = ctypes.c_void_p.from_address(handle + _OFFLOAD_OP * _POINTER)
        place.value = ctypes.cast(_OFFLOADS, ctypes.c_void_p).value
    return handles


# A device of ggml begins with its functions (struct ggml_backend_device, ggml-backend-impl.h). RPC
# leaves out offload_op, by which a GPU says that it wants to compute with weights that lie in main
# memory; its answer decides what is copied to it, and with that the size of its compute buffer.
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_OFFLOAD_OP = 11


class _Tensor(ctypes.Structure):
    """The beginning of struct ggml_tensor (ggml.h)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
    )


def _offloads(_device: int, operation: Any) -> bool:
    """Whether a GPU would copy the weights to itself for this operation, as CUDA decides it."""
    tensor = operation.contents
    name = native_function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)(tensor.op)
    if name == b"GET_ROWS":
        return False
    rows = {b"MUL_MAT": tensor.ne[1], b"MUL_MAT_ID": tensor.ne[2]}.get(name)
    return bool((rows or prod(tensor.ne[1:])) >= _OFFLOADED_FROM)


# Kept here, because the devices keep only its address.
_OFFLOADS = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.POINTER(_Tensor))(_offloads)


def _start() -> str:
    """Start the process; where it listens."""
    libraries = [_library(name) for name in ("libggml-base", "libggml-cpu", "libggml-rpc")]
    endpoint = f"127.0.0.1:{_free_port()}"
    child = subprocess.Popen(
        [sys.executable, "-c", _WORKER, *libraries, endpoint, str(MOST_STAND_INS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(child.kill)
    host, port = endpoint.split(":")
    deadline = time.monotonic() + _STARTED_WITHIN
    while child.poll() is None and time.monotonic() < deadline:
        # ggml ends this process where it cannot connect: first it is made sure that it can
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
            return endpoint
        time.sleep(0.01)
    raise EngineError(
        "the stand-ins for GPUs that are not here do not start",
        found="the process has ended" if child.poll() is not None else "no answer",
    )


def _library(name: str) -> str:
    path = next((one for one in library_info().paths if Path(one).name.startswith(name)), None)
    if path is None:
        raise EngineError(
            "GPUs that are not here cannot be planned for",
            found=f"llama.cpp without {name}",
            expected="a build with RPC, whose workers stand in for them",
            hint=f"Build it with: {build_command()}",
        )
    return path


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
