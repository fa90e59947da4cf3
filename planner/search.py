"""Counts placements: what llama.cpp would allocate under each, and what is left of the machine.

Promises that every count is llama.cpp's own, asked for once for the same settings. Does not know
which placement is better.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from ..runtime.bindings.memory import MemoryReport, measure
from ..runtime.placement import CPU, Placement
from ..runtime.settings import EngineSettings, KVTypes, kv_type_fits
from ..runtime.workers.remote import Workers
from ..runtime.workers.simulated_gpus import simulated_gpus, storing
from .geometry import Geometry
from .layout import DeviceLoad, device_loads, distribute, layer_sizes, split_for
from .machine import Machine, MachineDevice


@dataclass(frozen=True)
class Count:
    """Settings, what llama.cpp allocates under them, and what each device holds of the model.

    ``loads`` are those of the machine's devices, in their order. ``output_bytes`` are logits.
    """

    settings: EngineSettings
    report: MemoryReport
    loads: tuple[DeviceLoad, ...]
    output_bytes: int

    def used(self, device: str) -> int:
        """All bytes on a device."""
        return self.report.on(device).total + (self.output_bytes if device == CPU else 0)


HOST_RESERVE = 32
"""One part in so many of main memory is left where the longest context is sought."""


KV_LADDER: tuple[KVTypes, ...] = ("f16", "q8_0", ("q8_0", "q4_0"))
"""What the planner may keep a KV cache as, from what costs least accuracy to what costs most
(benchmarks/kv_types.py measures it). Keys are told apart by small differences, values are averaged:
they lose less by fewer bits."""


class Search:
    """Counts for one model on one machine.

    Args:
        base: the settings, but for context, cache type and placement, of which the devices count.
        workers: to which those of the machine's GPUs belong that are not here.
    """

    def __init__(
        self, geometry: Geometry, machine: Machine, base: EngineSettings, workers: Workers
    ) -> None:
        self.geometry = geometry
        self.machine = machine
        self.capacities = [_capacity(gpu, machine.host) for gpu in machine.gpus]
        self._base = base
        self._workers = workers
        names = [gpu.name for gpu in machine.gpus]
        self._gpus = simulated_gpus(names) if machine.described else workers.native_devices
        self._reports: dict[EngineSettings, MemoryReport] = {}

    @property
    def kv_types(self) -> list[KVTypes]:
        """What the cache may be kept as by default, the best first; without flash attention, f16
        alone."""
        types = KV_LADDER[:1] if self._base.flash_attention == "off" else KV_LADDER
        return [kind for kind in types if kv_type_fits(kind, self.geometry.hparams)]

    def settings(self, n_ctx: int, kv_type: KVTypes, placement: Placement) -> EngineSettings:
        """The base settings with these."""
        return replace(self._base, n_ctx=n_ctx, kv_type=kv_type, placement=placement)

    def report(self, settings: EngineSettings) -> MemoryReport:
        """What llama.cpp would allocate."""
        if settings not in self._reports:
            native = settings
            if self.machine.described and settings.placement.devices is None:
                names = tuple(gpu.name for gpu in self.machine.gpus)
                native = replace(settings, placement=replace(settings.placement, devices=names))
            self._reports[settings] = self._workers.run(
                lambda: measure(
                    self.geometry.path,
                    native,
                    self._gpus,
                    self.geometry.checked,
                    storing if self.machine.described else nullcontext,
                )
            )
        return self._reports[settings]

    def count(self, settings: EngineSettings) -> Count:
        """llama.cpp's report, and each device's part of the model."""
        return Count(
            settings=settings,
            report=self.report(settings),
            loads=device_loads(self.geometry, settings, self.machine.gpus),
            output_bytes=self.geometry.output_bytes(settings),
        )

    def fits_gpus(self, report: MemoryReport) -> bool:
        """Whether each GPU has room for its part."""
        gpus = zip(self.machine.gpus, self.capacities, strict=True)
        return all(report.on(gpu.name).total <= capacity for gpu, capacity in gpus)

    def compute_buffers(self, report: MemoryReport) -> list[int]:
        """Bytes of each GPU's compute buffer."""
        return [report.on(gpu.name).compute for gpu in self.machine.gpus]

    def on(self, machine: Machine) -> Search:
        """The same search on another machine."""
        return Search(self.geometry, machine, self._base, self._workers)

    def with_ubatch(self, n_ubatch: int) -> Search:
        """The same search with another ubatch."""
        base = replace(self._base, n_ubatch=n_ubatch)
        return Search(self.geometry, self.machine, base, self._workers)

    def taken_from_main_memory(self, count: Count) -> int:
        """Bytes that GPUs which share main memory take of it."""
        return sum(gpu.from_main_memory(count.used(gpu.name)) for gpu in self.machine.gpus)

    def host_left(self, count: Count) -> int:
        """Bytes left of main memory; negative where it is short."""
        used = count.used(CPU) + self.taken_from_main_memory(count)
        return self.machine.host.usable_bytes - used

    def least_left(self, count: Count) -> int:
        """Bytes left on the device that has fewest left; negative where one is short.

        A part of main memory is not counted: what is free there changes from moment to moment, and
        a context that takes all of it ends with the process being killed.
        """
        gpus = zip(self.machine.gpus, self.capacities, strict=True)
        left = [capacity - count.used(gpu.name) for gpu, capacity in gpus]
        return min([*left, self.host_left(count) - self.machine.host.usable_bytes // HOST_RESERVE])

    def seconds(self, count: Count) -> float | None:
        """Seconds that a token's reading takes when the context is full; None where a bandwidth is
        unknown."""
        seconds = 0.0
        for load, device in zip(count.loads, self.machine.devices, strict=True):
            read = load.read_bytes + load.kv_read_bytes
            if read and not device.bandwidth:
                return None
            seconds += read / (device.bandwidth or 1)
        return seconds

    def distributed(
        self,
        settings: EngineSettings,
        moved: Collection[str],
        compute: Sequence[int],
        overrides: tuple[tuple[str, str], ...],
    ) -> tuple[EngineSettings, float]:
        """The settings with their layers distributed over the GPUs, and how full the fullest is.

        Args:
            settings: of whose placement the number of layers on GPUs and the cache's place stay.
            moved: names of the tensors that ``overrides`` keep in main memory.
            compute: bytes of each GPU's compute buffer.
        """
        layers = settings.placement.n_gpu_layers
        sizes = layer_sizes(self.geometry, settings, moved)
        if layers >= 0:
            sizes = sizes[len(sizes) - layers :]
        counts, fullness = distribute(sizes, self.capacities, compute)
        placement = replace(
            settings.placement,
            devices=self._base.placement.devices,
            tensor_split=split_for(counts),
            overrides=overrides,
        )
        return replace(settings, placement=placement), fullness


def _capacity(gpu: MachineDevice, host: MachineDevice) -> int:
    """Bytes that may be put on a GPU. One that shares main memory leaves a part of that: what it
    holds, the system cannot page out."""
    if gpu.private_bytes is None:
        return gpu.usable_bytes
    rest = host.usable_bytes - host.usable_bytes // HOST_RESERVE
    return min(gpu.usable_bytes, gpu.private_bytes + rest)
