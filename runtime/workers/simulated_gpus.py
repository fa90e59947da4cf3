"""Devices of llama.cpp's type GPU for GPUs that this machine has not, to measure memory on.

Promises devices on which llama.cpp places, counts and schedules as on a GPU of this machine,
including the weights that it copies there from main memory. They belong to a process on the
loopback interface, which ends with this one, and appear in no list of devices. Nothing but adapters
is stored on them, and nothing computed: they are for ``memory.measure`` alone. Knows nothing of how
much memory a GPU has.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from ...errors import EngineError, SettingError
from ..bindings.build import build_command
from ..bindings.devices import NativeDevice, native_device
from ..bindings.library import library_info, native_function
from ..placement import MAX_DEVICES

_STARTED_WITHIN = 120.0  # seconds; the machine may be busy
# Fewer tokens than these at a time are computed where the weights are, more on the GPU, to which
# the weights are copied then (op_offload_min_batch_size in ggml-cuda.cu).
_OFFLOADED_FROM = 32

# The child: a worker of ggml with the CPU as each of its devices. It writes the port on which it
# listens, and ends when its input does.
_WORKER = """
import ctypes, os, psutil, sys, threading, time
base, cpu, rpc = (ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in sys.argv[1:4])
count = int(sys.argv[4])
output = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
def report():
    while not (ports := [one.laddr.port for one in psutil.Process().net_connections("tcp4")
                         if one.status == psutil.CONN_LISTEN]):
        time.sleep(0.01)
    os.write(output, b"%d\\n" % ports[0])
threading.Thread(target=report, daemon=True).start()
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
cpu.ggml_backend_cpu_reg.restype = base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
base.ggml_backend_reg_dev_get.argtypes = ctypes.c_void_p, ctypes.c_size_t
device = base.ggml_backend_reg_dev_get(cpu.ggml_backend_cpu_reg(), 0)
start = rpc.ggml_backend_rpc_start_server
start.argtypes = (ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_size_t] * 2, ctypes.c_void_p)
start(b"127.0.0.1:0", None, 1, count, (ctypes.c_void_p * count)(*[device] * count))
"""


def simulated_gpus(names: Sequence[str]) -> tuple[NativeDevice, ...]:
    """One simulated GPU for each name, to be handed to ``memory.measure`` as workers.

    Raises:
        SettingError: there are more names than llama.cpp takes devices.
        EngineError: the library was built without RPC, or the process does not start.
    """
    if len(names) > MAX_DEVICES:
        raise SettingError(
            "there are more GPUs than llama.cpp takes",
            found=str(len(names)),
            expected=f"at most {MAX_DEVICES}",
        )
    if not names:
        return ()
    return tuple(
        native_device(name, handle) for name, handle in zip(names, _handles(), strict=False)
    )


@functools.cache
def _handles() -> tuple[int, ...]:
    """All simulated GPUs that there can be.

    The process behind them is started once: ggml ends this one where it meets a worker that has
    gone.
    """
    endpoint = _start()
    add = native_function("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
    get = native_function(
        "ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    )
    registry = add(endpoint.encode())
    handles = tuple(get(registry, index) for index in range(MAX_DEVICES))
    buffer_type = native_function("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)
    for handle in handles:
        _set(handle, _OFFLOAD_OP, _OFFLOADS)
        _set(buffer_type(handle), _GET_ALIGNMENT, _ALIGNMENT)
        _set(buffer_type(handle), _GET_ALLOC_SIZE, _ALLOC_SIZE)
    return handles


# A device of ggml, and a type of buffers, begins with its functions (ggml-backend-impl.h). Three of
# them decide what a GPU's compute buffer takes, and RPC answers them otherwise than CUDA does:
# offload_op says for which operations weights are copied from main memory, the two others how much
# is laid aside for a tensor.
_OFFLOAD_OP, _GET_ALIGNMENT, _GET_ALLOC_SIZE = 11, 2, 4
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_F16 = 1  # enum ggml_type (ggml.h)
_F16_BYTES = 2
# What CUDA aligns tensors to (ggml-cuda.cu), and what is laid aside after one (fattn-common.cuh).
_ALIGNED_TO = 128
_STORED_TO = 32  # the CPU's (TENSOR_ALIGNMENT in ggml-impl.h)
# Attention of fewer tokens than these reads a quantized cache as it is; of more it has a copy of
# it in f16 (ggml_cuda_get_best_fattn_kernel).
_COPIED_FROM = 3


def _set(functions: int, place: int, function: Any) -> None:
    """Put a function in its place among those at an address."""
    pointer = ctypes.c_void_p.from_address(functions + place * _POINTER)
    pointer.value = ctypes.cast(function, ctypes.c_void_p).value


class _Tensor(ctypes.Structure):
    """The beginning of struct ggml_tensor (ggml.h)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
    )


