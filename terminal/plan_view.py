"""How a plan, its check and its table look.

Promises that every number comes from the plan at hand, and that a pipe gets what a terminal shows,
without colour. Decides nothing; whoever shows a plan has made its texts visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..units import bytes_text, context_text, rate_text, seconds_text
from .visible import LONGEST_LINE, LONGEST_NAME, shortened

if TYPE_CHECKING:
    from ..planner import DevicePlan, Plan
    from ..planner.check import Compared
    from ..planner.table import Cell
    from ..runtime.settings import EngineSettings

# What fills a device, as a bar shows it: sign, colour, meaning.
_PARTS = (
    ("█", "blue", "experts"),
    ("▓", "cyan", "other weights"),
    ("▒", "magenta", "KV cache"),
    ("░", "yellow", "compute"),
    ("-", "bright_black", "kept free"),
    ("/", "green", "the GPU's"),
)
_BAR = 40
# Settings that `Model` is given by their names, beside a placement.
_ARGUMENTS = (
    "n_ctx", "n_ubatch", "n_parallel", "load_mode", "kv_type", "n_expert_used", "flash_attention",
    "cache_ram", "workers", "control_vector_layers",
)  # fmt: skip
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


def plan_view(plan: Plan, placing: Sequence[str] = ()) -> RenderableType:
    """What `plan` shows: whether it fits, what goes where, why, how fast, and what next.

    Args:
        placing: the flags that placed it by hand.
    """
    devices = [device for device in plan.devices if not device.idle or device in plan.gpus]
    parts: list[RenderableType] = [_headline(plan), ""]
    for device in devices:
        parts.append(_device_line(device, plan.n_layer))
        parts.append(_bar(device))
    parts += [_legend(devices), "", _bytes_table(devices), ""]
    sections: tuple[tuple[str, Iterable[str]], ...] = (
        ("why", plan.why),
        ("speed", _speed(plan)),
        ("kept", _kept(plan)),
        ("images", _images(plan)),
        ("instead", [f"{other.what}: {other.effect}" for other in plan.alternatives]),
        ("note", plan.notes),
        ("next", _next(plan, placing)),
    )
    for title, lines in sections:
        parts += _section(title, lines)
    return Group(*parts)


def _headline(plan: Plan) -> Text:
    settings = plan.settings
    what = [plan.model, *([plan.recipe] if plan.recipe else [])]
    what += [f"{settings.n_ctx:,} tokens", f"KV cache {settings.kv_text}"]
    what.append(f"ubatch {settings.n_ubatch}")
    if settings.n_expert_used is not None:
        what.append(f"{settings.n_expert_used} routed experts a token")
    if settings.n_parallel > 1:
        what.append(f"{settings.n_parallel} at a time")
    verdict = ("fits", "bold green") if plan.fits else ("does not fit", "bold red")
    name = (shortened(what[0], LONGEST_NAME), "bold")
    return Text.assemble(verdict, "  ", name, ", ", ", ".join(what[1:]))


def _device_line(device: DevicePlan, n_layer: int) -> Text:
    free = bytes_text(device.device.free_bytes or 0)
    used = f"{bytes_text(device.used_bytes)} of {free} free"
    if device.taken_bytes:
        used += f", {bytes_text(device.taken_bytes)} the GPU's"
    if device.left_bytes >= 0:
        left = (f"{bytes_text(device.left_bytes)} left", "green")
    else:
        left = (f"{bytes_text(-device.left_bytes)} short", "bold red")
    name = (shortened(device.name, LONGEST_NAME), "bold")
    layers = _layers(device, n_layer)
    description = shortened(device.device.description, LONGEST_NAME)
    what = f"  {description}{f'; {layers}' if layers else ''}: "
    return Text.assemble(name, what, used, ", ", left)


def _bar(device: DevicePlan) -> Text:
    """The device's memory as a bar, in which each part is at least one sign wide."""
    experts = device.load.bytes_of("expert")
    sizes = (
        experts,
        device.memory.weights - experts + device.memory.adapters,
        device.memory.kv,
        device.memory.compute + device.output_bytes,
        device.device.kept_free_bytes,
        device.taken_bytes,
    )
    whole = max(device.device.free_bytes or 0, sum(sizes), 1)
    bar = Text()
    width = 0
    for (sign, style, _), size in zip(_PARTS, sizes, strict=True):
        cells = max(round(size * _BAR / whole), 1) if size else 0
        cells = min(cells, _BAR - width)
        width += cells
        bar.append(sign * cells, style)
    return bar.append("·" * (_BAR - width), "bright_black")


