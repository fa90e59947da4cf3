"""Why a placement was chosen, and what one should know about it, in words.

Promises clauses that name the numbers they rest on. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..architecture import ATTENTION_CHUNK
from ..runtime.bindings.memory import HOST
from ..units import bytes_text
from .machine import KEPT_FREE
from .search import (
    ALL_ON_GPU,
    BY_HAND,
    CACHE_ON_CPU,
    CHUNKED_LAYERS,
    CPU_ONLY,
    EXPERTS,
    FEWER_LAYERS,
    Candidate,
    Search,
)

if TYPE_CHECKING:
    from .plan import Plan


def _size(count: int) -> str:
    return bytes_text(count, digits=2)


def explain(
    search: Search, chosen: Candidate, plan: Plan
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The reasons for a placement, and the notes on it."""
    why = [_REASONS[chosen.rung](search, chosen)]
    if chosen.settings.kv_type != "f16" and chosen.rung not in (BY_HAND, CPU_ONLY):
        why.append(f"the KV cache is kept as {chosen.settings.kv_type}")
    return tuple(why), tuple(_notes(search, plan))


def _all_on_gpu(search: Search, chosen: Candidate) -> str:
    gpus = search.machine.gpus
    left = sum(gpu.room - chosen.used(gpu.name) for gpu in gpus)
    where = "the GPU" if len(gpus) == 1 else f"the {len(gpus)} GPUs"
    return f"everything fits on {where}, with {_size(left)} to spare"


def _experts(search: Search, chosen: Candidate) -> str:
    geometry = search.geometry
    moved = set(chosen.moved)
    experts = [weight for weight in geometry.weights if weight.role == "expert"]
    away = [weight for weight in experts if weight.name in moved]
    read = sum(map(geometry.read_per_token, away))
    return (
        f"{len(away)} of {len(experts)} tensors of experts, "
        f"{_size(sum(one.nbytes for one in away))} of layers "
        f"{_ranges(one.layer for one in away if one.layer is not None)}, "
        f"lie in main memory: of all weights they are read least, {_size(read)} a token"
    )


def _cache_on_cpu(search: Search, chosen: Candidate) -> str:
    cache = sum(share.kv_full + share.kv_chunked for share in chosen.shares)
    return (
        f"the whole KV cache, {_size(cache)}, lies in main memory with the attention over it, "
        f"which costs less than what would have to leave the GPU for it; {_experts(search, chosen)}"
    )


def _chunked_layers(search: Search, chosen: Candidate) -> str:
    moved = set(chosen.moved)
    rest = [one for one in search.geometry.weights if one.name in moved and one.role != "expert"]
    return (
        f"all experts lie in main memory, and {_size(sum(one.nbytes for one in rest))} of other "
        "weights of the chunked layers: the full layers' attention and caches stay on the GPU"
    )


def _fewer_layers(search: Search, chosen: Candidate) -> str:
    layers = chosen.settings.placement.n_gpu_layers
    return (
        f"there is room for {layers} of {search.geometry.n_layer + 1} layers on the GPU, the last "
        "ones, with their caches; the others lie in main memory whole"
    )


def _cpu_only(search: Search, chosen: Candidate) -> str:
    if not search.machine.gpus:
        return "there is no GPU: everything lies in main memory"
    return "the GPUs are too small for what would have to lie there: everything is in main memory"


def _by_hand(search: Search, chosen: Candidate) -> str:
    return "placed as the flags say"


_REASONS = {
    ALL_ON_GPU: _all_on_gpu,
    EXPERTS: _experts,
    CACHE_ON_CPU: _cache_on_cpu,
    CHUNKED_LAYERS: _chunked_layers,
    FEWER_LAYERS: _fewer_layers,
    CPU_ONLY: _cpu_only,
    BY_HAND: _by_hand,
}


def context_words(search: Search, candidate: Candidate) -> str:
    """What another context or cache would mean for the placement, as a clause."""
    host = next(share for share in candidate.shares if share.device == HOST)
    where = {
        ALL_ON_GPU: "all on the GPU",
        CPU_ONLY: "all in main memory",
    }.get(candidate.rung, f"{_size(host.weights.get('expert', 0))} of experts in main memory")
    if candidate.rung == CACHE_ON_CPU:
        where += ", and the KV cache"
    seconds = search.seconds(candidate)
    return where if seconds is None else f"{where}, up to {rate(1 / seconds)} when it is full"


def rate(tokens_per_second: float) -> str:
    """``9.3 tokens/s``, ``240 tokens/s``."""
    digits = 1 if tokens_per_second < 100 else 0
    return f"{tokens_per_second:.{digits}f} tokens/s"


def _notes(search: Search, plan: Plan) -> Iterable[str]:
    if search.geometry.note:
        yield search.geometry.note
    if plan.gpus and plan.described:
        yield (
            "on a GPU that is not here, what its driver and the scratch memory of its kernels take "
            f"is not known: {_size(KEPT_FREE)} of each is kept free for them"
        )
    unknown = [device.name for device in plan.devices if device.read_bytes and not device.bandwidth]
    if unknown:
        yield f"no estimate: nobody knows how fast {', '.join(unknown)} reads its memory"
    if plan.from_disk_bytes:
        yield (
            f"main memory is {_size(plan.from_disk_bytes)} short: llama.cpp maps the file, and "
            "would read from the disk what has no place, again for every token"
        )
    for gpu in plan.gpus:
        if gpu.left_bytes < 0:
            yield f"{gpu.name} is {_size(-gpu.left_bytes)} short"
    if not plan.fits:
        total = sum(device.used_bytes for device in plan.devices)
        yield f"in all it takes {_size(total)}: {_remedy(plan)}"


def _remedy(plan: Plan) -> str:
    """What would make it fit: what is short is held against what each wish takes."""
    short = sum(max(-device.left_bytes, 0) for device in plan.devices)
    cache = sum(device.kv_bytes for device in plan.devices)
    buffers = sum(device.compute_bytes for device in plan.devices)
    wishes = []
    if plan.recipe not in (None, "q4_0", "q4_k_m", "int4"):
        wishes.append("--recipe int4")
    if plan.kv_type == "f16" and cache * 15 // 32 >= short:
        wishes.append("--kv q8_0")
    if plan.context > ATTENTION_CHUNK and cache + buffers >= short:
        wishes.append("a smaller --ctx")
    if buffers >= short:
        wishes.append("a smaller --ubatch")
    return f"{', '.join([*wishes, 'a smaller model'])} or more memory would help"


def _ranges(layers: Iterable[int]) -> str:
    """``3, 7-11``."""
    ordered = sorted(set(layers))
    runs: list[list[int]] = []
    for layer in ordered:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(begin) if begin == end else f"{begin}-{end}" for begin, end in runs)
