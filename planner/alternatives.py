"""What other settings would cost or bring, beside those of a plan.

Promises that each alternative was counted as the plan was. Decides nothing about the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..runtime.settings import KVTypes, kv_text
from ..units import bytes_text
from .explain import placement_clause
from .ladder import Candidate, Ladder, Strategy
from .plan import Alternative
from .search import Search

LONGER_CONTEXTS = (131_072, 1_048_576)
"""Tokens of the alternatives to the default context."""


def longer_contexts(ladder: Ladder, chosen: Candidate) -> list[Alternative]:
    """What longer contexts would cost."""
    trained, settings = ladder.search.geometry.hparams.n_ctx_train, chosen.settings
    return [
        _alternative(ladder, chosen, f"{n_ctx:,} tokens", n_ctx, settings.kv_type)
        for n_ctx in LONGER_CONTEXTS
        if settings.n_ctx < n_ctx <= trained
    ]


def smaller_cache(ladder: Ladder, chosen: Candidate) -> list[Alternative]:
    """What a quantized cache would bring where experts have left the GPU."""
    settings, kinds = chosen.settings, ladder.search.kv_types
    if chosen.strategy not in (Strategy.EXPERTS, Strategy.CACHE_ON_CPU):
        return []
    return [
        _alternative(ladder, chosen, f"a KV cache of {kv_text(kind)}", settings.n_ctx, kind)
        for kind in kinds[kinds.index(settings.kv_type) + 1 :]
    ]


SMALL_MASK = 2**30
"""Bytes of a mask for which no smaller ubatch is looked for."""

_LEAST_UBATCH = 32
_MASK = 2  # bytes of an element, with flash attention


def smaller_ubatch(
    search: Search, chosen: Candidate, choose: Callable[[Search], Candidate]
) -> list[Alternative]:
    """What a smaller ubatch would bring where the context makes compute buffers large.

    They hold a mask for the full layers, with a row of the context's length for each token of a
    ubatch: 10 GiB for 10M tokens and 512.

    Args:
        choose: the candidate that a search with other settings leads to, as `chosen` was found.
    """
    settings = chosen.settings
    n_ubatch = settings.n_ubatch
    while n_ubatch > _LEAST_UBATCH and settings.n_ctx * n_ubatch * _MASK > SMALL_MASK:
        n_ubatch = max(n_ubatch // 2, _LEAST_UBATCH)
    if n_ubatch == settings.n_ubatch:
        return []
    with_less = search.with_ubatch(n_ubatch)
    other = choose(with_less)
    longer = other.settings.n_ctx - settings.n_ctx
    more = _more_bytes(search, other, chosen)
    seconds, faster = search.seconds(chosen.count), with_less.seconds(other.count)
    is_faster = seconds is not None and faster is not None and faster < seconds
    if longer <= 0 and more > -SMALL_MASK and not is_faster:
        return []
    clauses = [f"{other.settings.n_ctx:,} tokens" if longer else _bytes_clause(more)]
    fits = with_less.least_left(other.count) >= 0
    if not fits:
        clauses.append("which does not fit")
    elif search.machine.gpus:
        clauses.append(placement_clause(with_less, other))
    clauses.append("prompts are read in smaller pieces, more slowly")
    return [Alternative(f"a ubatch of {n_ubatch}", ", ".join(clauses), fits)]


def _more_bytes(search: Search, other: Candidate, chosen: Candidate) -> int:
    """By how many bytes another candidate takes more, on all devices together."""
    names = [device.name for device in search.machine.devices]
    return sum(map(other.count.used, names)) - sum(map(chosen.count.used, names))


def _bytes_clause(more: int) -> str:
    return f"{'+' if more >= 0 else '-'}{bytes_text(abs(more), digits=2)}"


def _alternative(
    ladder: Ladder, chosen: Candidate, what: str, n_ctx: int, kv_type: KVTypes
) -> Alternative:
    """What another context or cache type would mean, as far down the ladder as the experts."""
    search = ladder.search
    other = (
        ladder.all_on_gpu(n_ctx, kv_type)
        or ladder.experts(n_ctx, kv_type)
        or ladder.cpu_only(n_ctx, kv_type)
    )
    on_cpu = other.strategy is Strategy.CPU_ONLY
    fits = search.least_left(other.count) >= 0 and not (on_cpu and search.machine.gpus)
    clauses = [_bytes_clause(_more_bytes(search, other, chosen))]
    if fits and search.machine.gpus:
        clauses.append(placement_clause(search, other))
    elif search.machine.gpus and on_cpu:
        clauses.append("more than experts would have to leave the GPU")
    elif not fits:
        clauses.append("which does not fit")
    return Alternative(what, ", ".join(clauses), fits)


def more_of_one_memory(search: Search, chosen: Candidate) -> list[Alternative]:
    """What a GPU that shares main memory would hold if it were let have more of it."""
    machine, settings = search.machine, chosen.settings
    if chosen.strategy is Strategy.ALL_ON_GPU or len(machine.gpus) != 1:
        return []
    gpu = machine.gpus[0]
    known = machine.known(gpu)
    if gpu.private_bytes is None or known is None or known.shared is None:
        return []
    more = known.shared.most - (gpu.total_bytes or 0)
    if more <= 0:
        return []
    raised = replace(gpu, free_bytes=(gpu.free_bytes or 0) + more)
    on_it = search.on(replace(machine, gpus=(raised,)))
    other = Ladder(on_it).best(settings.n_ctx, settings.kv_type)
    if on_it.host_left(other.count) < 0:
        return []
    what = f"{bytes_text(known.shared.most)} for the GPU"
    return [Alternative(what, placement_clause(on_it, other), fits=True)]
