"""The options of `llama4 plan`, and how a plan, its check and its table are shown.

Promises that every number comes from the plan at hand, and that a pipe gets what a terminal shows,
without colour. Decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import note, printable
from .numbers import bytes_text
from .options import (
    LARGEST,
    MODEL,
    PLACEMENT,
    Command,
    Gathered,
    option,
    placement_of,
    placement_options,
    recipe_name,
    whole_number_from,
)
from .progress import loading_progress

if TYPE_CHECKING:
    from ..plan import DevicePlan, Plan
    from ..plan.check import Compared
    from ..plan.table import Cell

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
    """``auto``, ``max``, ``32768``, ``128k`` or ``10M`` tokens."""
    if value in ("auto", "max"):
        return value
    found = _TOKENS.fullmatch(value.strip())
    count = 0 if found is None else int(found[1]) * int(1024 ** _UNITS[found[2].upper()])
    if count == 0:
        raise click.BadParameter(f"{value!r} is not auto, max, or tokens such as 32768 or 128k")
    if count > LARGEST:
        raise click.BadParameter(f"{value!r} is more than llama.cpp can count")
    return count


class _PlanOption(Gathered):
    group = PLAN

    @staticmethod
    def declared() -> dict[str, Any]:
        """What `plan` says."""
        import inspect

        from ..plan import plan

        shown = ("context", "ubatch", "n_parallel")
        return {name: inspect.signature(plan).parameters[name].default for name in shown}


_OPTIONS = (
    option(
        _PlanOption, "--recipe", kind=recipe_name, metavar="NAME",
        help="What a model that is no GGUF would be converted with.  [default: int4]",
    ),
    option(
        _PlanOption, "-c", "--ctx", "--ctx-size", "context", kind=_context, metavar="N|auto|max",
        help="Tokens of context; auto is 32768, max the most for which nothing more has to leave "
        "the GPU.",
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
        _PlanOption, "-ub", "--ubatch", "--ubatch-size", "ubatch",
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


def answer(
    ctx: click.Context, model: str | None, *, table: bool, plot: Path | None, check: bool
) -> Answer:
    """Do what `llama4 plan` was asked for.

    Raises:
        click.UsageError: options that do not go together.
    """
    asked = dict(ctx.meta.get(PLAN, {}))
    if table or plot is not None:
        if check:
            raise click.UsageError("--check loads one plan; --table and --plot show many")
        return _table_answer(model, asked, plot)
    if model is None:
        raise click.UsageError("give a MODEL, or --table for all presets")
    from ..plan import plan

    placement = ctx.meta.get(PLACEMENT, {})
    if placement.keys() <= {"devices"}:
        asked |= placement
    else:
        asked["placement"] = placement_of(ctx)
    found = plan(model, workers=ctx.meta.get(MODEL, {}).get("workers", ()), **asked)
    if not check:
        return Answer(found.as_dict(), plan_view(found), found.fits)
    from ..plan.check import check as check_plan

    with loading_progress(Path(model).name) as progress:
        rows = check_plan(found, on_progress=progress)
    record = {"plan": found.as_dict(), "check": [row.as_dict() for row in rows]}
    good = all(row.agrees for row in rows)
    return Answer(record, Group(plan_view(found), "", check_view(rows)), good)


def _table_answer(model: str | None, asked: dict[str, Any], plot: Path | None) -> Answer:
    from ..plan.table import table

    unused = asked.keys() - {"recipe", "kv_type", "ubatch"}
    if unused:
        raise click.UsageError("--table and --plot take only --recipe, --kv and --ubatch")
    if "recipe" in asked:
        asked["recipes"] = (asked.pop("recipe"),)
    cells = table([model], **asked) if model is not None else table(**asked)
    if plot is not None:
        from ..plan.plot import plot as draw

        draw(cells, plot)
        note(f"drawn: {plot}")
    return Answer([cell.as_dict() for cell in cells], table_view(cells), True)


# --- a plan

# What fills a device, as a bar shows it: the sign, its colour, and what it stands for.
_PARTS = (
    ("█", "blue", "experts"),
    ("▓", "cyan", "other weights"),
    ("▒", "magenta", "KV cache"),
    ("░", "yellow", "compute"),
    ("-", "bright_black", "kept free"),
)
_BAR = 40
_ROLES = {
    "expert": "experts",
    "shared_expert": "shared experts",
    "dense_ffn": "dense layers",
    "attention": "attention",
    "router": "routers",
    "embedding": "token embedding",
    "output": "output",
    "norm": "norms",
    "rope": "rope factors",
    "other": "other",
}


def plan_view(plan: Plan) -> RenderableType:
    """What `plan` shows: whether it fits, what goes where, why, how fast, and what next."""
    devices = [device for device in plan.devices if not device.idle or device in plan.gpus]
    parts: list[RenderableType] = [_headline(plan), ""]
    for device in devices:
        parts.append(_device_line(device))
        parts.append(_bar(device))
    parts += [_legend(), "", _bytes_table(plan, devices), ""]
    sections: list[tuple[str, Iterable[str]]] = [("why", plan.why), ("speed", _speed(plan))]
    more = [
        f"{one.what}: {one.effect}" + ("" if one.fits else ", which does not fit")
        for one in plan.choices
    ]
    sections += [("instead", more), ("note", plan.notes), ("next", _next(plan))]
    for title, lines in sections:
        parts += _section(title, lines)
    return Group(*parts)


def _headline(plan: Plan) -> Text:
    what = [plan.model, *([plan.recipe] if plan.recipe else [])]
    what += [f"{plan.context:,} tokens", f"KV cache {plan.kv_type}", f"ubatch {plan.ubatch}"]
    if plan.n_parallel > 1:
        what.append(f"{plan.n_parallel} at a time")
    verdict = ("fits", "bold green") if plan.fits else ("does not fit", "bold red")
    return Text.assemble(verdict, "  ", (printable(what[0]), "bold"), ", ", ", ".join(what[1:]))


def _device_line(device: DevicePlan) -> Text:
    free = f"{bytes_text(device.used_bytes)} of {bytes_text(device.free_bytes or 0)} free"
    if device.left_bytes >= 0:
        left = (f"{bytes_text(device.left_bytes)} left", "green")
    else:
        left = (f"{bytes_text(-device.left_bytes)} short", "bold red")
    name = (printable(device.name), "bold")
    return Text.assemble(name, f"  {printable(device.description)}  ", free, ", ", left)


def _bar(device: DevicePlan) -> Text:
    """The device's memory as a bar; what is too small to see is still a sign wide."""
    weights = dict(device.weights)
    sizes = (
        weights.get("expert", 0),
        device.weights_bytes - weights.get("expert", 0),
        device.kv_bytes,
        device.compute_bytes + device.output_bytes,
        device.kept_free_bytes,
    )
    whole = max(device.free_bytes or 0, sum(sizes), 1)
    bar = Text()
    width = 0
    for (sign, style, _), size in zip(_PARTS, sizes, strict=True):
        cells = max(round(size * _BAR / whole), 1) if size else 0
        cells = min(cells, _BAR - width)
        width += cells
        bar.append(sign * cells, style)
    return bar.append("·" * (_BAR - width), "bright_black")


