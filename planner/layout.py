"""Which tensor lies where under a placement, by llama.cpp's own rules, and what that costs a token.

Promises the same division as llama.cpp makes (``load_tensors`` in llama-model.cpp), so that weights
can be told apart by role on each device; tests compare the sums with llama.cpp's report. Does not
know the compute buffers, which only llama.cpp can size.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from ..runtime.placement import CPU, Placement
from ..runtime.settings import EngineSettings
from .geometry import Geometry, Weight
from .machine import MachineDevice


@dataclass(frozen=True)
class DeviceLoad:
    """What one device holds of a model, and what decoding a token reads of it, in bytes.

    ``layers`` count from 0; the number of layers stands for the output layer. ``weights`` are pairs
    of a role and its bytes in the file. ``kv_read_bytes`` is read when the context is full.
    """

    layers: tuple[int, ...]
    weights: tuple[tuple[str, int], ...]
    kv_full_bytes: int
    kv_chunked_bytes: int
    read_bytes: int
    kv_read_bytes: int

    @property
    def weights_bytes(self) -> int:
        """All weights, as they are in the file."""
        return sum(nbytes for _, nbytes in self.weights)

    @property
    def kv_bytes(self) -> int:
        """The KV cache of the full and the chunked layers."""
        return self.kv_full_bytes + self.kv_chunked_bytes

    def bytes_of(self, role: str) -> int:
        """The weights of one role."""
        return dict(self.weights).get(role, 0)


def layer_devices(
    n_layer: int, placement: Placement, gpus: Sequence[MachineDevice]
) -> tuple[str, ...]:
    """The device of each layer, and last that of the output layer."""
    on_gpus = n_layer + 1
    if placement.n_gpu_layers >= 0:
        on_gpus = min(placement.n_gpu_layers, n_layer + 1)
    if placement.devices is not None:
        gpus = [gpu for gpu in gpus if gpu.name in placement.devices]
    if not gpus or not on_gpus:
        return (CPU,) * (n_layer + 1)
    first = n_layer + 1 - on_gpus
    parts = placement.tensor_split or tuple(float(gpu.free_bytes or 0) for gpu in gpus)
    if not any(parts):
        parts = (1.0,) * len(gpus)
    # In floats of 32 bits, as llama.cpp does: an ulp decides where a boundary falls.
    ends = list(accumulate(np.float32(part / sum(parts)) for part in parts))
    ends = [end / ends[-1] for end in ends]
    return (CPU,) * first + tuple(
        gpus[bisect_right(ends, np.float32(index) / np.float32(on_gpus))].name
        for index in range(on_gpus)
    )


def device_loads(
    geometry: Geometry, settings: EngineSettings, gpus: Sequence[MachineDevice]
) -> tuple[DeviceLoad, ...]:
    """What each GPU holds, and last main memory."""
    placement = settings.placement
    of_layer = layer_devices(geometry.hparams.n_layer, placement, gpus)
    weights = {name: Counter[str]() for name in [*(gpu.name for gpu in gpus), CPU]}
    read: Counter[str] = Counter()
    for weight in geometry.weights:
        target = _overridden(weight.name, placement)
        for device in [target] if target else _devices_of(weight, of_layer):
            weights[device][weight.role] += weight.nbytes
            read[device] += geometry.read_per_token(weight)
        if geometry.tied and weight.role == "embedding":
            device = _overridden("output.weight", placement) or of_layer[-1]
            read[device] += weight.nbytes
            # In main memory llama.cpp uses one tensor for both.
            if device != CPU:
                weights[device]["output"] += weight.nbytes
    full, chunked, kv_read = Counter[str](), Counter[str](), Counter[str]()
    for layer in range(geometry.hparams.n_layer):
        device = of_layer[layer] if placement.offload_kqv else CPU
        cache = full if geometry.hparams.is_full(layer) else chunked
        cache[device] += geometry.kv_bytes(layer, settings)
        kv_read[device] += geometry.kv_read_per_token(layer, settings, settings.n_ctx)
    return tuple(
        DeviceLoad(
            layers=tuple(layer for layer, device in enumerate(of_layer) if device == name),
            weights=tuple(weights[name].items()),
            kv_full_bytes=full[name],
            kv_chunked_bytes=chunked[name],
            read_bytes=read[name],
            kv_read_bytes=kv_read[name],
        )
        for name in weights
    )


def layer_sizes(
    geometry: Geometry, settings: EngineSettings, moved: Collection[str] = ()
) -> list[int]:
    """Bytes of each layer on GPUs with its cache and adapters, and last of the output layer.

    Args:
        moved: names of tensors in main memory, which are not counted.
    """
    sizes = [0] * (geometry.hparams.n_layer + 1)
    for weight in geometry.weights:
        if weight.name in moved:
            continue
        nbytes = weight.nbytes + geometry.adapters.get(weight.name, 0)
        if weight.layer is not None:
            sizes[weight.layer] += nbytes
        elif weight.role != "embedding" or geometry.tied:
            sizes[-1] += nbytes
    if settings.placement.offload_kqv:
        for layer in range(geometry.hparams.n_layer):
            sizes[layer] += geometry.kv_bytes(layer, settings)
    return sizes


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
        return [CPU]
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


def distribute(
    sizes: Sequence[int], capacities: Sequence[int], reserved: Sequence[int]
) -> tuple[tuple[int, ...], float]:
    """Distribute layers over GPUs, in order and evenly.

    The layers alone decide where that fits, so that compute buffers, which every GPU needs, leave
    none idle. Otherwise the fullest GPU is as little full as possible.

    Args:
        sizes: bytes of each layer.
        capacities: bytes of each GPU.
        reserved: bytes of each GPU that something else takes.

    Returns:
        How many layers each GPU gets, and how full the fullest is; more than 1.0 does not fit.
    """
    if len(capacities) == 1:
        return (len(sizes),), (sum(sizes) + reserved[0]) / max(capacities[0], 1)
    counts, _ = _balance(sizes, capacities, [0] * len(capacities))
    ends = list(accumulate(counts, initial=0))
    loads = [sum(sizes[begin:end]) for begin, end in pairwise(ends)]
    fullest = max(
        (load + other) / max(capacity, 1)
        for load, other, capacity in zip(loads, reserved, capacities, strict=True)
    )
    return (counts, fullest) if fullest <= 1.0 else _balance(sizes, capacities, reserved)


def _balance(
    sizes: Sequence[int], capacities: Sequence[int], reserved: Sequence[int]
) -> tuple[tuple[int, ...], float]:
    """The counts under which the fullest GPU is as little full as possible, and how full it is."""
    low, high = 0.0, 1.0
    while _fill(sizes, capacities, reserved, high) is None:
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        if _fill(sizes, capacities, reserved, middle) is None:
            low = middle
        else:
            high = middle
    counts = _fill(sizes, capacities, reserved, high)
    assert counts is not None
    return counts, high


def _fill(
    sizes: Sequence[int], capacities: Sequence[int], reserved: Sequence[int], fullness: float
) -> tuple[int, ...] | None:
    """How many layers each GPU gets if none may be fuller than that; None if layers are left."""
    counts, layer = [], 0
    for capacity, other in zip(capacities, reserved, strict=True):
        left = max(capacity, 1) * fullness - other
        first = layer
        while layer < len(sizes) and sizes[layer] <= left:
            left -= sizes[layer]
            layer += 1
        counts.append(layer - first)
    return tuple(counts) if layer == len(sizes) else None
