"""Opening a model: what is asked for, the plan for this machine, and the fallback where it fails.

Promises that what a plan decides cannot be asked for beside it, and that a device which cannot
allocate what was planned is followed by the plan's fallback, with a warning. Knows nothing of text.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .errors import AllocationError, SettingError
from .ranges import check_flag, value_text, wrong_type
from .runtime.engine import Engine
from .runtime.files.model_file import ModelInfo
from .runtime.main_memory import host_need, settings_that_fit
from .runtime.placement import Placement
from .runtime.settings import Context, EngineSettings, KVTypes, LoadMode
from .vision.layout import TILE_SIZE

if TYPE_CHECKING:
    from .planner import Plan

logger = logging.getLogger(__name__)


def wished_placement(placement: Placement | None, devices: Sequence[str] | None) -> Placement:
    """The placement by hand; or one that leaves all but the devices open.

    Raises:
        SettingError: devices are named beside it.
    """
    if placement is None:
        return Placement(devices=None if devices is None else names_of("devices", devices))
    if devices is not None:
        raise SettingError(
            "devices are named beside a placement",
            found=value_text(devices),
            expected="Placement(devices=...)",
        )
    return placement


def names_of(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Several names; a string is one."""
    if not isinstance(names, Iterable):
        raise wrong_type(what, names, "names")
    return (names,) if isinstance(names, str) else tuple(names)


def check_plan(plan: object, wish: EngineSettings, **choices: object) -> None:
    """Whether it is a plan, and nothing is asked for beside it that a plan decides.

    Raises:
        SettingError: it is not, or something is.
    """
    from .planner import Plan

    if not isinstance(plan, Plan):
        raise wrong_type("plan", plan, "a Plan or None")
    usual = EngineSettings()
    names = (
        "n_parallel", "n_ubatch", "n_expert_used", "flash_attention", "load_mode", "cache_ram",
        "workers", "adapters", "control_vectors", "control_vector_layers",
    )  # fmt: skip
    asked = [name for name, value in choices.items() if value is not None]
    asked += [name for name in names if getattr(wish, name) != getattr(usual, name)]
    if asked:
        raise SettingError(
            "a plan decides what is asked for beside it",
            found=", ".join(asked),
            hint="Ask `plan` for it.",
        )


def mode_of(load_mode: LoadMode, mmap: bool) -> LoadMode:
    """How the file is loaded, where it may not be mapped.

    Raises:
        SettingError: a mode that maps it was asked for.
    """
    check_flag("mmap", mmap)
    if mmap or load_mode in ("none", "mlock", "dio"):
        return load_mode
    if load_mode == EngineSettings.load_mode:
        return "none"
    raise SettingError(
        "mmap=False goes with no load_mode that maps the file", found=f"load_mode={load_mode!r}"
    )


def planned(
    path: str | os.PathLike[str],
    wish: EngineSettings,
    n_ctx: Context,
    kv_type: KVTypes | None,
    placement: Placement | None,
    projector: str | os.PathLike[str] | None,
) -> Plan:
    """The plan for this machine; the planner is imported where there is something to plan."""
    from .planner import plan

    chosen = plan(
        path,
        n_ctx=wish.n_ctx if n_ctx is None else n_ctx,
        kv_type=kv_type,
        n_ubatch=wish.n_ubatch,
        n_outputs=wish.n_outputs,
        n_parallel=wish.n_parallel,
        flash_attention=wish.flash_attention,
        load_mode=wish.load_mode,
        n_expert_used=wish.n_expert_used,
        cache_ram=wish.cache_ram,
        image_size=None if projector is None else (TILE_SIZE, TILE_SIZE),
        projector=projector,
        placement=placement,
        devices=None if placement else wish.placement.devices,
        workers=wish.workers,
        adapters=wish.adapters,
        control_vectors=wish.control_vectors,
        control_vector_layers=wish.control_vector_layers,
    )
    logger.info("planned: %s", chosen)
    if kv_type is None and chosen.settings.kv_type != wish.kv_type:
        logger.warning(
            "%s: the KV cache is kept as %s, because in %s more than experts would have to leave "
            "the GPUs; kv_type chooses it",
            os.fspath(path),
            chosen.settings.kv_text,
            wish.kv_type,
        )
    for text in (*chosen.why, *chosen.notes):
        logger.info("%s", text)
    return chosen


def open_engine(
    info: ModelInfo,
    settings: EngineSettings,
    plan: Plan | None,
    on_progress: Callable[[float], object] | None,
) -> tuple[Engine, Plan | None]:
    """An engine with these settings; or with a plan's, or with those of its fallback."""
    while True:
        if plan is None:
            need = host_need(info.path, settings)
        else:
            settings = replace(
                plan.settings,
                n_batch=settings.n_batch,
                n_outputs=settings.n_outputs,
                n_threads=settings.n_threads,
            )
            need = plan.host.memory
        fitted = settings_that_fit(info.path, settings, need)
        try:
            engine = Engine(info.path, fitted, end_ids=info.eog_ids, on_progress=on_progress)
            return engine, plan
        except AllocationError as error:
            from .planner import fallback  # only then: the planner takes a while to import

            following = None if plan is None else fallback(plan)
            if following is None:
                raise
            reason = str(error).rstrip(".")
            logger.warning("%s. Planned was: %s. Now trying: %s", reason, plan, following)
            plan = following
