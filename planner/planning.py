"""Asks before loading: will it run here, with how much context, placed how, how fast?

Promises a plan whose bytes llama.cpp itself counted, and the reasons for each choice in words. Does
not load a weight, and asks for no download but of headers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ..architecture import ATTENTION_CHUNK
from ..errors import SettingError
from ..runtime.bindings.amx import use_extra_bufts
from ..runtime.bindings.memory import HOST
from ..runtime.placement import Placement, check_overrides
from ..runtime.settings import EngineSettings, FlashAttention, KVType
from ..runtime.workers.remote import connect
from ..units import bytes_text
from .explain import context_words, explain
from .geometry import Geometry, opened
from .gpus import gpus_named
from .machine import Machine, Place, described_machine, this_machine
from .plan import Cost, DevicePlan, Images, Plan
from .search import BY_HAND, CACHE_ON_CPU, CPU_ONLY, EXPERTS, Candidate, Search

CONTEXTS = {"auto": 32_768, "usual": EngineSettings.n_ctx, "max": ATTENTION_CHUNK}
"""Tokens to begin with for each name, where the model was trained for as much. ``max`` is the
longest context for which no tensor leaves the GPUs that this one leaves there: one chunk, with
which the chunked layers have their whole cache already."""

LEAST_ROOM = 256 * 2**20
"""A GPU with less room than this, which a compute buffer alone would fill, is left alone."""

Context = int | Literal["auto", "usual", "max"]


def plan(
    model: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    context: Context = "auto",
    kv_type: KVType | None = None,
    gpus: Sequence[str] = (),
    vram: Sequence[int] = (),
    ram: int | None = None,
    ubatch: int = EngineSettings.n_ubatch,
    n_parallel: int = 1,
    flash_attention: FlashAttention = "auto",
    placement: Placement | None = None,
    devices: Sequence[str] | None = None,
    workers: Sequence[str] = (),
) -> Plan:
    """Say where a model would go, before it is loaded, or before it is there.

    Args:
        model: a GGUF; a checkpoint directory, a config.json, ``"org/name"`` on the hub, of which
            headers are read; or one of ``scout``, ``scout-base``, ``maverick``, ``behemoth``.
        recipe: what a model that is no GGUF would be converted with, int4 by default.
        context: tokens; ``"auto"`` is 32768 and ``"usual"`` what `Model` takes by itself, or what
            the model was trained for if that is less; ``"max"`` is the longest context for which no
            tensor leaves the GPUs that need not leave them anyway.
        kv_type: what the cache is kept as. None is f16, and q8_0 where f16 would push more than
            experts from the GPUs.
        gpus: names of GPUs (``"h100"``, ``"2x rtx4090"``) to plan for instead of those here.
        vram: bytes of GPUs that are in no table.
        ram: bytes of main memory, where it is not this machine's.
        ubatch: tokens computed at once.
        n_parallel: sequences of ``context`` tokens each.
        placement: take this one instead of looking for the best.
        devices: of this machine's and the workers' GPUs, the ones to use, by llama.cpp's names;
            None is all.
        workers: ``"HOST:PORT"`` of other machines that run `llama4 worker`.

    Raises:
        SettingError: a setting outside its range, or a GPU that nobody knows.
        Llama4EdgeError: the model cannot be read, or llama.cpp could not run it.
    """
    named = tuple(gpu for text in gpus for gpu in gpus_named(text))
    described = bool(named or vram or ram is not None)
    named_here = devices is not None or (placement is not None and placement.devices)
    if described and (workers or named_here):
        raise SettingError("a described machine has neither workers nor devices of this one")
    wish = EngineSettings(
        n_ubatch=ubatch,
        n_parallel=n_parallel,
        flash_attention=flash_attention,
        # Where a GPU has pinned memory for it, llama.cpp repacks nothing.
        use_extra_bufts=not (named or vram) and use_extra_bufts(),
        workers=tuple(workers),
        placement=Placement(devices=None if devices is None else tuple(devices)),
    )
    with opened(model, recipe) as geometry, connect(wish.workers) as connected:
        if placement is not None:
            check_overrides(placement.overrides, [weight.name for weight in geometry.weights])
            devices = placement.devices
        machine = (
            described_machine(named, vram, ram) if described else this_machine(connected, devices)
        )
        full = [gpu.name for gpu in machine.gpus if gpu.room < LEAST_ROOM]
        if described or devices is not None or placement is not None:
            full = []
        if full:
            used = tuple(gpu for gpu in machine.gpus if gpu.name not in full)
            machine = replace(machine, gpus=used)
            wish = replace(wish, placement=Placement(devices=tuple(gpu.name for gpu in used)))
        found = _planned(Search(geometry, machine, wish, connected), context, kv_type, placement)
        return found.with_notes(*(f"{name} is left alone: it is full" for name in full))


def more_modest(earlier: Plan) -> Plan | None:
    """The next plan after one that did not come to be, with less asked of the GPUs.

    Each has to do with a tenth less room than the one before used, until the CPU is alone.
    """
    if earlier.described or all(gpu.idle for gpu in earlier.gpus):
        return None
    settings = earlier.settings
    gpus = tuple(_with_less(gpu) for gpu in earlier.gpus)
    machine = Machine(gpus, _place(earlier.host))
    wish = replace(settings, placement=Placement(devices=settings.placement.devices))
    with opened(earlier.path, earlier.recipe) as geometry, connect(wish.workers) as connected:
        search = Search(geometry, machine, wish, connected)
        found = _planned(search, earlier.context, earlier.kv_type, None)
    return found.with_notes(f"after llama.cpp could not allocate: {earlier}")


def _with_less(gpu: DevicePlan) -> Place:
    place = _place(gpu)
    return replace(place, free=min(place.free or 0, gpu.kept_free_bytes + gpu.used_bytes * 9 // 10))


def _place(device: DevicePlan) -> Place:
    return Place(
        name=device.name,
        description=device.description,
        type=device.type,
        total=device.total_bytes,
        free=device.free_bytes,
        bandwidth=device.bandwidth,
        bandwidth_source=device.bandwidth_source,
        kept_free=device.kept_free_bytes,
        endpoint=device.endpoint,
    )


def _planned(
    search: Search, context: Context, kv_type: KVType | None, placement: Placement | None
) -> Plan:
    geometry = search.geometry

    def choose(tokens: int) -> Candidate:
        if placement is not None:
            return search.by_hand(tokens, kv_type or "f16", placement)
        return best(search, tokens, kv_type)

    tokens = _tokens(context, geometry)
    chosen = choose(tokens)
    if context == "max" and search.least_left(chosen) >= 0:
        chosen = search.longest(chosen, geometry.n_ctx_train)
    chosen = _mapped_if_short(search, chosen)
    found = _as_plan(search, chosen, _choices(search, chosen, context, kv_type, placement))
    if context == "max" and chosen.moved and chosen.rung != BY_HAND:
        found = found.with_notes(
            f"for {chosen.settings.n_ctx:,} tokens no more has to leave the GPU than for "
            f"{tokens:,}; a longer context fits where more does (give it with --ctx)"
        )
    return found


def _tokens(context: Context, geometry: Geometry) -> int:
    """The context to begin with, in tokens."""
    if isinstance(context, str) and context in CONTEXTS:
        return min(CONTEXTS[context], geometry.n_ctx_train)
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise SettingError(
            "the context is outside its range",
            found=repr(context),
            expected=f"auto, max, or 1 to {geometry.n_ctx_train} tokens",
        )
    if context > geometry.n_ctx_train:
        raise SettingError(
            f"{geometry.name} was not trained for so long a context",
            found=f"{context:,} tokens",
            expected=f"at most {geometry.n_ctx_train:,}",
        )
    return context


def best(search: Search, context: int, kv_type: KVType | None) -> Candidate:
    """The placement that fits and hurts least.

    Of those that cost no accuracy, the fastest by the cost model; what the cache is kept as is
    touched only where no such placement keeps attention on the GPUs.
    """
    kinds = [kv_type] if kv_type else search.lossless_first
    for kind in kinds:
        found = search.all_on_gpu(context, kind)
        if found:
            return found
        able = [
            search.experts(context, kind),
            search.experts(context, kind, offload_kqv=False),
        ]
        if able[0]:
            return _fastest(search, [one for one in able if one])
    last = kinds[-1]
    rest = [
        search.experts(context, last, offload_kqv=False),
        search.chunked_layers(context, last),
        search.fewer_layers(context, last),
        search.cpu_only(context, kinds[0]),
    ]
    return _fastest(search, [one for one in rest if one])


def _fastest(search: Search, candidates: Sequence[Candidate]) -> Candidate:
    """The one that reads fastest when the context is full, the first where that is unknown.

    One that main memory has room for goes before any that it has not.
    """

    def rank(candidate: Candidate) -> tuple[bool, float]:
        return search.host_left(candidate) < 0, search.seconds(candidate) or 0.0

    return min(candidates, key=rank)


def _mapped_if_short(search: Search, candidate: Candidate) -> Candidate:
    """The same without repacking where main memory is short: what is mapped from the file need not
    be in memory all at once, what is repacked has to be."""
    if search.host_left(candidate) >= 0 or not candidate.settings.use_extra_bufts:
        return candidate
    settings = replace(candidate.settings, use_extra_bufts=False)
    return search.candidate(candidate.rung, candidate.moved, settings)


def _choices(
    search: Search,
    chosen: Candidate,
    context: Context,
    kv_type: KVType | None,
    placement: Placement | None,
) -> tuple[Cost, ...]:
    """What longer contexts, and a smaller cache, would cost or bring."""
    found = []
    trained = search.geometry.n_ctx_train
    for tokens in (131_072, 1_048_576):
        if context == "auto" and placement is None and chosen.settings.n_ctx < tokens <= trained:
            other = _likewise(search, tokens, chosen.settings.kv_type)
            found.append(_cost(search, chosen, other, f"{tokens:,} tokens"))
    spills = chosen.rung in (EXPERTS, CACHE_ON_CPU)
    if kv_type is None and spills and chosen.settings.kv_type != search.lossless_first[-1]:
        other = _likewise(search, chosen.settings.n_ctx, "q8_0")
        found.append(_cost(search, chosen, other, "--kv q8_0"))
    return tuple(found)


def _likewise(search: Search, context: int, kv_type: KVType) -> Candidate:
    """What another context or cache type would mean, as far down the ladder as the experts."""
    return (
        search.all_on_gpu(context, kv_type)
        or search.experts(context, kv_type)
        or search.cpu_only(context, kv_type)
    )


def _cost(search: Search, chosen: Candidate, other: Candidate, what: str) -> Cost:
    before = sum(chosen.used(place.name) for place in search.machine.places)
    after = sum(other.used(place.name) for place in search.machine.places)
    fits = search.least_left(other) >= 0 and (other.rung != CPU_ONLY or not search.machine.gpus)
    words = [f"{'+' if after >= before else '-'}{bytes_text(abs(after - before), digits=2)}"]
    if fits and search.machine.gpus:
        words.append(context_words(search, other))
    elif search.machine.gpus and other.rung == CPU_ONLY:
        words.append("more than experts would have to leave the GPU")
    elif not fits:
        words.append("which does not fit")
    return Cost(what, ", ".join(words), fits)


def _as_plan(search: Search, chosen: Candidate, choices: tuple[Cost, ...]) -> Plan:
    geometry, settings = search.geometry, chosen.settings
    devices = tuple(
        DevicePlan(
            name=place.name,
            description=place.description,
            type=place.type,
            total_bytes=place.total,
            free_bytes=place.free,
            kept_free_bytes=place.kept_free,
            layers=share.layers,
            weights=tuple(share.weights.items()),
            weights_bytes=chosen.report.on(place.name).weights,
            kv_full_bytes=share.kv_full,
            kv_chunked_bytes=share.kv_chunked,
            compute_bytes=chosen.report.on(place.name).compute,
            output_bytes=chosen.output if place.name == HOST else 0,
            read_bytes=share.weights_read,
            kv_read_bytes=share.kv_read,
            bandwidth=place.bandwidth,
            bandwidth_source=place.bandwidth_source,
            endpoint=place.endpoint,
        )
        for place, share in zip(search.machine.places, chosen.shares, strict=True)
    )
    made = Plan(
        model=geometry.name,
        path=geometry.source,
        recipe=geometry.recipe,
        n_layer=geometry.n_layer,
        trained_context=geometry.n_ctx_train,
        context=settings.n_ctx,
        n_parallel=settings.n_parallel,
        ubatch=settings.n_ubatch,
        kv_type=settings.kv_type,
        flash_attention=settings.flash_attention,
        use_extra_bufts=settings.use_extra_bufts,
        workers=settings.workers,
        placement=settings.placement,
        described=search.machine.described,
        devices=devices,
        images=_images(geometry),
        choices=choices,
    )
    why, notes = explain(search, chosen, made)
    return replace(made, why=why, notes=notes)


def _images(geometry: Geometry) -> Images | None:
    """What pictures would take of the model, where it has anything for them."""
    vision = geometry.vision
    return None if vision is None else Images(vision.tower, vision.projector)
