"""The options of `llama4 plan`, and what it does with them.

Promises that nothing is loaded before it is needed. Does not know how an answer looks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..terminal.console import note
from ..terminal.progress import loading_progress
from .options import (
    LARGEST,
    MODEL,
    PLACEMENT,
    Command,
    Gathered,
    flag,
    option,
    placement_of,
    placement_options,
    recipe_name,
    whole_number_from,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAN = "llama4_edge.plan"

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?", re.IGNORECASE)
_TOKENS = re.compile(r"(\d+)\s*([KM]?)", re.IGNORECASE)


def _memory(value: str) -> int:
    """``24G``, ``24GiB`` or ``1.5T``: memory comes in powers of two."""
    found = _SIZE.fullmatch(value.strip())
    if found is None or not float(found[1]):
        raise click.BadParameter(f"{value!r} is not a size of memory, such as 24G")
    return int(float(found[1]) * 1024 ** _UNITS[found[2].upper()])


def _context(value: str) -> int | str:
    """``max``, ``32768``, ``128k`` or ``10M`` tokens."""
    if value == "max":
        return value
    found = _TOKENS.fullmatch(value.strip())
    count = 0 if found is None else int(found[1]) * int(1024 ** _UNITS[found[2].upper()])
    if count == 0:
        raise click.BadParameter(f"{value!r} is not max, or tokens such as 32768 or 128k")
    if count > LARGEST:
        raise click.BadParameter(f"{value!r} is more than llama.cpp can count")
    return count


class _PlanOption(Gathered):
    group = PLAN

    @staticmethod
    def declared() -> dict[str, Any]:
        """What `plan` says."""
        from ..runtime.settings import EngineSettings

        return {
            name: getattr(EngineSettings(), name) for name in ("n_ctx", "n_ubatch", "n_parallel")
        }


_OPTIONS = (
    option(
        _PlanOption, "--recipe", kind=recipe_name, metavar="NAME",
        help="What a model that is no GGUF would be converted with.  [default: int4]",
    ),
    option(
        _PlanOption, "-c", "--ctx", "--ctx-size", "n_ctx", kind=_context, metavar="N|max",
        help="Tokens of context; max is the most for which nothing more has to leave the GPU.",
    ),
    option(
        _PlanOption, "--kv", "kv_type", kind=click.Choice(["f16", "q8_0", "q4_0"]), metavar="TYPE",
        help="What the KV cache is kept as: f16, q8_0 or q4_0.  [default: f16, or q8_0 before "
        "attention has to leave the GPU]",
    ),
    option(
        _PlanOption, "--gpu", "gpus", kind=str, metavar="NAME", multiple=True,
        help="Plan for this GPU instead of those here: h100, 'rtx4090 x2'; may be given again.",
    ),
    option(
        _PlanOption, "--vram", kind=_memory, metavar="SIZE", multiple=True,
        help="Plan for a GPU with so much memory, as in 24G; may be given again.",
    ),
    option(
        _PlanOption, "--ram", kind=_memory, metavar="SIZE",
        help="Plan for so much main memory.  [default: what this machine has free]",
    ),
    option(
        _PlanOption, "-ub", "--ubatch", "--ubatch-size", "n_ubatch",
        kind=whole_number_from(1, LARGEST), help="Tokens computed at once.",
    ),
    option(
        _PlanOption, "-np", "--parallel", "n_parallel", kind=whole_number_from(1, 256),
        help="Conversations at the same time, each with the whole context.",
    ),
    option(
        _PlanOption, "-fa", "--flash-attn", "flash_attention",
        kind=click.Choice(["on", "off", "auto"]), metavar="on|off|auto", help="Flash attention.",
    ),
    flag(
        _PlanOption, "--table", value=True, help="Memory for each quantization and each context."
    ),
    option(
        _PlanOption, "--plot", kind=click.Path(path_type=Path), metavar="FILE.png",
        help="The table as a picture too.",
    ),
    flag(
        _PlanOption, "--check", value=True,
        help="Load the model so, and compare what llama.cpp allocates.",
    ),
)  # fmt: skip


def plan_options(command: Command) -> Command:
    """The options of `llama4 plan` that say what to plan for, and where it shall go."""
    command = placement_options(command)
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


@dataclass(frozen=True)
class Answer:
    """What a command has to say: as JSON, as a view, and whether it is good news."""

    record: object
    view: RenderableType
    good: bool


def answer(ctx: click.Context, model: str | None) -> Answer:
    """Do what `llama4 plan` was asked for.

    Raises:
        click.UsageError: options that do not go together.
    """
    asked = dict(ctx.meta.get(PLAN, {}))
    table, plot, check = (asked.pop(name, None) for name in ("table", "plot", "check"))
    if table or plot is not None:
        if check:
            raise click.UsageError("--check loads one plan; --table and --plot show many")
        return _table_answer(model, asked, plot)
    if model is None:
        raise click.UsageError("give a MODEL, or --table for all presets")
    from ..planner import plan
    from ..terminal.plan_view import check_view, plan_view

    placement = ctx.meta.get(PLACEMENT, {})
    if placement.keys() <= {"devices"}:
        asked |= placement
    else:
        asked["placement"] = placement_of(ctx)
    found = plan(model, workers=ctx.meta.get(MODEL, {}).get("workers", ()), **asked)
    if not check:
        return Answer(found.as_dict(), plan_view(found), found.fits)
    from ..planner.check import check as check_plan

    with loading_progress(Path(model).name) as progress:
        rows = check_plan(found, on_progress=progress)
    record = {"plan": found.as_dict(), "check": [row.as_dict() for row in rows]}
    good = all(row.agrees for row in rows)
    return Answer(record, check_view(found, rows), good)


def _table_answer(model: str | None, asked: dict[str, Any], plot: Path | None) -> Answer:
    from ..planner.table import table
    from ..terminal.plan_view import table_view

    unused = asked.keys() - {"recipe", "kv_type", "n_ubatch"}
    if unused:
        raise click.UsageError("--table and --plot take only --recipe, --kv and --ubatch")
    if "recipe" in asked:
        asked["recipes"] = (asked.pop("recipe"),)
    cells = table([model], **asked) if model is not None else table(**asked)
    if plot is not None:
        from ..planner.plot import plot as draw

        draw(cells, plot)
        note(f"drawn: {plot}")
    return Answer([cell.as_dict() for cell in cells], table_view(cells), True)
