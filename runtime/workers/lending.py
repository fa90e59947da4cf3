"""How much of this machine a worker's process may take, whatever a client asks of it.

ggml's server reserves as many bytes as a message says that it has, and reports all main memory that
the machine has left, whatever a control group allows.

Promises that the process stays within its share of main memory: on Linux the kernel refuses a
worker on the CPU more, so that only the request fails; a worker with GPUs, whose drivers map
memory in ways of their own, and one on another system, ends when it has taken more. Clients are
told of what is left of the share. Devices with memory of their own lend all of it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Sequence

import psutil

from ...system.memory import host_memory
from ..bindings.devices import Device

LENT, ARRIVING = 14, 1
"""Sixteenths of the free main memory: what a worker on the CPU lends, and what messages may take
beside it. The last sixteenth stays free."""

# Beside what is lent, each thread has a stack and an arena; the rest is for ggml itself.
_OWN_BYTES, _THREAD_BYTES = 64 * 2**20, 16 * 2**20
_LOOK_EVERY = 0.05  # seconds, in which a process takes some hundred MB

# struct ggml_backend_device begins with its functions (ggml-backend-impl.h); this is get_memory.
_GET_MEMORY = 2
_SIZE = ctypes.POINTER(ctypes.c_size_t)
_GetMemory = ctypes.CFUNCTYPE(None, ctypes.c_void_p, _SIZE, _SIZE)


class Loan:
    """The share of main memory that this process may take from now on.

    Args:
        n_threads: of the server.
    """

    def __init__(self, n_threads: int) -> None:
        memory = host_memory()
        self._total = memory.total
        self._before = _private_bytes()
        self.lent_bytes = memory.free * LENT // 16
        own = _OWN_BYTES + n_threads * _THREAD_BYTES
        self.limit_bytes = self._before + own + memory.free * (LENT + ARRIVING) // 16
        self._get_memory = _GetMemory(self._report)

    def enforce(self, devices: Sequence[Device]) -> None:
        """Keep this process within the limit, as a worker with these devices."""
        if sys.platform == "linux" and all(device.type == "cpu" for device in devices):
            import resource

            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            limit = self.limit_bytes if hard < 0 else min(self.limit_bytes, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        else:
            threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """End this process when it has taken more than the limit."""
        while _private_bytes() <= self.limit_bytes:
            time.sleep(_LOOK_EVERY)
        os.write(2, b"error: a client has taken all the main memory that this worker lends\n")
        os._exit(1)

    def report_as_memory_of(self, device: int) -> None:
        """Have the ``ggml_backend_dev_t`` of the CPU report what is left of the loan."""
        place = ctypes.c_void_p.from_address(device + _GET_MEMORY * ctypes.sizeof(ctypes.c_void_p))
        place.value = ctypes.cast(self._get_memory, ctypes.c_void_p).value

    def _report(self, _device: int, free: object, total: object) -> None:
        left = self.lent_bytes - (_private_bytes() - self._before)
        free[0] = max(0, min(left, host_memory().free))  # type: ignore[index]
        total[0] = self._total  # type: ignore[index]


def _private_bytes() -> int:
    """Bytes that this process has for itself: on Linux what RLIMIT_DATA counts."""
    memory = psutil.Process().memory_info()
    return int(memory.data if sys.platform == "linux" else memory.rss)
