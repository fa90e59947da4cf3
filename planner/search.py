"""Finds the placement that hurts least: what is read most often stays on the GPUs longest.

Promises that every placement it returns was counted by llama.cpp itself, and fits on the GPUs. The
search reckons with exact weights and caches and with the compute buffers that llama.cpp counted
last; what it finds is measured, corrected by that, and sought again until both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..runtime.bindings.memory import HOST, MemoryReport, measure
from ..runtime.placement import Placement
from ..runtime.settings import EngineSettings, KVType
from ..runtime.workers.remote import Workers
from ..runtime.workers.simulated_gpus import simulated_gpus
from .geometry import Geometry
from .layout import Share, dealt_out, shares, split_for
from .machine import Machine

_ROUNDS = 12
CONTEXT_STEP = 256
"""llama.cpp rounds contexts up to whole multiples of this."""

# The rungs of the ladder, from what hurts least to what hurts most.
ALL_ON_GPU, EXPERTS, CACHE_ON_CPU, CHUNKED_LAYERS, FEWER_LAYERS, CPU_ONLY, BY_HAND = range(7)


@dataclass(frozen=True)
class Candidate:
    """A placement, what llama.cpp allocates under it, and what each device holds of the model.

    ``moved`` names the tensors that were taken from the GPUs.
    """

    rung: int
    moved: tuple[str, ...]
    settings: EngineSettings
    report: MemoryReport
    shares: tuple[Share, ...]
    output: int

    def used(self, device: str) -> int:
        """All bytes on a device."""
        return self.report.on(device).total + (self.output if device == HOST else 0)


class Search:
    """Candidates for one model on one machine.

    Args:
        wish: the settings, but for context, cache type and placement, of which the devices count.
        workers: to which the machine's GPUs belong that are not of this machine.
    """

    def __init__(
        self,
        geometry: Geometry,
        machine: Machine,
        wish: EngineSettings,
        workers: Workers,
    ) -> None:
        self.geometry = geometry
        self.machine = machine
        self._wish = wish
        self._workers = workers
        names = [gpu.name for gpu in machine.gpus]
        self._targets = simulated_gpus(names) if machine.described else workers.native_devices
        self._rooms = [gpu.room for gpu in machine.gpus]
        self._reports: dict[EngineSettings, MemoryReport] = {}

    @property
    def lossless_first(self) -> list[KVType]:
        """What the cache may be kept as, where nobody said; f16 alone without flash attention."""
        return ["f16"] if self._wish.flash_attention == "off" else ["f16", "q8_0"]

    # --- what llama.cpp says

    def settings(self, context: int, kv_type: KVType, placement: Placement) -> EngineSettings:
        """The wish with these."""
        return replace(self._wish, n_ctx=context, kv_type=kv_type, placement=placement)

    def measured(self, settings: EngineSettings) -> MemoryReport:
        """llama.cpp's count, asked for once."""
        if settings not in self._reports:
            here = settings
            if self.machine.described and settings.placement.devices is None:
                names = tuple(gpu.name for gpu in self.machine.gpus)
                here = replace(settings, placement=replace(settings.placement, devices=names))
            self._reports[settings] = self._workers.run(
                lambda: measure(self.geometry.path, here, self._targets)
            )
        return self._reports[settings]

    def candidate(self, rung: int, moved: Sequence[str], settings: EngineSettings) -> Candidate:
        """The candidate that these settings are."""
        return Candidate(
            rung=rung,
            moved=tuple(moved),
            settings=settings,
            report=self.measured(settings),
            shares=shares(self.geometry, settings, self.machine.gpus),
            output=4 * self.geometry.n_vocab * settings.n_parallel,
        )

    def fits_gpus(self, candidate: Candidate) -> bool:
        """Whether each GPU has room for its part."""
        return self._fits(candidate.report)

    def host_left(self, candidate: Candidate) -> int:
        """Bytes left of main memory; negative where it is short."""
        return self.machine.host.room - candidate.used(HOST)

    def least_left(self, candidate: Candidate) -> int:
        """Bytes left on the device that has fewest left; negative where one is short."""
        gpus = zip(self.machine.gpus, self._rooms, strict=True)
        left = [room - candidate.used(gpu.name) for gpu, room in gpus]
        return min([*left, self.host_left(candidate)])

    def seconds(self, candidate: Candidate, *, full: bool = True) -> float | None:
        """Seconds that reading takes for a token; None where a bandwidth is unknown."""
        seconds = 0.0
        for share, place in zip(candidate.shares, self.machine.places, strict=True):
            read = share.weights_read + (share.kv_read if full else 0)
            if read and not place.bandwidth:
                return None
            seconds += read / (place.bandwidth or 1)
        return seconds

    def _fits(self, report: MemoryReport) -> bool:
        gpus = zip(self.machine.gpus, self._rooms, strict=True)
        return all(report.on(gpu.name).total <= room for gpu, room in gpus)

    # --- the rungs

    def all_on_gpu(self, context: int, kv_type: KVType) -> Candidate | None:
        """Everything on the GPUs, if it fits."""
        return self._solve(ALL_ON_GPU, context, kv_type, [[]])

    def experts(
        self, context: int, kv_type: KVType, *, offload_kqv: bool = True, layers: int = -1
    ) -> Candidate | None:
        """As few tensors of experts in main memory as it takes, from the last layers on."""
        rung = EXPERTS if offload_kqv else CACHE_ON_CPU
        if layers >= 0:
            rung = FEWER_LAYERS
        names = self._experts(layers)
        steps = [names[:count] for count in range(len(names) + 1)]
        return self._solve(rung, context, kv_type, steps, offload_kqv=offload_kqv, layers=layers)

    def chunked_layers(self, context: int, kv_type: KVType) -> Candidate | None:
        """All experts in main memory, and of the chunked layers as many weights as it takes."""
        experts = self._experts(-1)
        rest = [
            weight.name
            for weight in reversed(self.geometry.weights)
            if weight.layer is not None
            and weight.role != "expert"
            and not self.geometry.is_full(weight.layer)
        ]
        steps = [[*experts, *rest[:count]] for count in range(1, len(rest) + 1)]
        return self._solve(CHUNKED_LAYERS, context, kv_type, steps)

    def fewer_layers(self, context: int, kv_type: KVType) -> Candidate | None:
        """As many whole layers on the GPUs as there is room for, their experts where there is."""
        low, high = 0, self.geometry.n_layer + 1
        best = None
        while low + 1 < high:
            middle = (low + high) // 2
            names = self._experts(middle)
            found = self._solve(FEWER_LAYERS, context, kv_type, [names], layers=middle)
            if found:
                best, low = found, middle
            else:
                high = middle
        if best is None:
            return None
        return self.experts(context, kv_type, layers=low) or best

    def cpu_only(self, context: int, kv_type: KVType) -> Candidate:
        """Nothing on any GPU."""
        # With no device at all: a GPU that holds nothing would still have a compute buffer.
        placement = Placement(n_gpu_layers=0, devices=())
        return self.candidate(CPU_ONLY, (), self.settings(context, kv_type, placement))

    def by_hand(self, context: int, kv_type: KVType, placement: Placement) -> Candidate:
        """The placement that somebody chose, whether it fits or not."""
        return self.candidate(BY_HAND, (), self.settings(context, kv_type, placement))

    def longest(self, like: Candidate, most: int) -> Candidate:
        """The longest context, up to `most`, for which nothing more has to leave its place.

        `like` fits. What is left falls steadily as the context grows, so that a straight line
        through two counts leads to within a step of the answer in a few of them.
        """

        def at(context: int) -> Candidate:
            return self._again(context, like)

        low, high = like, at(most)
        if self.least_left(high) >= 0:
            return high
        halve = False
        while high.settings.n_ctx - low.settings.n_ctx > CONTEXT_STEP:
            begin, end = low.settings.n_ctx, high.settings.n_ctx
            left, missing = self.least_left(low), -self.least_left(high)
            part = 0.5 if halve else left / max(left + missing, 1)
            steps = round((end - begin) * part) // CONTEXT_STEP
            middle = begin + min(max(steps, 1), (end - begin - 1) // CONTEXT_STEP) * CONTEXT_STEP
            found = at(middle)
            # Two steps from the same side: the line is not straight here.
            halve = not halve
            if self.least_left(found) >= 0:
                low = found
            else:
                high = found
        return low

    # --- how a rung is climbed

    def _experts(self, layers: int) -> list[str]:
        """Names of the experts' tensors on the GPUs, those of the last layers first."""
        first = 0 if layers < 0 else self.geometry.n_layer + 1 - layers
        return [
            weight.name
            for weight in reversed(self.geometry.weights)
            if weight.role == "expert" and weight.layer is not None and weight.layer >= first
        ]

    def _solve(
        self,
        rung: int,
        context: int,
        kv_type: KVType,
        steps: Sequence[Sequence[str]],
        *,
        offload_kqv: bool = True,
        layers: int = -1,
    ) -> Candidate | None:
        """The first step that fits. Each step's names lie in main memory, more with each step."""
        if not any(self._rooms):
            return None

        def settings(step: int, compute: Sequence[int]) -> tuple[EngineSettings, float]:
            return self._placed(context, kv_type, steps[step], compute, offload_kqv, layers)

        # What does not fit with the last step does not fit at all, and its buffers are a beginning.
        compute = [0] * len(self._rooms)
        wanted, fullness = settings(len(steps) - 1, compute)
        if fullness > 1.0:
            return None
        compute = self._compute(self.measured(wanted))
        wanted, fullness = settings(len(steps) - 1, compute)
        if fullness > 1.0 or not self._fits(self.measured(wanted)):
            return None
        surest = wanted
        least = 0
        for _ in range(_ROUNDS):

            def fits(step: int, compute: Sequence[int] = tuple(compute)) -> bool:
                return settings(step, compute)[1] <= 1.0

            step = _first(least, len(steps) - 1, fits)
            wanted, _ = settings(step, compute)
            report = self.measured(wanted)
            if self._fits(report):
                return self.candidate(rung, steps[step], wanted)
            larger = [max(pair) for pair in zip(compute, self._compute(report), strict=True)]
            if larger == compute:
                least = min(step + 1, len(steps) - 1)
            compute = larger
        return self.candidate(rung, steps[-1], surest)

    def _compute(self, report: MemoryReport) -> list[int]:
        return [report.on(gpu.name).compute for gpu in self.machine.gpus]

    def _placed(
        self,
        context: int,
        kv_type: KVType,
        moved: Sequence[str],
        compute: Sequence[int],
        offload_kqv: bool,
        layers: int,
    ) -> tuple[EngineSettings, float]:
        """The settings under which `moved` lies in main memory and the rest is dealt out evenly,
        and how full the fullest GPU is then."""
        devices = self._wish.placement.devices
        settings = self.settings(context, kv_type, Placement(offload_kqv=offload_kqv))
        sizes = self._layer_sizes(settings, set(moved))
        if layers >= 0:
            sizes = sizes[len(sizes) - layers :]
        counts, fullness = dealt_out(sizes, self._rooms, compute)
        placement = Placement(
            n_gpu_layers=layers,
            devices=devices,
            tensor_split=split_for(counts),
            overrides=exact_overrides(moved),
            offload_kqv=offload_kqv,
        )
        return replace(settings, placement=placement), fullness

    def _again(self, context: int, like: Candidate) -> Candidate:
        """`like` with another context, its layers dealt out anew among several GPUs."""
        kv_type, placement = like.settings.kv_type, like.settings.placement
        settings = self.settings(context, kv_type, placement)
        if placement.tensor_split and like.rung != BY_HAND:
            compute = self._compute(self.measured(settings))
            settings, _ = self._placed(
                context,
                kv_type,
                like.moved,
                compute,
                placement.offload_kqv,
                placement.n_gpu_layers,
            )
        return self.candidate(like.rung, like.moved, settings)

    def _layer_sizes(self, settings: EngineSettings, moved: set[str]) -> list[int]:
        """Bytes of each layer on a GPU, and last of the output layer."""
        geometry = self.geometry
        sizes = [0] * (geometry.n_layer + 1)
        for weight in geometry.weights:
            if weight.name in moved or weight.role == "rope":
                continue
            if weight.layer is not None:
                sizes[weight.layer] += weight.nbytes
            elif weight.role != "embedding" or geometry.tied:
                sizes[-1] += weight.nbytes
        if settings.placement.offload_kqv:
            for layer in range(geometry.n_layer):
                sizes[layer] += geometry.kv_bytes(layer, settings)
        return sizes


def exact_overrides(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Overrides that keep just these tensors of layers in main memory, in few patterns."""
    kinds_of: dict[int, set[str]] = {}
    for name in names:
        _, layer, kind, _ = name.split(".")
        kinds_of.setdefault(int(layer), set()).add(kind)
    layers_of: dict[tuple[str, ...], list[int]] = {}
    for number, together in sorted(kinds_of.items()):
        layers_of.setdefault(tuple(sorted(together)), []).append(number)
    return tuple(
        (rf"^blk\.({'|'.join(map(str, layers))})\.({'|'.join(kinds)})\.weight$", HOST)
        for kinds, layers in layers_of.items()
    )


def _first(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The first number from `low` on that fits, where every later one does too; `high` if none."""
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return low
