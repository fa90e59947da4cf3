"""`llama4 plan`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..terminal.console import note
from ..terminal.progress import loading_progress
from . import values
from .declare import (
    argument,
    command,
    flag,
    given,
    group,
    json_flag,
    option,
    usage_error,
    verbose_flag,
)
from .flags import with_flags
from .model_name import check_name
from .options import (
    AdapterOptions,
    CacheOptions,
    PlacementOptions,
    cache_ram_option,
    default_context,
    experts_option,
    load_mode_option,
    recipe_option,
    with_load_mode,
)
from .output import give, show_warnings
from .pictures import projector_option

if TYPE_CHECKING:
    from ..planner import Plan
    from ..runtime.settings import LoadMode


@dataclass(frozen=True)
class _Counted:
    """What is counted."""

    recipe: str | None = recipe_option(
        "Recipe that a model which is not a GGUF would be converted with."
    )
    n_ctx: int | Literal["max"] | None = option(
        "-c", "--ctx-size", "--ctx", kind=values.tokens, metavar="N|max",
        help="Tokens of context, as in 32768, 128k or 10M; max (or 0) is the longest for which "
        "nothing more has to leave the GPU.",
    )  # fmt: skip
    n_ubatch: int | None = option(
        "-ub", "--ubatch-size", "--ubatch", kind=values.whole_number(1),
        help="Tokens of a prompt computed at once.",
    )  # fmt: skip
    n_parallel: int | None = option(
        "-np", "--parallel", kind=values.whole_number(1, 256),
        help="Conversations at the same time, each with the whole context.",
    )  # fmt: skip
    n_expert_used: int | None = experts_option()
    cache_ram: int | None = cache_ram_option()
    image_size: tuple[int, int] | None = option(
        "--image-size", kind=values.image_size, metavar="WxH",
        help="Keep room for the vision tower, and say what a picture of this size costs.",
    )  # fmt: skip
    projector: str | None = projector_option()

    @staticmethod
    def defaults() -> dict[str, object]:
        """What `plan` and the engine's settings declare."""
        from ..quant.recipes import DEFAULT_RECIPE
        from ..runtime.settings import EngineSettings

        return {
            "recipe": DEFAULT_RECIPE,
            "n_ctx": default_context(),
            "n_ubatch": EngineSettings.n_ubatch,
            "n_parallel": EngineSettings.n_parallel,
        }


@dataclass(frozen=True)
class _Machine:
    """The machine it is counted for, where it is not this one."""

    gpus: tuple[str, ...] = option(
        "--gpu", kind=str, metavar="NAME", multiple=True,
        help="Plan for this GPU instead of those here: h100, 'rtx4090 x2', 'strix halo', "
        "'m5 max 64gb'; may be given again.",
    )  # fmt: skip
    vram: tuple[int, ...] = option(
        "--vram", kind=values.memory, metavar="SIZE", multiple=True,
        help="Plan for a GPU with this much memory, as in 24G; may be given again.",
    )  # fmt: skip
    ram: int | None = option(
        "--ram", kind=values.memory, metavar="SIZE",
        help="Plan for this much main memory.  [default: what this machine has free]",
    )  # fmt: skip


@dataclass(frozen=True)
class PlanOptions:
    """What `llama4 plan` may be asked."""

    model: str | None = argument(required=False)
    counted: _Counted = group(_Counted)
    cache: CacheOptions = group(CacheOptions)
    adapters: AdapterOptions = group(AdapterOptions)
    machine: _Machine = group(_Machine)
    placement: PlacementOptions = group(PlacementOptions)
    load_mode: tuple[LoadMode, ...] = load_mode_option()
    table: bool = flag("--table", help="Memory for each quantization and each context.")
    plot: Path | None = option(
        "--plot", kind=values.FilePath(), metavar="FILE.png",
        help="The table as a picture too.",
    )  # fmt: skip
    check: bool = flag("--check", help="Load the model so, and compare what llama.cpp allocates.")
    as_json: bool = json_flag()
    verbose: bool = verbose_flag()


