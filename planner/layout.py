"""Which tensor lies where under a placement, by llama.cpp's own rules, and what that costs a token.

Promises the same division as llama.cpp makes (``load_tensors`` in llama-model.cpp), so that weights
can be told apart by role on each device; tests hold the sums against llama.cpp's report. Knows
nothing of compute buffers, which only llama.cpp can size.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from ..runtime.bindings.memory import HOST
from ..runtime.placement import Placement
from ..runtime.settings import EngineSettings
from .geometry import Geometry, Weight
from .machine import Place


@dataclass(frozen=True)
class Share:
    """What one device holds of a model, in bytes, and what a token reads of it.

    ``kv_read`` is what decoding reads of the cache when the context is full. ``layers`` counts from
    0; the number of layers stands for the output layer.
    """

    device: str
    layers: tuple[int, ...]
    weights: Mapping[str, int]
    kv_full: int
    kv_chunked: int
    weights_read: int
    kv_read: int

    @property
    def total(self) -> int:
        """Weights and cache."""
        return sum(self.weights.values()) + self.kv_full + self.kv_chunked


def layer_devices(n_layer: int, placement: Placement, gpus: Sequence[Place]) -> tuple[str, ...]:
    """The device of each layer, and last that of the output layer."""
    on_gpus = n_layer + 1
    if placement.n_gpu_layers >= 0:
        on_gpus = min(placement.n_gpu_layers, n_layer + 1)
    if placement.devices is not None:
        gpus = [gpu for gpu in gpus if gpu.name in placement.devices]
    if not gpus or not on_gpus:
        return (HOST,) * (n_layer + 1)
    first = n_layer + 1 - on_gpus
    parts = placement.tensor_split or tuple(float(place.free or 0) for place in gpus)
    if not any(parts):
        parts = (1.0,) * len(gpus)
    # In floats of 32 bits, as llama.cpp does: an ulp decides where a boundary falls.
    ends = list(accumulate(np.float32(part / sum(parts)) for part in parts))
    ends = [end / ends[-1] for end in ends]
    return (HOST,) * first + tuple(
        gpus[bisect_right(ends, np.float32(index) / np.float32(on_gpus))].name
        for index in range(on_gpus)
    )


def shares(
    geometry: Geometry, settings: EngineSettings, gpus: Sequence[Place]
) -> tuple[Share, ...]:
    """What each GPU holds, and last main memory."""
    placement = settings.placement
    of_layer = layer_devices(geometry.n_layer, placement, gpus)
    weights = {name: Counter[str]() for name in [*(place.name for place in gpus), HOST]}
    read: Counter[str] = Counter()
    for weight in geometry.weights:
        elsewhere = _overridden(weight.name, placement)
        for device in [elsewhere] if elsewhere else _devices_of(weight, of_layer):
            weights[device][weight.role] += weight.nbytes
            read[device] += geometry.read_per_token(weight)
        if geometry.tied and weight.role == "embedding":
            device = _overridden("output.weight", placement) or of_layer[-1]
            weights[device]["output"] += weight.nbytes
            read[device] += weight.nbytes
    full, chunked, kv_read = Counter[str](), Counter[str](), Counter[str]()
    for layer in range(geometry.n_layer):
        device = of_layer[layer] if placement.offload_kqv else HOST
        cache = full if geometry.is_full(layer) else chunked
        cache[device] += geometry.kv_bytes(layer, settings)
        kv_read[device] += geometry.kv_read_per_token(layer, settings.kv_type, settings.n_ctx)
    return tuple(
        Share(
            device=name,
            layers=tuple(layer for layer, device in enumerate(of_layer) if device == name),
            weights=dict(weights[name]),
            kv_full=full[name],
            kv_chunked=chunked[name],
            weights_read=read[name],
            kv_read=kv_read[name],
        )
        for name in weights
    )


def _overridden(name: str, placement: Placement) -> str | None:
    """The device that an override names for a tensor."""
    return next(
        (device for pattern, device in placement.overrides if re.search(pattern, name)), None
    )


def _devices_of(weight: Weight, of_layer: Sequence[str]) -> Sequence[str]:
    """Where a tensor lies that no override moves: on one device, but for the rotary frequencies,
    of which each device with a layer has a copy."""
    if weight.layer is not None:
        return [of_layer[weight.layer]]
    if weight.role == "embedding":
        return [HOST]
    return sorted(set(of_layer[:-1])) if weight.role == "rope" else [of_layer[-1]]


def split_for(counts: Sequence[int]) -> tuple[float, ...]:
    """The ``tensor_split`` with which llama.cpp gives each GPU so many of the layers, in order.

    The boundaries lie halfway between two layers, out of reach of rounding.
    """
    if len(counts) < 2:
        return ()
    total = sum(counts)
    ends = [end - 0.5 if 0 < end < total else float(end) for end in accumulate(counts)]
    return tuple(end - begin for begin, end in zip([0.0, *ends], ends, strict=False))


def dealt_out(
    sizes: Sequence[int], rooms: Sequence[int], taken: Sequence[int]
) -> tuple[tuple[int, ...], float]:
    """Deal layers out to GPUs, in order and evenly.

    Evenly is by the layers themselves where that fits, so that compute buffers, which every GPU
    needs, leave none without work; else so that the fullest is as little full as possible.

    Args:
        sizes: bytes of each layer.
        rooms: bytes of each GPU.
        taken: bytes of each GPU that something else takes.

    Returns:
        How many layers each GPU gets, and how full the fullest is; more than 1.0 does not fit.
    """
    if len(rooms) == 1:
        return (len(sizes),), (sum(sizes) + taken[0]) / max(rooms[0], 1)
    counts, _ = _evened(sizes, rooms, [0] * len(rooms))
    ends = list(accumulate(counts, initial=0))
    loads = [sum(sizes[begin:end]) for begin, end in pairwise(ends)]
    fullest = max(
        (load + used) / max(room, 1) for load, used, room in zip(loads, taken, rooms, strict=True)
    )
    return (counts, fullest) if fullest <= 1.0 else _evened(sizes, rooms, taken)


def _evened(
    sizes: Sequence[int], rooms: Sequence[int], taken: Sequence[int]
) -> tuple[tuple[int, ...], float]:
    """The dealing under which the fullest is as little full as possible, and how full that is."""
    low, high = 0.0, 1.0
    while _dealt(sizes, rooms, taken, high) is None:
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        if _dealt(sizes, rooms, taken, middle) is None:
            low = middle
        else:
            high = middle
    counts = _dealt(sizes, rooms, taken, high)
    assert counts is not None
    return counts, high


def _dealt(
    sizes: Sequence[int], rooms: Sequence[int], taken: Sequence[int], fullness: float
) -> tuple[int, ...] | None:
    """How many layers each GPU gets if it may be so full; None if not all find a place."""
    counts, at = [], 0
    for room, used in zip(rooms, taken, strict=True):
        left = max(room, 1) * fullness - used
        begin = at
        while at < len(sizes) and sizes[at] <= left:
            left -= sizes[at]
            at += 1
        counts.append(at - begin)
    return tuple(counts) if at == len(sizes) else None
