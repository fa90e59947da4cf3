"""What a model can be placed on: this machine, or one that is described.

Promises that what is here is measured, that what is described says so, and that an unknown
bandwidth is None. Knows nothing of models.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from ..errors import SettingError
from ..ranges import check_whole
from ..runtime.bindings.devices import (
    Device,
    NativeDevice,
    list_devices,
    no_device,
    offload_devices,
)
from ..runtime.placement import CPU
from ..runtime.workers.remote import Workers
from ..system.cores import usable_threads
from ..system.memory import carve_out, host_memory, machine_memory
from ..units import bytes_text
from .gpus import GPU, known_gpu

KEPT_FREE = 2**30
"""Bytes of each GPU that a plan leaves free for what llama.cpp does not count: the driver on a GPU
that is not here, and the scratch memory of kernels. llama.cpp's ``--fit`` leaves as much."""

KEPT_FOR_THE_SYSTEM = 2**32
"""Bytes that a plan leaves the operating system of a described machine with one memory for all: on
a DGX Spark, llama.cpp finds 3.1 to 3.4 GiB of it in use before anything runs."""

ASSUMED_RAM_BANDWIDTH = 80 * 10**9
"""Bytes a second of main memory that is described: two channels of DDR5-5600, less a tenth."""


@dataclass(frozen=True)
class MachineDevice:
    """One device: a GPU, or main memory.

    ``free_bytes`` is None where nothing reports it. ``bandwidth`` is in bytes read a second, from
    ``bandwidth_source``; both are None where it is unknown. A plan leaves ``kept_free_bytes`` of
    ``free_bytes`` unused. ``endpoint`` is that of the device's worker, None without one.

    ``private_bytes`` is None for a GPU with a memory of its own, and for main memory. A GPU that
    shares main memory has so many free bytes for itself alone, which the firmware set aside, or 0;
    what it takes beyond them, main memory has less.
    """

    name: str
    description: str
    type: str
    total_bytes: int | None
    free_bytes: int | None
    bandwidth: int | None
    bandwidth_source: str | None
    kept_free_bytes: int = 0
    endpoint: str | None = None
    private_bytes: int | None = None

    def from_main_memory(self, used: int) -> int:
        """Of so many bytes on this device, those that main memory has less."""
        return 0 if self.private_bytes is None else max(used - self.private_bytes, 0)

    @property
    def usable_bytes(self) -> int:
        """Bytes that a plan may use; 0 where free memory is unknown."""
        return max((self.free_bytes or 0) - self.kept_free_bytes, 0)


@dataclass(frozen=True)
class Machine:
    """The GPUs, in the order in which llama.cpp shares layers among them, and main memory.

    ``described`` says that the GPUs are not those of this machine.
    """

    gpus: tuple[MachineDevice, ...]
    host: MachineDevice
    described: bool = False

    @property
    def devices(self) -> tuple[MachineDevice, ...]:
        """All devices, main memory last."""
        return (*self.gpus, self.host)

    def known(self, gpu: MachineDevice) -> GPU | None:
        """The GPU of the table that one of this machine is; None if it is in none."""
        memory = self.host.total_bytes
        return known_gpu(gpu.name, memory) or known_gpu(gpu.description, memory)


def this_machine(workers: Workers, chosen: Sequence[str] | None = None) -> Machine:
    """The GPUs of `workers`, then those that llama.cpp finds here, with what is free now.

    Args:
        workers: which are connected.
        chosen: names of the GPUs to use, in this order; None is all.

    Raises:
        SettingError: there is no GPU of a chosen name.
        EngineError: llama.cpp's library does not load, or a worker was lost.
    """
    here = {device.name: device for device in list_devices()}
    remote = zip(workers.native_devices, workers.devices() if workers else (), strict=True)
    gpus = {native.name: _gpu(native, device) for native, device in remote}
    gpus |= {native.name: _gpu(native, here[native.name]) for native in offload_devices()}
    if chosen is not None:
        for name in chosen:
            if name not in gpus:
                raise no_device(f"there is no device {name} here", name, gpus)
        gpus = {name: gpus[name] for name in chosen}
    return Machine(tuple(gpus.values()), _this_host())


def _gpu(native: NativeDevice, device: Device) -> MachineDevice:
    gpu = known_gpu(device.description, machine_memory())
    return MachineDevice(
        name=native.name,
        description=native.endpoint or device.description,
        type=device.type,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        bandwidth=gpu.bandwidth if gpu else None,
        bandwidth_source="the maker's data sheet" if gpu else None,
        # A worker reports what may be used of its GPU.
        kept_free_bytes=0 if native.endpoint else KEPT_FREE,
        endpoint=native.endpoint,
        private_bytes=None if native.endpoint else private_bytes(device),
    )


def private_bytes(device: Device) -> int | None:
    """Free bytes that a GPU of this machine has for itself alone, None where it shares nothing.

    ggml calls GPUs integrated that share main memory, but for Apple's. What such a GPU reports
    beyond main memory is not part of it. The free bytes of a DGX Spark are those of main memory,
    those of Vulkan and ROCm the sum of what the firmware set aside and of what the driver may take
    from main memory, those of Metal what macOS lets a GPU have.
    """
    apple = device.backend == "MTL" and device.description.startswith("Apple")
    if device.type != "igpu" and not apple:
        return None
    aside = carve_out() if sys.platform == "linux" and _is_amd(device) else None
    if aside is not None:
        private = aside[0] - aside[1]
    else:
        private = (device.total_bytes or 0) - machine_memory()
    return min(max(private, 0), device.free_bytes or 0)


