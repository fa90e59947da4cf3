"""Why a placement was chosen, and what is worth knowing about it, in sentences.

Promises clauses with the numbers that they rest on. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..architecture import ATTENTION_CHUNK
from ..units import bytes_text, rate_text
from .ladder import Candidate, Strategy
from .machine import KEPT_FREE, Machine, MachineDevice
from .search import Search

if TYPE_CHECKING:
    from .plan import Plan


def explain(
    search: Search, chosen: Candidate, plan: Plan
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The reasons for a placement, and the notes on it."""
    why = [_REASONS[chosen.strategy](search, chosen)]
    by_hand = chosen.strategy in (Strategy.BY_HAND, Strategy.CPU_ONLY)
    if chosen.settings.kv_type != "f16" and not by_hand:
        why.append(f"the KV cache is kept as {chosen.settings.kv_text}")
    return tuple(why), tuple(_notes(search, plan))


def _all_on_gpu(search: Search, chosen: Candidate) -> str:
    gpus = search.machine.gpus
    left = sum(gpu.usable_bytes - chosen.count.used(gpu.name) for gpu in gpus)
    if any(gpu.private_bytes is not None for gpu in gpus):
        left = min(left, search.host_left(chosen.count))
    where = "the GPU" if len(gpus) == 1 else f"the {len(gpus)} GPUs"
    return f"everything fits on {where}, with {_size(left)} to spare"


def _has_experts(search: Search) -> bool:
    return any(weight.role == "expert" for weight in search.geometry.weights)


def _experts(search: Search, chosen: Candidate) -> str:
    geometry = search.geometry
    moved = set(chosen.moved)
    experts = [weight for weight in geometry.weights if weight.role == "expert"]
    on_cpu = [weight for weight in experts if weight.name in moved]
    layers = _ranges(weight.layer for weight in on_cpu if weight.layer is not None)
    read = sum(map(geometry.read_per_token, on_cpu))
    return (
        f"{len(on_cpu)} of {len(experts)} tensors of experts "
        f"({_size(sum(weight.nbytes for weight in on_cpu))}, layers {layers}) are in main memory, "
        f"because a token reads least of them: {_size(read)}"
    )


def _cache_on_cpu(search: Search, chosen: Candidate) -> str:
    cache = sum(load.kv_bytes for load in chosen.count.loads)
    return (
        f"the whole KV cache, {_size(cache)}, is in main memory with the attention over it, which "
        "costs less than moving more weights from the GPU to make room for it"
        + (f"; {_experts(search, chosen)}" if _has_experts(search) else "")
    )


def _chunked_layers(search: Search, chosen: Candidate) -> str:
    moved = set(chosen.moved)
    rest = sum(
        weight.nbytes
        for weight in search.geometry.weights
        if weight.name in moved and weight.role != "expert"
    )
    what = f"{_size(rest)} of the chunked layers' weights are in main memory"
    if _has_experts(search):
        what = (
            f"all experts are in main memory, and {_size(rest)} of other weights of the chunked "
            "layers"
        )
    return f"{what}; attention and cache of the full layers stay on the GPU"


def _fewer_layers(search: Search, chosen: Candidate) -> str:
    layers = chosen.settings.placement.n_gpu_layers
    count = search.geometry.hparams.n_layer + 1
    return (
        f"the GPU has room for the last {layers} of {count} layers with their caches; the others "
        "are in main memory"
    )


def _cpu_only(search: Search, chosen: Candidate) -> str:
    if not search.machine.gpus:
        return "there is no GPU: everything is in main memory"
    return "the GPUs are too small to help: everything is in main memory"


def _by_hand(search: Search, chosen: Candidate) -> str:
    return "placed as asked for"


_REASONS = {
    Strategy.ALL_ON_GPU: _all_on_gpu,
    Strategy.EXPERTS: _experts,
    Strategy.CACHE_ON_CPU: _cache_on_cpu,
    Strategy.CHUNKED_LAYERS: _chunked_layers,
    Strategy.FEWER_LAYERS: _fewer_layers,
    Strategy.CPU_ONLY: _cpu_only,
    Strategy.BY_HAND: _by_hand,
}


def placement_clause(search: Search, candidate: Candidate) -> str:
    """Where a candidate puts the model, and how fast it can be, as a clause."""
    host = candidate.count.loads[-1]
    held = f"{_size(host.weights_bytes)} of weights"
    if _has_experts(search):
        held = f"{_size(host.bytes_of('expert'))} of experts"
    where = {
        Strategy.ALL_ON_GPU: "all on the GPU",
        Strategy.CPU_ONLY: "all in main memory",
    }.get(candidate.strategy, f"{held} in main memory")
    if candidate.strategy is Strategy.CACHE_ON_CPU:
        where += ", and the KV cache"
    seconds = search.seconds(candidate.count)
    return where if seconds is None else f"{where}, up to {rate_text(1 / seconds)} when it is full"


