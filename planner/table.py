"""What each quantization takes at each context, and the smallest GPUs that hold it all.

Promises that every number is the sum of the tensors' bytes, the cache's formula and the compute
buffers that llama.cpp counted for that number of GPUs and that context. A compute buffer does not
depend on the quantization, so it is counted once for each context. Knows nothing of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..convert.presets import PRESETS
from ..runtime.bindings.memory import measure
from ..runtime.placement import CPU, Placement
from ..runtime.settings import EngineSettings, KVTypes, check_settings_of_model
from ..runtime.workers.simulated_gpus import simulated_gpus
from .geometry import Geometry, is_gguf, open_geometry
from .gpus import GPU, GPUS
from .layout import distribute, layer_sizes, split_for
from .machine import usable_alone

CONTEXTS = (1024, 8192, 32_768, 131_072, 262_144, 1_048_576, 10_485_760)
"""1k to 10M."""

_SETS = (1, 2, 4, 8)
"""Numbers of GPUs of one kind that are tried, as far as they go into one machine."""

TABLE_RECIPES = ("q4_0", "q4_k_m", "int4", "int8", "bf16")
"""Those of different sizes: q8_0 is as large as int8, and f16 as bf16."""


@dataclass(frozen=True)
class Cell:
    """One quantization at one context.

    ``gpu_bytes`` is what one GPU holds if it holds everything, without what is kept free;
    ``host_bytes`` is what main memory holds beside it. ``holder`` is the smallest GPU of the table,
    or set of GPUs, with room for it, None where eight of the largest have none.
    """

    model: str
    recipe: str
    n_ctx: int
    gpu_bytes: int
    host_bytes: int
    holder: str | None
    holder_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def table(
    models: Sequence[str | os.PathLike[str]] = tuple(PRESETS),
    *,
    recipes: Sequence[str] = TABLE_RECIPES,
    kv_type: KVTypes = "f16",
    n_ubatch: int = EngineSettings.n_ubatch,
) -> tuple[Cell, ...]:
    """Cells for each model, quantization and context, in that order.

    Args:
        models: anything that `plan` takes; a GGUF has its own quantization alone.

    Raises:
        Llama4EdgeError: a model cannot be read.
    """
    return tuple(
        cell for model in models for cell in _cells_of_model(model, recipes, kv_type, n_ubatch)
    )


def _cells_of_model(
    model: str | os.PathLike[str], recipes: Sequence[str], kv_type: KVTypes, n_ubatch: int
) -> list[Cell]:
    names: Sequence[str | None] = [None] if is_gguf(model) else recipes
    cells = []
    with open_geometry(model, names[0]) as any_recipe:
        buffers = _Buffers(any_recipe)
        for name in names:
            with open_geometry(model, name) as geometry:
                cells += [
                    _cell(geometry, name or "as it is", settings, buffers)
                    for settings in _settings(geometry, kv_type, n_ubatch)
                ]
    return cells


def _settings(geometry: Geometry, kv_type: KVTypes, n_ubatch: int) -> list[EngineSettings]:
    trained = geometry.hparams.n_ctx_train
    contexts = [n_ctx for n_ctx in CONTEXTS if n_ctx <= trained]
    if trained not in contexts:
        contexts.append(trained)
    base = EngineSettings(kv_type=kv_type, n_ubatch=n_ubatch, use_extra_bufts=False)
    check_settings_of_model(base, geometry.hparams, geometry.name)
    return [replace(base, n_ctx=n_ctx) for n_ctx in contexts]


class _Buffers:
    """Compute buffers by context and number of GPUs: of each GPU, and last of main memory."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self.of = cache(self._of)

    def _of(self, settings: EngineSettings, count: int) -> tuple[int, ...]:
        names = [f"GPU {number}" for number in range(count)]
        layers = self._geometry.hparams.n_layer + 1
        counts = [layers * (gpu + 1) // count - layers * gpu // count for gpu in range(count)]
        placement = Placement(devices=tuple(names), tensor_split=split_for(counts))
        placed = replace(settings, placement=placement)
        report = measure(self._geometry.path, placed, simulated_gpus(names))
        return tuple(report.on(name).compute for name in [*names, CPU])


def _cell(geometry: Geometry, recipe: str, settings: EngineSettings, buffers: _Buffers) -> Cell:
    sizes = layer_sizes(geometry, settings)
    gpu, host = buffers.of(settings, 1)
    embedding = sum(weight.nbytes for weight in geometry.weights if weight.role == "embedding")
    beside = embedding + host + geometry.output_bytes(settings)
    holder = _holder(sizes, beside, settings, buffers)
    return Cell(
        model=geometry.name,
        recipe=recipe,
        n_ctx=settings.n_ctx,
        gpu_bytes=sum(sizes) + gpu,
        host_bytes=beside,
        holder=None if holder is None else _set_name(*holder),
        holder_bytes=None if holder is None else holder[0].memory * holder[1],
    )


def _holder(
    sizes: Sequence[int], beside: int, settings: EngineSettings, buffers: _Buffers
) -> tuple[GPU, int] | None:
    """The set with least memory that holds everything but the bytes in main memory, `beside`; of
    equals, the one of fewest GPUs."""
    sets = [(gpu, count) for gpu in GPUS for count in _SETS if count <= gpu.most_together]
    for gpu, count in sorted(sets, key=lambda pair: (pair[0].memory * pair[1], pair[1])):
        usable = usable_alone(gpu, beside)
        # Most sets are too small even without compute buffers, which llama.cpp would count.
        if usable * count < sum(sizes):
            continue
        compute = buffers.of(settings, count)[:count]
        if distribute(sizes, [usable] * count, compute)[1] <= 1.0:
            return gpu, count
    return None


def _set_name(gpu: GPU, count: int) -> str:
    return gpu.name if count == 1 else f"{count}x {gpu.name}"