def _is_amd(device: Device) -> bool:
    return any(word in device.description.lower() for word in ("amd", "radeon"))


def described_machine(
    gpus: Sequence[GPU] = (), vram: Sequence[int] = (), ram: int | None = None
) -> Machine:
    """A machine with these GPUs, and this machine's main memory unless `ram` is given.

    A GPU that shares its memory is the machine: it goes with no other, and its memory is all the
    main memory that there is.

    Args:
        gpus: models from the table, whose memory is taken as free.
        vram: bytes of other GPUs, whose bandwidth is unknown.

    Raises:
        SettingError: a size is not a whole number above 0, or a GPU that shares its memory is not
            alone.
    """
    for size in vram:
        check_whole("vram", size, 1)
    check_whole("ram", ram, 1, or_none=True)
    for gpu in gpus:
        if gpu.shared is not None:
            return _of_one_memory(gpu, gpus, vram, ram)
    known = [(gpu.name, gpu.memory, gpu.bandwidth) for gpu in gpus]
    unknown: list[tuple[str, int, int | None]] = [("GPU", size, None) for size in vram]
    all_gpus = [*known, *unknown]
    devices = [
        MachineDevice(
            name=f"{name} #{number}" if len(all_gpus) > 1 else name,
            description="not here; as the table has it" if bandwidth else "not here; as described",
            type="gpu",
            total_bytes=memory,
            free_bytes=memory,
            bandwidth=bandwidth,
            bandwidth_source="the maker's data sheet" if bandwidth else None,
            kept_free_bytes=KEPT_FREE,
        )
        for number, (name, memory, bandwidth) in enumerate(all_gpus)
    ]
    host = _this_host()
    if ram is not None:
        host = replace(
            host,
            description="as described",
            total_bytes=ram,
            free_bytes=ram,
            bandwidth=ASSUMED_RAM_BANDWIDTH,
            bandwidth_source="assumed: two channels of DDR5",
        )
    return Machine(tuple(devices), host, described=True)


def usable_alone(gpu: GPU, beside: int) -> int:
    """Bytes that a plan may put on such a GPU with so many in main memory."""
    own = gpu.memory - KEPT_FREE
    return own if gpu.shared is None else min(own, gpu.shared.total - KEPT_FOR_THE_SYSTEM - beside)


def _of_one_memory(gpu: GPU, gpus: Sequence[GPU], vram: Sequence[int], ram: int | None) -> Machine:
    """The machine whose GPU and processor share one memory."""
    shared = gpu.shared
    assert shared is not None
    if len(gpus) + len(vram) > 1:
        names = [other.name for other in gpus] + ["a GPU of vram=BYTES" for _ in vram]
        raise SettingError(
            f"{gpu.name} is a whole machine, whose GPU and processor share one memory",
            found=f"{len(names)} GPUs: {', '.join(names)}",
            expected="no other GPU beside it",
            hint="Several machines work together as workers: see `llama4 worker`.",
        )
    if ram is not None:
        raise SettingError(
            f"{gpu.name} has no main memory of its own: GPU and processor share one memory",
            found=f"{bytes_text(ram)} of it",
            expected="the size in the name of the GPU, as in 'Strix Halo 64GB'",
            hint="Plan without ram=BYTES.",
        )
    device = MachineDevice(
        name=gpu.name,
        description="not here; as the table has it",
        type="gpu",
        total_bytes=gpu.memory,
        free_bytes=gpu.memory,
        bandwidth=gpu.bandwidth,
        bandwidth_source="the maker's data sheet",
        kept_free_bytes=KEPT_FREE,
        private_bytes=0,
    )
    host = MachineDevice(
        name=CPU,
        description="the memory that the GPU shares",
        type="cpu",
        total_bytes=shared.total,
        free_bytes=shared.total,
        bandwidth=gpu.bandwidth,
        bandwidth_source="the maker's data sheet",
        kept_free_bytes=KEPT_FOR_THE_SYSTEM,
    )
    return Machine((device,), host, described=True)


def _this_host() -> MachineDevice:
    memory = host_memory()
    return MachineDevice(
        name=CPU,
        description="main memory",
        type="cpu",
        total_bytes=memory.total,
        free_bytes=memory.free,
        bandwidth=ram_bandwidth(),
        bandwidth_source="measured on this machine",
    )


_PIECE = 16 * 2**20
# Other processes make some of them slow.
_ROUNDS = 16
_LONG_ENOUGH = 0.4  # seconds


_SIDE = 1024  # of matrices that are multiplied: 0.1 s on the slowest core


@functools.cache
def matrix_rate() -> float:
    """Operations a second in products of float32 matrices on this processor, as measured now.

    The best of several, in less than half a second.
    """
    first = np.ones((_SIDE, _SIDE), dtype=np.float32)
    best, begun = 0.0, time.perf_counter()
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        first @ first
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - started))
        if time.perf_counter() - begun > _LONG_ENOUGH:
            break
    return best


@functools.cache
def ram_bandwidth() -> int:
    """Bytes a second that all cores together read from this machine's memory, as measured now.

    The best of several short passes over more than any cache holds, in less than half a second.
    """
    threads = min(usable_threads(), 32)
    pieces = [np.ones(_PIECE // 8, dtype=np.uint64) for _ in range(max(threads, 8))]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        for _ in range(_ROUNDS):
            if time.perf_counter() - begun > _LONG_ENOUGH:
                break
            started = time.perf_counter()
            # NumPy releases the GIL here.
            list(pool.map(np.bitwise_or.reduce, pieces))
            best = max(best, len(pieces) * _PIECE / (time.perf_counter() - started))
    return int(best)