def _notes(search: Search, plan: Plan) -> Iterator[str]:
    if search.geometry.note:
        yield search.geometry.note
    if plan.gpus and plan.described:
        yield (
            f"{_size(KEPT_FREE)} of each GPU is kept free: what the driver and the kernels' "
            "scratch memory take on a GPU that is not here is unknown"
        )
    for gpu in plan.gpus:
        if gpu.device.private_bytes is not None:
            yield _shared(search.machine, gpu.device)
    unknown = [
        device.name
        for device in plan.devices
        if device.load.read_bytes and not device.device.bandwidth
    ]
    if unknown:
        yield f"no estimate of the speed: the memory bandwidth of {', '.join(unknown)} is unknown"
    if plan.host.repacking_bytes >= _WORTH_SAYING:
        yield (
            f"weights repacked for this CPU take {_size(plan.host.repacking_bytes)} more than in "
            "the file"
        )
    if not plan.settings.mapped:
        short = max(-plan.host.left_bytes, 0)
        yield "weights in main memory are copied into it and not mapped from the file" + (
            f": it is {_size(short)} short" if short else ""
        )
    if plan.from_disk_bytes:
        yield _from_disk(plan)
    count, wanted = plan.settings.n_parallel, plan.settings.cache_ram or 0
    if count > 1:
        each = sum(device.memory.kv for device in plan.devices) // count
        yield f"each of the {count} sequences has {_size(each)} of the KV cache for itself"
    if wanted > plan.cache_ram_bytes:
        yield f"main memory has only {_size(plan.cache_ram_bytes)} left for cache_ram"
    for gpu in plan.gpus:
        if gpu.left_bytes < 0:
            yield f"{gpu.name} is {_size(-gpu.left_bytes)} short"
    if not plan.fits:
        total = sum(device.used_bytes for device in plan.devices)
        yield f"in all it takes {_size(total)}: {_remedy(plan)}"


def _from_disk(plan: Plan) -> str:
    """What is short in main memory, and what that costs."""
    short = f"main memory is {_size(plan.from_disk_bytes)} short"
    if plan.disk is None:
        return f"{short}: it does not hold the KV cache and the buffers"
    read, whole = plan.disk.read_bytes, plan.host.load.read_bytes
    if read == whole:
        what = f"all of the {_size(whole)} that a token reads there come from the disk every time"
        why = "less than that has room"
    else:
        what = f"of the {_size(whole)} that a token reads there {_size(read)} come from the disk"
        why = "on average, where tokens visit experts evenly and all else stays in memory"
    rate = "" if plan.disk.bandwidth else f"; its speed was {plan.disk.bandwidth_source}"
    return f"{short}: llama.cpp maps the file, and {what}: {why}{rate}"


def _shared(machine: Machine, device: MachineDevice) -> str:
    """That a GPU shares main memory, how much of it it may have, and how it may have more."""
    clauses = [f"{device.name} and the processor share one memory: what one takes, the other lacks"]
    known = machine.known(device)
    shared = known.shared if known else None
    if shared is not None:
        limit = device.total_bytes or 0
        clauses.append(f"{shared.by_default}, here {_size(limit)}")
        if shared.how and limit < shared.most:
            clauses.append(f"for more, {shared.how}")
    elif device.total_bytes:
        clauses.append(f"its driver lets it have {_size(device.total_bytes)}")
    return "; ".join(clauses)


_WORTH_SAYING = 2**20
# Recipes that are larger than int4.
_LARGER = ("bf16", "f16", "int8", "keep", "q8_0", "q6_k", "q5_1", "q5_k_m", "q5_k_s", "q5_0")


def _remedy(plan: Plan) -> str:
    """What would make it fit: the shortage is compared with what each setting takes."""
    short = sum(max(-device.left_bytes, 0) for device in plan.devices)
    cache = sum(device.memory.kv for device in plan.devices)
    buffers = sum(device.memory.compute for device in plan.devices)
    remedies = []
    if plan.recipe in _LARGER:
        remedies.append("recipe=int4")
    if plan.settings.kv_type == "f16" and cache * 15 // 32 >= short:
        remedies.append("kv_type=q8_0")
    if plan.settings.n_ctx > ATTENTION_CHUNK and cache + buffers >= short:
        remedies.append("a smaller n_ctx")
    if buffers >= short:
        remedies.append("a smaller n_ubatch")
    return f"{', '.join([*remedies, 'a smaller model'])} or more memory would help"


def _size(nbytes: int) -> str:
    """``61.65 GiB``."""
    return bytes_text(nbytes, digits=2)


def _ranges(layers: Iterable[int]) -> str:
    """``3, 7-11``."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(begin) if begin == end else f"{begin}-{end}" for begin, end in runs)