@functools.cache
def _operation(number: int) -> str:
    name = native_function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)(number)
    return str(name.decode())


@functools.cache
def _nbytes() -> Any:
    return native_function("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)


def _offloads(_device: int, operation: Any) -> bool:
    """Whether a GPU would copy the weights to itself for this operation, as CUDA decides it."""
    tensor = operation.contents
    name = _operation(tensor.op)
    if name == "GET_ROWS":
        return False
    rows = {"MUL_MAT": tensor.ne[1], "MUL_MAT_ID": tensor.ne[2]}.get(name)
    return bool((rows or prod(tensor.ne[1:])) >= _OFFLOADED_FROM)


def _alloc_size(_buffer_type: int, pointer: Any) -> int:
    """Bytes that a GPU lays aside for a tensor: what attention makes of a quantized cache follows
    its result (``ggml_cuda_flash_attn_ext_get_alloc_size``)."""
    tensor = pointer.contents
    size = int(_nbytes()(ctypes.addressof(tensor)))
    if _operation(tensor.op) != "FLASH_ATTN_EXT":
        return size
    queries, *cache = (_Tensor.from_address(address) for address in tensor.src[:3])
    for part in cache:
        if part.type != _F16 and queries.ne[1] >= _COPIED_FROM:
            size = -(-size // _ALIGNED_TO) * _ALIGNED_TO + prod(part.ne) * _F16_BYTES
    return size


def _alignment(_buffer_type: int) -> int:
    return _STORED_TO if getattr(_here, "stores", False) else _ALIGNED_TO


@contextmanager
def storing() -> Iterator[None]:
    """Have tensors that this thread puts there in this block lie where the process has room.

    What it allocates begins where its own memory does, which ggml would move on to a multiple of
    the GPU's alignment, and miss the rest at the end.
    """
    _here.stores = True
    try:
        yield
    finally:
        _here.stores = False


_here = threading.local()


# Kept here, because the devices keep only their addresses.
_OFFLOADS = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.POINTER(_Tensor))(_offloads)
_ALIGNMENT = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(_alignment)
_ALLOC_SIZE = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.POINTER(_Tensor))(
    _alloc_size
)


def _start() -> str:
    """Start the process; where it listens."""
    libraries = [_library(name) for name in ("libggml-base", "libggml-cpu", "libggml-rpc")]
    child = subprocess.Popen(
        [sys.executable, "-c", _WORKER, *libraries, str(MAX_DEVICES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(child.kill)
    assert child.stdout is not None
    deadline = threading.Timer(_STARTED_WITHIN, child.kill)
    deadline.start()
    try:
        port = child.stdout.readline().decode().strip()
    finally:
        deadline.cancel()
    if port:
        return f"127.0.0.1:{port}"
    raise EngineError("the process behind simulated GPUs does not start", found=_end_of(child))


def _end_of(child: subprocess.Popen[bytes]) -> str:
    status = child.wait()
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def _library(name: str) -> str:
    path = next(
        (library for library in library_info().paths if Path(library).name.startswith(name)), None
    )
    if path is None:
        raise EngineError(
            "GPUs that are not here cannot be simulated",
            found=f"llama.cpp without {name}",
            expected="a build with RPC, whose workers simulate them",
            hint=f"Build it with: {build_command()}",
        )
    return path
