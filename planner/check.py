"""Loads a model as planned, and compares what llama.cpp then reports with the plan.

Promises llama.cpp's own numbers on both sides: what it counted before, and what it allocated. Does
not know how a plan is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError, SettingError
from ..runtime.bindings.memory import DeviceMemory, measure_loaded
from ..runtime.workers.remote import connect
from .plan import Plan

TOLERANCE = 0.01
"""How far a plan may be off, of what a device really holds."""


@dataclass(frozen=True)
class Compared:
    """One device: what the plan says, and what llama.cpp allocated."""

    planned: DeviceMemory
    allocated: DeviceMemory

    @property
    def off(self) -> float:
        """The difference of all bytes, as a part of what was allocated; 1.0 where nothing was."""
        planned, allocated = self.planned.total, self.allocated.total
        if planned == allocated:
            return 0.0
        return abs(planned - allocated) / allocated if allocated else 1.0

    @property
    def agrees(self) -> bool:
        """Whether the plan is as close as it promises."""
        return self.off <= TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.planned.device,
            "planned": _bytes(self.planned),
            "allocated": _bytes(self.allocated),
            "off": self.off,
            "agrees": self.agrees,
        }


def _bytes(memory: DeviceMemory) -> dict[str, int]:
    return {
        "weights_bytes": memory.weights,
        "kv_bytes": memory.kv,
        "compute_bytes": memory.compute,
        "adapters_bytes": memory.adapters,
    }


def check(
    plan: Plan, *, on_progress: Callable[[float], object] | None = None
) -> tuple[Compared, ...]:
    """Load the model as planned, and free it again.

    Args:
        on_progress: called with the fraction loaded, 0.0 to 1.0.

    Raises:
        SettingError: the plan is for another machine, or for a file that does not exist.
        EngineError: the plan does not fit, or llama.cpp cannot load the model.
    """
    if plan.described or plan.recipe is not None:
        raise SettingError(
            "only a GGUF on this machine can be loaded",
            found="a machine that is not here" if plan.described else plan.model,
            hint="Plan without gpus=NAMES, vram=BYTES and ram=BYTES for this one."
            if plan.described
            else "Convert it first.",
        )
    if not plan.fits:
        raise EngineError(
            f"{plan.path} does not fit as planned, and is not loaded",
            found="; ".join(plan.notes),
        )
    with connect(plan.settings.workers) as workers:
        report = workers.run(
            lambda: measure_loaded(
                plan.path, plan.settings, workers.native_devices, on_progress=on_progress
            )
        )
    return tuple(Compared(device.memory, report.on(device.name)) for device in plan.devices)