@command(PlanOptions, recipes=True)
def plan(options: PlanOptions) -> int:
    """Show what fits where, before anything is loaded or downloaded.

    MODEL is a GGUF, a checkpoint directory, a config.json, a repository on the Hugging Face Hub, or
    one of scout, scout-base, maverick, behemoth. Without options that place it, the best placement
    is searched for, and counted by llama.cpp itself. Exits with 1 when it does not fit. The vision
    tower and its projector are counted too, but on no device: nothing loads them yet.

    \b
    llama4 plan scout --gpu rtx4090 --ram 64G -c max
    llama4 plan maverick --gpu 'h100 x4' --recipe int8 --json | jq .devices
    llama4 plan --table
    llama4 plan scout.gguf --check
    """
    show_warnings(verbose=options.verbose)
    if options.table or options.plot is not None:
        return _show_table(options)
    from ..planner import plan as find_plan
    from ..terminal.plan_view import plan_view

    if options.model is None:
        raise usage_error("give a MODEL, or --table for all presets")
    check_name(options.model, "plan")
    plan = find_plan(options.model, **_settings(options))
    if options.check:
        return _show_check(options, plan)
    shown = replace(plan, notes=tuple(map(with_flags, plan.notes)))
    view = partial(plan_view, placing=list(_placing(options.placement)))
    give(plan.as_dict(), shown, view, as_json=options.as_json)
    return 0 if plan.fits else 1


def _show_check(options: PlanOptions, plan: Plan) -> int:
    """Load what was planned, and show what llama.cpp allocated for it."""
    from ..planner.check import check as check_plan
    from ..terminal.plan_view import check_view

    with loading_progress(Path(plan.path).name) as progress:
        rows = check_plan(plan, on_progress=progress)
    record = {"plan": plan.as_dict(), "check": [row.as_dict() for row in rows]}
    give(record, (plan, rows), lambda both: check_view(*both), as_json=options.as_json)
    return 0 if all(row.agrees for row in rows) else 1


def _show_table(options: PlanOptions) -> int:
    """Show the memory of many plans, and draw it where that was asked for."""
    from ..planner.table import table
    from ..terminal.plan_view import table_view

    if options.check:
        raise usage_error("--check loads one plan; --table and --plot show many")
    settings = _settings(options)
    if settings.keys() - {"recipe", "kv_type", "n_ubatch"}:
        raise usage_error("--table and --plot take only --recipe, -ctk, -ctv and -ub")
    if "recipe" in settings:
        settings["recipes"] = (settings.pop("recipe"),)
    if options.model is not None:
        check_name(options.model, "plan")
        settings["models"] = [options.model]
    if options.plot is not None:
        from ..figures import check_figure

        check_figure(options.plot)
    cells = table(**settings)
    if options.plot is not None:
        from ..planner.plot import plot as draw

        draw(cells, options.plot)
        note(f"drawn: {options.plot}")
    give([cell.as_dict() for cell in cells], cells, table_view, as_json=options.as_json)
    return 0


def _placing(where: PlacementOptions) -> Iterator[str]:
    """The flags that placed it, for the command that opens it so."""
    if where.devices is not None:
        yield f"-dev {','.join(where.devices) or 'none'}"
    if where.n_gpu_layers is not None:
        yield f"-ngl {where.n_gpu_layers if where.n_gpu_layers >= 0 else 'all'}"
    if where.cpu_moe:
        yield "-cmoe"
    if where.n_cpu_moe is not None:
        yield f"-ncmoe {where.n_cpu_moe}"
    if where.tensor_split is not None:
        yield "-ts " + ",".join(f"{share:g}" for share in where.tensor_split)
    for pattern, device in values.flattened(where.overrides):
        yield f"-ot {shlex.quote(f'{pattern}={device}')}"
    if where.no_kv_offload:
        yield "-nkvo"


def _settings(options: PlanOptions) -> dict[str, Any]:
    return {
        **given(options.counted),
        **options.cache.settings(),
        **given(options.adapters),
        **given(options.machine),
        **options.placement.settings(),
        **with_load_mode({"load_mode": options.load_mode}),
    }