def _legend(devices: Sequence[DevicePlan]) -> Text:
    legend = Text()
    shared = any(device.taken_bytes for device in devices)
    for sign, style, name in _PARTS if shared else _PARTS[:-1]:
        legend.append(sign, style).append(f" {name}  ", "dim")
    return legend.append("· left", "dim")


# More columns than these do not fit side by side.
_MOST_COLUMNS = 4


def _bytes_table(devices: Sequence[DevicePlan]) -> Table:
    """A line for each role and each kind of buffer, a column for each device, or all GPUs."""
    columns = [(device.name, [device]) for device in devices]
    if len(columns) > _MOST_COLUMNS:
        *gpus, host = devices
        columns = [(f"{len(gpus)} GPUs", gpus), (host.name, [host])]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name, _ in columns:
        table.add_column(Text(shortened(name, LONGEST_NAME)), justify="right", no_wrap=True)
    for title, size_on in _rows():
        sizes = [sum(map(size_on, group)) for _, group in columns]
        if any(sizes):
            table.add_row(title, *(bytes_text(size) if size else "" for size in sizes))
    return table


def _rows() -> Iterator[tuple[str, Callable[[DevicePlan], int]]]:
    """Each line's title, and its bytes on a device."""
    for role, title in _ROLES.items():
        yield title, partial(_of_role, role)
    yield "repacking", lambda device: device.repacking_bytes
    yield "adapters", lambda device: device.memory.adapters
    yield "KV cache, full layers", lambda device: device.load.kv_full_bytes
    yield "KV cache, chunked layers", lambda device: device.load.kv_chunked_bytes
    yield "compute buffers", lambda device: device.memory.compute
    yield "output buffer", lambda device: device.output_bytes


def _of_role(role: str, device: DevicePlan) -> int:
    return device.load.bytes_of(role)


def _layers(device: DevicePlan, n_layer: int) -> str:
    """``layers 0-47 and the output``; a device's layers are consecutive."""
    inside = [layer for layer in device.load.layers if layer < n_layer]
    words = []
    if len(inside) == 1:
        words.append(f"layer {inside[0]}")
    elif inside:
        words.append(f"layers {inside[0]}-{inside[-1]}")
    if n_layer in device.load.layers:
        words.append("the output")
    return " and ".join(words)


def _speed(plan: Plan) -> Iterator[str]:
    begin = plan.estimated_decode_tokens_per_second
    full = plan.estimated_decode_tokens_per_second_full
    if begin is None or full is None:
        return
    at_both = f"{rate_text(begin)} at the beginning, {rate_text(full)} when the context is full"
    if plan.disk is not None:
        yield f"about {at_both}: an estimate, from reading memory and the disk alone"
    else:
        yield f"at most {at_both}: an upper bound, from reading memory alone"
    share = plan.measured_share
    if share is not None:
        yield (
            f"of such bounds {share.low:.0%} to {share.high:.0%} were measured on this GPU: "
            f"{share.what} ({share.source})"
        )
    for devices in _alike(plan.devices):
        read = sum(device.load.read_bytes for device in devices)
        cache = sum(device.load.kv_read_bytes for device in devices)
        if read < _WORTH_SAYING:
            continue
        first = devices[0].device
        name = first.name if len(devices) == 1 else f"{len(devices)} GPUs together"
        yield (
            f"{name}: {bytes_text(read)} of weights a token"
            f"{f', and up to {bytes_text(cache)} of the cache' if cache else ''}, at "
            f"{(first.bandwidth or 0) / 1e9:,.0f} GB/s ({first.bandwidth_source})"
        )
    if plan.disk is not None and plan.disk.bandwidth:
        yield (
            f"the file's disk: {bytes_text(plan.disk.read_bytes)} a token, at "
            f"{plan.disk.bandwidth / 1e9:,.1f} GB/s ({plan.disk.bandwidth_source})"
        )


# A token reads one row of the embedding, which takes no time.
_WORTH_SAYING = 2**20


def _alike(devices: Sequence[DevicePlan]) -> list[list[DevicePlan]]:
    """The devices, grouped by type and bandwidth."""
    groups: dict[tuple[str, int | None], list[DevicePlan]] = {}
    for device in devices:
        groups.setdefault((device.device.type, device.device.bandwidth), []).append(device)
    return list(groups.values())


