"""Finds the placement that costs least: what is read most often stays on the GPUs longest.

Promises that every placement it returns was counted by llama.cpp itself, and, but for `CPU_ONLY`
and `BY_HAND`, fits on the GPUs. A step is chosen by exact weights and caches and by the compute
buffers that llama.cpp counted last, then counted, corrected by that count, and chosen again until
both agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from ..runtime.placement import CPU, Placement
from ..runtime.settings import EngineSettings, KVTypes
from .search import Count, Search

_ROUNDS = 12
CONTEXT_STEP = 256
"""llama.cpp rounds contexts up to whole multiples of this."""


class Strategy(Enum):
    """What leaves the GPUs, in order from what costs least to what costs most; last, a placement
    that somebody chose."""

    ALL_ON_GPU = "nothing leaves the GPUs"
    EXPERTS = "experts, from the last layers on"
    CACHE_ON_CPU = "the KV cache and the attention over it, then experts"
    CHUNKED_LAYERS = "all experts, then other weights of the chunked layers"
    FEWER_LAYERS = "whole layers, from the first on"
    CPU_ONLY = "everything"
    BY_HAND = "what was asked for"


@dataclass(frozen=True)
class Candidate:
    """A placement that a strategy found, and its count.

    ``moved`` names the tensors that were taken from the GPUs.
    """

    strategy: Strategy
    moved: tuple[str, ...]
    count: Count

    @property
    def settings(self) -> EngineSettings:
        """What the engine is made with."""
        return self.count.settings


class Ladder:
    """The strategies, each climbed as far down as it must be for one model on one machine."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self._geometry = search.geometry

    def best(self, n_ctx: int, kv_type: KVTypes | None) -> Candidate:
        """The placement that fits and costs least.

        Of those that cost no accuracy, the fastest by the bytes that a token reads. The cache is
        quantized only where no such placement keeps attention on the GPUs.
        """
        kv_types = [kv_type] if kv_type else self.search.kv_types
        for kind in kv_types:
            whole = self.all_on_gpu(n_ctx, kind)
            if whole:
                return whole
            experts = self.experts(n_ctx, kind)
            if experts:
                cache_on_cpu = self.experts(n_ctx, kind, offload_kqv=False)
                return self._fastest([experts, *([cache_on_cpu] if cache_on_cpu else [])])
        # Where attention leaves the GPUs anyway, V in q4_0 would be paid for and bring little.
        last = kv_types[:2][-1]
        rest = [
            self.experts(n_ctx, last, offload_kqv=False),
            self.chunked_layers(n_ctx, last),
            self.fewer_layers(n_ctx, last),
            self.cpu_only(n_ctx, kv_types[0]),
        ]
        return self._fastest([candidate for candidate in rest if candidate])

    def without_repacking_if_short(self, candidate: Candidate) -> Candidate:
        """The same without repacking where main memory is short: weights that are mapped from the
        file need not be in memory all at once, repacked ones must be."""
        if self.search.host_left(candidate.count) >= 0 or not candidate.settings.use_extra_bufts:
            return candidate
        settings = replace(candidate.settings, use_extra_bufts=False)
        return self._candidate(candidate.strategy, candidate.moved, settings)

    # --- the strategies

    def all_on_gpu(self, n_ctx: int, kv_type: KVTypes) -> Candidate | None:
        """Everything on the GPUs, if it fits."""
        return self._first_that_fits(
            Strategy.ALL_ON_GPU, self._settings(n_ctx, kv_type), steps=[[]]
        )

    def experts(
        self, n_ctx: int, kv_type: KVTypes, *, offload_kqv: bool = True, layers: int = -1
    ) -> Candidate | None:
        """As few tensors of experts in main memory as it takes, from the last layers on."""
        strategy = Strategy.EXPERTS if offload_kqv else Strategy.CACHE_ON_CPU
        if layers >= 0:
            strategy = Strategy.FEWER_LAYERS
        names = self._experts(layers)
        return self._first_that_fits(
            strategy,
            self._settings(n_ctx, kv_type, offload_kqv=offload_kqv, layers=layers),
            steps=[names[:count] for count in range(len(names) + 1)],
        )

    def chunked_layers(self, n_ctx: int, kv_type: KVTypes) -> Candidate | None:
        """All experts in main memory, and of the chunked layers as many weights as it takes."""
        experts = self._experts(-1)
        rest = [
            weight.name
            for weight in reversed(self._geometry.weights)
            if weight.layer is not None
            and weight.role != "expert"
            and not self._geometry.hparams.is_full(weight.layer)
        ]
        return self._first_that_fits(
            Strategy.CHUNKED_LAYERS,
            self._settings(n_ctx, kv_type),
            steps=[[*experts, *rest[:count]] for count in range(1, len(rest) + 1)],
        )

    def fewer_layers(self, n_ctx: int, kv_type: KVTypes) -> Candidate | None:
        """As many whole layers on the GPUs as there is room for, their experts where there is."""
        low, high = 0, self._geometry.hparams.n_layer + 1
        best = None
        while low + 1 < high:
            middle = (low + high) // 2
            candidate = self._first_that_fits(
                Strategy.FEWER_LAYERS,
                self._settings(n_ctx, kv_type, layers=middle),
                steps=[self._experts(middle)],
            )
            if candidate:
                best, low = candidate, middle
            else:
                high = middle
        if best is None:
            return None
        return self.experts(n_ctx, kv_type, layers=low) or best

    def cpu_only(self, n_ctx: int, kv_type: KVTypes) -> Candidate:
        """Nothing on any GPU."""
        # With no device at all: a GPU that holds nothing would still have a compute buffer.
        placement = Placement(n_gpu_layers=0, devices=())
        settings = self.search.settings(n_ctx, kv_type, placement)
        return self._candidate(Strategy.CPU_ONLY, (), settings)

    def by_hand(self, n_ctx: int, kv_type: KVTypes, placement: Placement) -> Candidate:
        """The placement that somebody chose, whether it fits or not."""
        settings = self.search.settings(n_ctx, kv_type, placement)
        return self._candidate(Strategy.BY_HAND, (), settings)

    def longest(self, start: Candidate, limit: int) -> Candidate:
        """The longest context, up to `limit`, for which nothing more has to leave its place.

        `start` fits. What is left falls steadily as the context grows, so that a straight line
        through two counts leads to within a step of the answer in a few of them.
        """
        least_left = self.search.least_left
        low, high = start, self._with_context(start, limit)
        if least_left(high.count) >= 0:
            return high
        halve = False
        while high.settings.n_ctx - low.settings.n_ctx > CONTEXT_STEP:
            begin, end = low.settings.n_ctx, high.settings.n_ctx
            left, missing = least_left(low.count), -least_left(high.count)
            part = 0.5 if halve else left / max(left + missing, 1)
            steps = round((end - begin) * part) // CONTEXT_STEP
            middle = begin + min(max(steps, 1), (end - begin - 1) // CONTEXT_STEP) * CONTEXT_STEP
            candidate = self._with_context(start, middle)
            # Every other time by halves: the line is not straight everywhere.
            halve = not halve
            if least_left(candidate.count) >= 0:
                low = candidate
            else:
                high = candidate
        return low

    # --- how a strategy is climbed

    def _settings(
        self, n_ctx: int, kv_type: KVTypes, *, offload_kqv: bool = True, layers: int = -1
    ) -> EngineSettings:
        placement = Placement(n_gpu_layers=layers, offload_kqv=offload_kqv)
        return self.search.settings(n_ctx, kv_type, placement)

    def _candidate(
        self, strategy: Strategy, moved: Sequence[str], settings: EngineSettings
    ) -> Candidate:
        return Candidate(strategy, tuple(moved), self.search.count(settings))

    def _fastest(self, candidates: Sequence[Candidate]) -> Candidate:
        """The one that reads fastest when the context is full, the first where that is unknown.

        One for which main memory has room goes before any for which it has not.
        """

        def rank(candidate: Candidate) -> tuple[bool, float]:
            seconds = self.search.seconds(candidate.count)
            return self.search.host_left(candidate.count) < 0, seconds or 0.0

        return min(candidates, key=rank)

    def _experts(self, layers: int) -> list[str]:
        """Names of the experts' tensors on the GPUs, those of the last layers first."""
        first = 0 if layers < 0 else self._geometry.hparams.n_layer + 1 - layers
        return [
            weight.name
            for weight in reversed(self._geometry.weights)
            if weight.role == "expert" and weight.layer is not None and weight.layer >= first
        ]

    def _first_that_fits(
        self, strategy: Strategy, base: EngineSettings, *, steps: Sequence[Sequence[str]]
    ) -> Candidate | None:
        """The first step that fits. Each step's names lie in main memory, more with each step."""
        search = self.search
        if not any(search.capacities):
            return None

        def placed(step: int, compute: Sequence[int]) -> tuple[EngineSettings, float]:
            moved = steps[step]
            return search.distributed(base, set(moved), compute, exact_overrides(moved))

        # If the last step does not fit, none does; its compute buffers are a first estimate.
        last = len(steps) - 1
        compute = [0] * len(search.capacities)
        settings, fullness = placed(last, compute)
        if fullness > 1.0:
            return None
        compute = search.compute_buffers(search.report(settings))
        safest, fullness = placed(last, compute)
        if fullness > 1.0 or not search.fits_gpus(search.report(safest)):
            return None
        least = 0
        for _ in range(_ROUNDS):

            def fits(step: int, compute: Sequence[int] = tuple(compute)) -> bool:
                return placed(step, compute)[1] <= 1.0

            step = _first(least, last, fits)
            settings, _ = placed(step, compute)
            report = search.report(settings)
            if search.fits_gpus(report):
                return self._candidate(strategy, steps[step], settings)
            larger = list(map(max, compute, search.compute_buffers(report)))
            if larger == compute:
                least = min(step + 1, last)
            compute = larger
        return self._candidate(strategy, steps[last], safest)

    def _with_context(self, candidate: Candidate, n_ctx: int) -> Candidate:
        """The candidate with another context, its layers distributed anew over several GPUs."""
        search = self.search
        settings = replace(candidate.settings, n_ctx=n_ctx)
        if settings.placement.tensor_split and candidate.strategy is not Strategy.BY_HAND:
            compute = search.compute_buffers(search.report(settings))
            settings, _ = search.distributed(
                settings, set(candidate.moved), compute, settings.placement.overrides
            )
        return self._candidate(candidate.strategy, candidate.moved, settings)


def exact_overrides(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Overrides that keep just these tensors of layers in main memory, in few patterns."""
    kinds_of: dict[int, set[str]] = {}
    for name in names:
        _, layer, kind, _ = name.split(".")
        kinds_of.setdefault(int(layer), set()).add(kind)
    layers_of: dict[tuple[str, ...], list[int]] = {}
    for number, kinds in sorted(kinds_of.items()):
        layers_of.setdefault(tuple(sorted(kinds)), []).append(number)
    return tuple(
        (rf"^blk\.({'|'.join(map(str, layers))})\.({'|'.join(kinds)})\.weight$", CPU)
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
