"""Plans: will a model run on a machine, with how much context, placed how, how fast?

Promises a plan whose bytes llama.cpp itself counted, and the reasons for each choice. Loads no
weights, and downloads nothing but headers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..architecture import ATTENTION_CHUNK
from ..errors import ModelFileError, SettingError
from ..ranges import as_path, as_tuple, wrong_type
from ..runtime.adapters import (
    AdapterInput,
    ControlVectorInput,
    as_adapters,
    as_control_vectors,
)
from ..runtime.bindings.amx import use_extra_bufts
from ..runtime.placement import CPU, Placement, check_overrides
from ..runtime.settings import (
    Context,
    EngineSettings,
    FlashAttention,
    KVTypes,
    LoadMode,
    check_settings_of_model,
    context_length,
)
from ..runtime.workers.remote import connect
from . import alternatives
from .explain import explain
from .from_disk import disk_reads
from .geometry import Geometry, open_geometry
from .gpus import gpus_named
from .ladder import Candidate, Ladder, Strategy
from .machine import Machine, MachineDevice, described_machine, this_machine
from .pictures import images_of, with_room
from .plan import Alternative, DevicePlan, Plan
from .search import Search

LEAST_USABLE = 256 * 2**20
"""Usable bytes below which a GPU is left out: a compute buffer alone would fill it."""


def plan(
    model: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | None = None,
    n_ctx: Context = None,
    kv_type: KVTypes | None = None,
    gpus: str | Sequence[str] = (),
    vram: Sequence[int] = (),
    ram: int | None = None,
    n_ubatch: int = EngineSettings.n_ubatch,
    n_outputs: int = EngineSettings.n_outputs,
    n_parallel: int = EngineSettings.n_parallel,
    flash_attention: FlashAttention = "auto",
    load_mode: LoadMode = EngineSettings.load_mode,
    n_expert_used: int | None = None,
    cache_ram: int | None = None,
    image_size: tuple[int, int] | None = None,
    projector: str | os.PathLike[str] | None = None,
    placement: Placement | None = None,
    devices: Sequence[str] | None = None,
    workers: Sequence[str] = (),
    adapters: Iterable[AdapterInput] = (),
    control_vectors: Iterable[ControlVectorInput] = (),
    control_vector_layers: tuple[int, int] | None = None,
) -> Plan:
    """Plan where a model goes, before it is loaded or even downloaded.

    Args:
        model: a GGUF; a checkpoint directory, a config.json, ``"org/name"`` on the hub, of which
            headers are read; or one of ``scout``, ``scout-base``, ``maverick``, ``behemoth``.
        recipe: what a model that is not a GGUF would be converted with, by its name or its file;
            None is what suits it.
        n_ctx: tokens of context. None is `DEFAULT_CONTEXT`, or what the model was trained for if
            that is less; ``"max"`` is the longest context for which no tensor leaves the GPUs that
            8192 tokens leave there.
        kv_type: the type of the KV cache, or those of keys and of values. None is f16, or the
            first of q8_0 and K q8_0 with V q4_0 that pushes no more than experts from the GPUs,
            where f16 would.
        gpus: GPUs to plan for instead of those here, as in ``"2x rtx4090, h100"``.
        vram: bytes of GPUs that are not in the table.
        ram: bytes of main memory to plan for instead of this machine's; not beside a GPU that
            shares its memory with the processor.
        n_ubatch: tokens computed at once.
        n_outputs: rows of logits that one call may return.
        n_parallel: sequences of ``n_ctx`` tokens each.
        flash_attention: "auto" is on wherever every device can do it.
        load_mode: how weights come into main memory: mapped from the file, copied, or locked.
        n_expert_used: routed experts that a token visits; None is as many as the model says.
        cache_ram: bytes of main memory for what finished sequences had read. They take what a plan
            leaves, so that no placement is worse for them.
        image_size: columns and rows of pixels of the pictures that the model will be shown: room is
            kept for its vision tower. None keeps none, and the tower goes where there is some.
        projector: the GGUF of that tower; None is the one that the model has, or the only one
            beside its file.
        placement: where layers and tensors go; None is the best that is found.
        devices: GPUs of this machine and of the workers to use, by llama.cpp's names; None is all.
        workers: ``"HOST:PORT"`` of other machines that run `llama4 worker`.
        adapters, control_vectors, control_vector_layers: as `Model` takes them. They are loaded for
            each count, and counted as if all adapters were in use.

    Raises:
        SettingError: a setting outside its range, or an unknown GPU.
        Llama4EdgeError: the model cannot be read, or llama.cpp cannot run it.
    """
    model = as_path("model", model)
    recipe = None if recipe is None else as_path("recipe", recipe)
    texts = [gpus] if isinstance(gpus, str) else as_tuple("gpus", gpus, "names")
    vram = as_tuple("vram", vram, "bytes")
    if placement is not None and not isinstance(placement, Placement):
        raise wrong_type("placement", placement, "a Placement or None")
    named = tuple(gpu for text in texts for gpu in gpus_named(text))
    described = bool(named or vram or ram is not None)
    of_this_machine = devices is not None or (placement is not None and placement.devices)
    if described and (workers or of_this_machine):
        raise SettingError("a described machine has neither workers nor devices of this one")
    base = EngineSettings(
        n_ubatch=n_ubatch,
        n_outputs=n_outputs,
        n_parallel=n_parallel,
        flash_attention=flash_attention,
        load_mode=load_mode,
        kv_type=EngineSettings.kv_type if kv_type is None else kv_type,
        n_expert_used=n_expert_used,
        cache_ram=cache_ram,
        # Where a GPU has pinned memory for the weights, llama.cpp repacks none.
        use_extra_bufts=not (named or vram) and use_extra_bufts(),
        workers=as_tuple("workers", workers, "HOST:PORT"),
        adapters=as_adapters(adapters),
        control_vectors=as_control_vectors(control_vectors),
        control_vector_layers=control_vector_layers,
        placement=Placement(
            devices=None if devices is None else as_tuple("devices", devices, "names")
        ),
    )
    if kv_type is not None:
        kv_type = base.kv_type
    with open_geometry(model, recipe) as as_stated, connect(base.workers) as connected:
        check_settings_of_model(base, as_stated.hparams, as_stated.name)
        geometry = as_stated.with_experts_used(n_expert_used).with_adapters(base)
        if placement is not None:
            check_overrides(placement.overrides, [weight.name for weight in geometry.weights])
            devices = placement.devices
        machine = (
            described_machine(named, vram, ram) if described else this_machine(connected, devices)
        )
        full: list[str] = []
        if not described and devices is None and placement is None:
            full = [gpu.name for gpu in machine.gpus if gpu.usable_bytes < LEAST_USABLE]
        if full:
            rest = tuple(gpu for gpu in machine.gpus if gpu.name not in full)
            machine = replace(machine, gpus=rest)
            base = replace(base, placement=Placement(devices=tuple(gpu.name for gpu in rest)))
        tower = None if projector is None else Path(as_path("projector", projector))
        try:
            images = images_of(geometry, tower)
        except ModelFileError:
            if tower is not None or image_size is not None:
                raise
            images = None  # several are beside the model: which one is asked when it is needed
        if image_size is not None:
            machine, images = with_room(machine, images, image_size, geometry.name)
        search = Search(geometry, machine, base, connected)
        result = replace(_plan(search, n_ctx, kv_type, placement), images=images)
        return result.with_notes(*(f"{name} is left out: its memory is full" for name in full))


def fallback(plan: Plan) -> Plan | None:
    """The plan to try after one that could not be allocated, with less asked of the GPUs.

    Each GPU gets a tenth less than before, until the CPU is alone.

    Returns:
        None after the CPU alone, and for a machine that is described.

    Raises:
        Llama4EdgeError: the model can no longer be read.
    """
    if plan.described or all(gpu.idle for gpu in plan.gpus):
        return None
    settings = plan.settings
    machine = Machine(tuple(map(_with_less, plan.gpus)), plan.host.device)
    base = replace(settings, placement=Placement(devices=settings.placement.devices))
    with open_geometry(plan.path, plan.recipe) as geometry, connect(base.workers) as connected:
        geometry = geometry.with_experts_used(settings.n_expert_used).with_adapters(settings)
        search = Search(geometry, machine, base, connected)
        result = _plan(search, settings.n_ctx, settings.kv_type, None)
    return replace(result, images=plan.images).with_notes(
        f"after llama.cpp could not allocate: {plan}"
    )


def _with_less(gpu: DevicePlan) -> MachineDevice:
    """The GPU with nine tenths of what was used of it as all that is usable."""
    device = gpu.device
    free = device.kept_free_bytes + gpu.used_bytes * 9 // 10
    return replace(device, free_bytes=min(device.free_bytes or 0, free))


def _plan(
    search: Search,
    n_ctx: Context,
    kv_type: KVTypes | None,
    placement: Placement | None,
) -> Plan:
    geometry = search.geometry
    start = _first_context(n_ctx, geometry)

    def choose(search: Search) -> Candidate:
        ladder = Ladder(search)
        if placement is not None:
            candidate = ladder.by_hand(start, kv_type or "f16", placement)
        else:
            candidate = ladder.best(start, kv_type)
        if n_ctx == "max" and search.least_left(candidate.count) >= 0:
            candidate = ladder.longest(candidate, geometry.hparams.n_ctx_train)
        return ladder.without_repacking_if_short(candidate)

    candidate = choose(search)
    others: list[Alternative] = []
    if n_ctx is None and placement is None:
        others += alternatives.longer_contexts(Ladder(search), candidate)
    if kv_type is None:
        others += alternatives.smaller_cache(Ladder(search), candidate)
    others += alternatives.smaller_ubatch(search, candidate, choose)
    if placement is None:
        others += alternatives.more_of_one_memory(search, candidate)
    result = _as_plan(search, candidate, tuple(others))
    if n_ctx == "max" and candidate.moved and candidate.strategy is not Strategy.BY_HAND:
        result = result.with_notes(
            f"a context of {candidate.settings.n_ctx:,} tokens moves no more from the GPU than one "
            f"of {start:,}; a longer one fits if more may leave it (give it as n_ctx)"
        )
    return result


def _first_context(n_ctx: Context, geometry: Geometry) -> int:
    """The context to begin with, in tokens."""
    trained = geometry.hparams.n_ctx_train
    if n_ctx == "max":
        # With one chunk, the chunked layers have their whole cache already.
        return min(ATTENTION_CHUNK, trained)
    return context_length(n_ctx, trained, geometry.name)


def _as_plan(search: Search, candidate: Candidate, others: tuple[Alternative, ...]) -> Plan:
    geometry, count = search.geometry, candidate.count
    result = Plan(
        model=geometry.name,
        path=geometry.source,
        recipe=geometry.recipe,
        n_layer=geometry.hparams.n_layer,
        n_ctx_train=geometry.hparams.n_ctx_train,
        settings=count.settings,
        described=search.machine.described,
        devices=tuple(
            DevicePlan(
                device=device,
                load=load,
                memory=count.report.on(device.name),
                output_bytes=count.output_bytes if device.name == CPU else 0,
                taken_bytes=search.taken_from_main_memory(count) if device.name == CPU else 0,
            )
            for device, load in zip(search.machine.devices, count.loads, strict=True)
        ),
        alternatives=others,
    )
    if result.from_disk_bytes:
        host = result.host
        reads = disk_reads(geometry, host.load, host.memory.weights, result.from_disk_bytes)
        result = replace(result, disk=reads)
    why, notes = explain(search, candidate, result)
    return replace(result, why=why, notes=notes)