def _kept(plan: Plan) -> Iterator[str]:
    """What finished sequences may keep, and how many of them that is."""
    one = plan.kv_bytes_per_token_read
    if plan.cache_ram_bytes >= _WORTH_SAYING and one:
        count = plan.cache_ram_bytes / one
        yield (
            f"up to {bytes_text(plan.cache_ram_bytes)} more of main memory hold what finished "
            f"conversations had read: {count:,.1f} full contexts of {bytes_text(one)}"
        )


def _images(plan: Plan) -> Iterator[str]:
    images = plan.images
    if images is None:
        return
    parts = (
        f"{bytes_text(images.vision_tower_bytes)} vision tower, "
        f"{bytes_text(images.projector_bytes)} projector, up to "
        f"{bytes_text(images.compute_bytes)} to compute with"
    )
    if images.device is None or images.size is None:
        yield (
            f"take {bytes_text(images.weights_bytes + images.compute_bytes)} more ({parts}) where "
            "there is room when the first one is shown; --image-size WxH keeps room"
        )
        return
    columns, rows = images.size
    tiles = "1 tile" if images.tiles == 1 else f"{images.tiles} tiles"
    share = images.tokens / plan.settings.n_ctx
    work = f"{images.tiles * images.operations / 1e12:,.2g} TFLOP"
    time = (
        f"; encoding it is {work}"
        if images.seconds is None
        else f"; encoding it is {work}, an estimated {seconds_text(images.seconds)} by how fast "
        "this processor multiplies matrices"
    )
    yield f"{parts}: on {images.device}, kept free there"
    yield (
        f"one of {columns:,}x{rows:,} pixels is {tiles} and {images.tokens:,} tokens, "
        f"{share:.1%} of the context{time}"
    )


def _next(plan: Plan, placing: Sequence[str]) -> Iterator[str]:
    if not plan.fits:
        return
    settings = plan.settings
    here = plan.recipe is None and not plan.described
    placement = list(_placement_flags(plan))
    if settings.n_parallel > 1:
        if here:
            yield f"from Python: llama4_edge.Model({', '.join(_arguments(plan))})"
        yield f"as flags of llama.cpp's server: {' '.join(llama_cpp_flags(plan))}"
        return
    if here:
        flags = [f"-c {settings.n_ctx}", *placing, *_asked_flags(settings)]
        flags += _adapter_flags(settings)
        if settings.n_expert_used is not None:
            flags.append(f"--experts {settings.n_expert_used}")
        if settings.workers:
            flags.append(f"--workers {','.join(settings.workers)}")
        if plan.images is not None and plan.images.device is not None:
            flags.append(f"-mm {quote(plan.images.path)}")
        yield f"llama4 chat {quote(plan.path)} {' '.join(flags)}"
        if not placement:
            return
    tools = "llama.cpp" if settings.workers else "run, chat and llama.cpp"
    yield f"as flags of {tools}: {' '.join(llama_cpp_flags(plan))}"


def llama_cpp_flags(plan: Plan) -> Iterator[str]:
    """The settings and the placement as flags of llama.cpp's own tools."""
    settings = plan.settings
    yield f"-c {settings.n_ctx * settings.n_parallel}"  # llama.cpp divides it
    if settings.n_parallel > 1:
        yield f"-np {settings.n_parallel}"
    if settings.workers:
        yield f"--rpc {','.join(settings.workers)}"
    yield from _placement_flags(plan)
    yield from _asked_flags(settings)
    for adapter in settings.adapters:
        yield f"--lora-scaled {quote(f'{adapter.path}:{adapter.scale:g}')}"
    for vector in settings.control_vectors:
        yield f"--control-vector-scaled {quote(f'{vector.path}:{vector.scale:g}')}"
    yield from _vector_layers(settings)
    if settings.n_expert_used is not None:
        yield f"--override-kv llama4.expert_used_count=int:{settings.n_expert_used}"


def _placement_flags(plan: Plan) -> Iterator[str]:
    placement = plan.settings.placement
    if placement.devices == () and plan.gpus:
        yield "-dev none"
    elif plan.gpus:
        yield f"-ngl {placement.n_gpu_layers if placement.n_gpu_layers >= 0 else plan.n_layer + 1}"
    if placement.tensor_split:
        yield "-ts " + ",".join(f"{share:g}" for share in placement.tensor_split)
    for pattern, device in placement.overrides:
        yield f"-ot '{pattern}={device}'"
    if not placement.offload_kqv:
        yield "-nkvo"