def _legend() -> Text:
    legend = Text()
    for sign, style, name in _PARTS:
        legend.append(sign, style).append(f" {name}  ", "dim")
    return legend.append("· left", "dim")


def _bytes_table(plan: Plan, devices: Sequence[DevicePlan]) -> Table:
    """A line for each role and each kind of buffer, a column for each device."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for device in devices:
        table.add_column(Text(printable(device.name)), justify="right", no_wrap=True)
    rows = [
        (name, [dict(device.weights).get(role, 0) for device in devices])
        for role, name in _ROLES.items()
    ]
    rows += [
        ("KV cache, full layers", [device.kv_full_bytes for device in devices]),
        ("KV cache, chunked layers", [device.kv_chunked_bytes for device in devices]),
        ("compute buffers", [device.compute_bytes for device in devices]),
        ("output buffer", [device.output_bytes for device in devices]),
    ]
    for name, sizes in rows:
        if any(sizes):
            table.add_row(name, *(bytes_text(size) if size else "" for size in sizes))
    if len(devices) > 1 or plan.gpus:
        table.add_row("layers", *(_layers(device, plan.n_layer) for device in devices))
    return table


def _layers(device: DevicePlan, n_layer: int) -> str:
    """``0-47, output``; they come one after the other."""
    inside = [layer for layer in device.layers if layer < n_layer]
    words = []
    if inside:
        words.append(f"{inside[0]}-{inside[-1]}" if len(inside) > 1 else str(inside[0]))
    if n_layer in device.layers:
        words.append("output")
    return ", ".join(words)


def _speed(plan: Plan) -> Iterator[str]:
    from ..plan.words import rate

    begin = plan.estimated_decode_tokens_per_second
    full = plan.estimated_decode_tokens_per_second_full
    if begin is None or full is None:
        return
    yield (
        f"at most {rate(begin)} at the beginning, {rate(full)} when the context is full: an upper "
        "bound, from reading memory alone"
    )
    for device in plan.devices:
        if device.read_bytes and device.bandwidth:
            yield (
                f"{device.name}: {bytes_text(device.read_bytes)} of weights a token, and up to "
                f"{bytes_text(device.kv_read_bytes)} of the cache, at "
                f"{device.bandwidth / 1e9:,.0f} GB/s ({device.bandwidth_source})"
            )


def _next(plan: Plan) -> Iterator[str]:
    if not plan.fits:
        return
    if plan.recipe is None and not plan.described:
        yield f"llama4 chat {plan.path} -c {plan.context}"
    flags = " ".join(llama_cpp_flags(plan))
    yield f"as flags, which run and chat take too: {flags}"


def llama_cpp_flags(plan: Plan) -> Iterator[str]:
    """The placement as llama.cpp's own tools take it."""
    yield f"-c {plan.context}"
    if plan.ubatch != 512:
        yield f"-ub {plan.ubatch}"
    placement = plan.placement
    if placement.devices == ():
        yield "-dev none"
    elif plan.gpus:
        yield f"-ngl {placement.n_gpu_layers if placement.n_gpu_layers >= 0 else plan.n_layer + 1}"
    if placement.tensor_split:
        yield "-ts " + ",".join(f"{share:g}" for share in placement.tensor_split)
    for pattern, device in placement.overrides:
        yield f"-ot '{pattern}={device}'"
    if not placement.offload_kqv:
        yield "-nkvo"
    if plan.kv_type != "f16":
        yield f"--kv {plan.kv_type}"