def _asked_flags(settings: EngineSettings) -> Iterator[str]:
    """What does not place a model: beside these alone `run` and `chat` plan by themselves."""
    if settings.n_ubatch != 512:
        yield f"-ub {settings.n_ubatch}"
    if settings.cache_ram is not None:
        yield f"-cram {settings.cache_ram >> 20}"
    if settings.load_mode != "auto":
        yield f"-lm {settings.load_mode}"
    if settings.kv_type != "f16":
        yield f"-ctk {settings.type_k} -ctv {settings.type_v}"
    if settings.flash_attention != "auto":
        yield f"-fa {settings.flash_attention}"


def _adapter_flags(settings: EngineSettings) -> Iterator[str]:
    for adapter in settings.adapters:
        yield f"--lora {quote(f'{adapter.path}={adapter.scale:g}')}"
    for vector in settings.control_vectors:
        yield f"--control-vector {quote(f'{vector.path}={vector.scale:g}')}"
    yield from _vector_layers(settings)


def _vector_layers(settings: EngineSettings) -> Iterator[str]:
    if (layers := settings.control_vector_layers) is not None:
        yield f"--control-vector-layer-range {layers[0]} {layers[1]}"


def _arguments(plan: Plan) -> Iterator[str]:
    """What `Model` takes to be planned so; the placement it finds by itself."""
    yield repr(plan.path)
    for name in ("adapters", "control_vectors"):
        if listed := getattr(plan.settings, name):
            yield f"{name}={[(one.path, one.scale) for one in listed]!r}"
    usual = type(plan.settings)()
    for field in fields(usual):
        value = getattr(plan.settings, field.name)
        if field.name in _ARGUMENTS and value != getattr(usual, field.name):
            yield f"{field.name}={value!r}"


def _section(title: str, lines: Iterable[str]) -> Iterator[RenderableType]:
    """A title beside its lines; nothing without any."""
    lines = list(lines)
    if not lines:
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold", width=7)
    grid.add_column(overflow="fold")
    for number, line in enumerate(lines):
        grid.add_row("" if number else title, Text(shortened(line, LONGEST_LINE)))
    yield grid


# --- a check, and the table


def check_view(plan: Plan, rows: Sequence[Compared]) -> RenderableType:
    """What `plan --check` shows: the plan, and what llama.cpp allocated."""
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
            ("adapters", row.planned.adapters, row.allocated.adapters),
            ("all", row.planned.total, row.allocated.total),
        )
        for number, (what, planned, allocated) in enumerate(kinds):
            verdict = Text("")
            if what == "all":
                verdict = Text(f"{row.off:.2%}", "green" if row.agrees else "bold red")
            name = "" if number else shortened(row.planned.device, LONGEST_NAME)
            table.add_row(name, what, f"{planned:,}", f"{allocated:,}", verdict)
    agree = all(row.agrees for row in rows)
    words = "as planned, within 1% on every device" if agree else "not as planned"
    verdict = Text(words, "bold green" if agree else "bold red")
    return Group(plan_view(plan), "", table, "", verdict)


def table_view(cells: Sequence[Cell]) -> RenderableType:
    """What `plan --table` shows: a table for each model, a line for each quantization."""
    parts: list[RenderableType] = []
    for model in dict.fromkeys(cell.model for cell in cells):
        own = [cell for cell in cells if cell.model == model]
        contexts = sorted({cell.n_ctx for cell in own})
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        for context in contexts:
            table.add_column(context_text(context), justify="right", no_wrap=True)
        for recipe in dict.fromkeys(cell.recipe for cell in own):
            line = {cell.n_ctx: cell for cell in own if cell.recipe == recipe}
            table.add_row(recipe, *(f"{line[n_ctx].gpu_bytes / 2**30:,.1f}" for n_ctx in contexts))
            holders = (line[n_ctx].holder or "more" for n_ctx in contexts)
            table.add_row("", *(Text(holder, "dim") for holder in holders))
        parts += [Text(f"{shortened(model, LONGEST_NAME)}, GiB", "bold"), table, ""]
    beside = [cell.host_bytes for cell in cells]
    parts.append(
        Text(
            "Memory for everything on one GPU, and the smallest known GPUs that hold it, at most "
            "eight, 1 GiB of each kept free; of one that shares its memory, what it may have by "
            "default. Main memory holds the token embedding and some "
            f"buffers beside it, {bytes_text(min(beside))} to {bytes_text(max(beside))}.",
            "dim",
        )
    )
    return Group(*parts)