def _section(title: str, lines: Iterable[str]) -> Iterator[RenderableType]:
    """A title beside its lines; nothing without any."""
    lines = list(lines)
    if not lines:
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold", width=7)
    grid.add_column(overflow="fold")
    for number, line in enumerate(lines):
        grid.add_row("" if number else title, Text(printable(line)))
    yield grid


# --- a check, and the table


def check_view(rows: Sequence[Compared]) -> RenderableType:
    """What `plan --check` shows: what was planned, and what llama.cpp allocated."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("device", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in ("planned", "allocated", "off"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        kinds = (
            ("weights", row.planned.weights, row.allocated.weights),
            ("KV cache", row.planned.kv, row.allocated.kv),
            ("compute", row.planned.compute, row.allocated.compute),
            ("all", row.planned.total, row.allocated.total),
        )
        for number, (what, planned, allocated) in enumerate(kinds):
            verdict = Text("")
            if what == "all":
                verdict = Text(f"{row.off:.2%}", "green" if row.agrees else "bold red")
            name = "" if number else printable(row.planned.device)
            table.add_row(name, what, f"{planned:,}", f"{allocated:,}", verdict)
    agree = all(row.agrees for row in rows)
    words = "as planned, within 1% on every device" if agree else "not as planned"
    return Group(table, "", Text(words, "bold green" if agree else "bold red"))


def table_view(cells: Sequence[Cell]) -> RenderableType:
    """What `plan --table` shows: a table for each model, a line for each quantization."""
    parts: list[RenderableType] = []
    for model in dict.fromkeys(cell.model for cell in cells):
        own = [cell for cell in cells if cell.model == model]
        contexts = sorted({cell.context for cell in own})
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        for context in contexts:
            table.add_column(_tokens(context), justify="right", no_wrap=True)
        for recipe in dict.fromkeys(cell.recipe for cell in own):
            line = {cell.context: cell for cell in own if cell.recipe == recipe}
            table.add_row(recipe, *(bytes_text(line[one].gpu_bytes) for one in contexts))
            holders = (line[one].holder or "more than 8 of any" for one in contexts)
            table.add_row("", *(Text(holder, "dim") for holder in holders))
        parts += [Text(printable(model), "bold"), table, ""]
    beside = max(cell.host_bytes for cell in cells)
    parts.append(
        Text(
            "Memory for everything on one GPU, and the smallest known GPUs that hold it, 1 GiB of "
            f"each kept free. The token embedding takes up to {bytes_text(beside)} of main memory "
            "beside it.",
            "dim",
        )
    )
    return Group(*parts)


def _tokens(count: int) -> str:
    return f"{count / 2**20:g}M" if count >= 2**20 else f"{count / 1024:g}k"
