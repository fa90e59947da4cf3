"""The options and the table of `llama4 bench`.

Promises llama-bench's names for what it measures. Does not measure anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from ..errors import Llama4EdgeError
from ..terminal.console import console, note, printable, show
from ..terminal.progress import conversion_progress
from ..units import bytes_text, count_text
from .options import (
    JSON,
    LARGEST,
    MODEL,
    PLACEMENT,
    Command,
    Gathered,
    option,
    placement_of,
    placing_options,
    recipe_name,
    type_override,
    whole_number_from,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..measure.speed import BenchGrid, BenchResult, BenchTest

BENCH, SYNTHETIC = "llama4_edge.bench", "llama4_edge.synthetic"
# Options that say where layers, tensors or the cache go. (Those that only choose GPUs do not.)
_PLACED_BY = {"n_gpu_layers", "n_cpu_moe", "overrides", "tensor_split", "offload_kqv"}


def _numbers(least: int, largest: int = LARGEST) -> Callable[[str], tuple[int, ...]]:
    """The type of an option that is several whole numbers with commas between them."""
    one = whole_number_from(least, largest)
    return lambda value: tuple(one(part) for part in value.split(","))


def _words(*choices: str) -> Callable[[str], tuple[str, ...]]:
    def words(value: str) -> tuple[str, ...]:
        given = tuple(value.split(","))
        for word in given:
            if word not in choices:
                raise click.BadParameter(f"{word!r} is not one of {', '.join(choices)}")
        return given

    return words


def _pair(value: str) -> tuple[int, int]:
    numbers = _numbers(0)(value)
    if len(numbers) != 2:
        raise click.BadParameter(f"{value!r} is not two numbers, as in 512,128")
    return numbers[0], numbers[1]


class _BenchOption(Gathered):
    group: ClassVar[str] = BENCH

    @staticmethod
    def declared() -> dict[str, Any]:
        """What `BenchGrid` says."""
        from dataclasses import fields

        from ..measure.speed import BenchGrid

        shown = {"n_prompt", "n_gen", "n_depth", "n_batch", "n_ubatch", "kv_type"}
        shown |= {"flash_attention", "n_gpu_layers", "n_cpu_moe"}
        defaults: dict[str, Any] = {one.name: one.default for one in fields(BenchGrid)}
        lists = {name: ",".join(str(value) for value in defaults[name]) for name in shown}
        return {**lists, "repetitions": defaults["repetitions"]}


class _SyntheticOption(Gathered):
    group: ClassVar[str] = SYNTHETIC

    @staticmethod
    def declared() -> dict[str, Any]:
        """What `blueprint` and `synthetic_file` say."""
        from ..measure.synthetic import default_directory

        return {"recipe": "int4", "directory": default_directory()}


_NUMBERS = "N,N,…"
# Named as in llama-bench, in the order of the help.
_OPTIONS = (
    option(
        _BenchOption, "-p", "--n-prompt", "n_prompt", kind=_numbers(0), metavar=_NUMBERS,
        help="Tokens of the prompts to read; 0 for none.",
    ),
    option(
        _BenchOption, "-n", "--n-gen", "n_gen", kind=_numbers(0), metavar=_NUMBERS,
        help="Tokens to decode one by one; 0 for none.",
    ),
    option(
        _BenchOption, "-pg", "pairs", kind=_pair, metavar="N,N", multiple=True,
        help="Read so many and then decode so many; may be given several times.",
    ),
    option(
        _BenchOption, "-d", "--n-depth", "n_depth", kind=_numbers(0), metavar=_NUMBERS,
        help="Tokens that the context holds before.",
    ),
    option(
        _BenchOption, "-r", "--repetitions", "repetitions", kind=whole_number_from(1, LARGEST),
        help="How often each test is measured.",
    ),
    option(
        _BenchOption, "-t", "--threads", "n_threads", kind=_numbers(1), metavar=_NUMBERS,
        help="CPU threads.  [default: one for each core]",
    ),
    option(
        _BenchOption, "-b", "--batch-size", "n_batch", kind=_numbers(1), metavar=_NUMBERS,
        help="Tokens of a prompt handed over at once.",
    ),
    option(
        _BenchOption, "-ub", "--ubatch-size", "n_ubatch", kind=_numbers(1), metavar=_NUMBERS,
        help="Tokens of a prompt computed at once.",
    ),
    option(
        _BenchOption, "-ctk", "--cache-type-k", "--kv", "kv_type",
        kind=_words("f16", "q8_0", "q4_0"), metavar="TYPE,…",
        help="What the KV cache, keys and values, is kept as: f16, q8_0 or q4_0.",
    ),
    option(
        _BenchOption, "-fa", "--flash-attn", "flash_attention", kind=_words("on", "off", "auto"),
        metavar="on|off|auto,…", help="Flash attention.",
    ),
    option(
        _BenchOption, "-ngl", "--n-gpu-layers", "n_gpu_layers", kind=_numbers(-1),
        metavar=_NUMBERS, help="Layers put on GPUs, from the last one on; -1 is all.",
    ),
    option(
        _BenchOption, "-ncmoe", "--n-cpu-moe", "n_cpu_moe", kind=_numbers(0, 1024),
        metavar=_NUMBERS, help="Keep the experts of the first N layers on the CPU.",
    ),
    placing_options,
    option(
        _SyntheticOption, "--synthetic", "synthetic", kind=str, metavar="MODEL",
        help="Measure a model of random weights that is made on the spot: scout, scout-base, "
        "maverick, behemoth, a config.json, a checkpoint or a repository.",
    ),
    option(
        _SyntheticOption, "--recipe", kind=recipe_name, metavar="NAME",
        help="The recipe of the synthetic model, as in `llama4 convert`.",
    ),
    option(
        _SyntheticOption, "--type", "types", kind=type_override, metavar="'REGEX=TYPE'",
        multiple=True, help="A type for the tensors whose name REGEX finds.",
    ),
    option(
        _SyntheticOption, "--layers", "layers", kind=whole_number_from(4),
        help="Only the first N layers, at least 4.  [default: all]",
    ),
    option(
        _SyntheticOption, "--dir", "directory", kind=Path, metavar="DIR",
        help="Where the synthetic file lies while it is measured.",
    ),
)  # fmt: skip


def bench_options(command: Command) -> Command:
    """All options that say what is measured."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def measure(
    ctx: click.Context, model: Path | None, *, keep: bool, warmup: bool
) -> list[BenchResult]:
    """Do what `llama4 bench` was asked for.

    What was measured before an error or Ctrl-C is shown: it took minutes, and stands.

    Raises:
        click.UsageError: options that do not go together.
        Llama4EdgeError: the model cannot be made, loaded or run.
    """
    from ..measure.speed import bench

    grid = grid_of(ctx, warmup=warmup)
    results: list[BenchResult] = []
    try:
        with measured_file(ctx, model, keep=keep) as path, bench_progress(grid) as on_test:
            for result in bench(path, as_planned(ctx, grid, path), on_test=on_test):
                results.append(result)  # noqa: PERF402 (those before an error stay)
    except (KeyboardInterrupt, Llama4EdgeError):
        if results and not ctx.meta[JSON]:
            show(bench_view(results))
        raise
    return results


def grid_of(ctx: click.Context, *, warmup: bool) -> BenchGrid:
    """What is to be measured.

    Raises:
        click.UsageError: a value outside its range, or nothing to measure.
    """
    from ..errors import SettingError
    from ..measure.speed import BenchGrid
    from ..runtime.settings import EngineSettings

    try:
        base = EngineSettings(placement=placement_of(ctx), **ctx.meta.get(MODEL, {}))
        return BenchGrid(base=base, warmup=warmup, **ctx.meta.get(BENCH, {}))
    except SettingError as error:
        raise click.UsageError(str(error), ctx) from error


def as_planned(ctx: click.Context, grid: BenchGrid, path: Path) -> BenchGrid:
    """The grid with the model placed where `llama4 plan` says, unless flags place it.

    The plan is for the longest of the tests, so that all are measured in one place. Without a GPU
    there is nothing to choose.
    """
    from ..planner import plan
    from ..runtime.main_memory import has_gpus

    given = ctx.meta.get(PLACEMENT, {}).keys() | ctx.meta.get(BENCH, {}).keys()
    placement, workers = grid.base.placement, grid.base.workers
    if given & _PLACED_BY or not has_gpus(placement.devices, workers):
        return grid
    found = plan(
        path,
        n_ctx=max(test.n_ctx for test in grid.tests),
        kv_type=next(kind for kind in ("f16", "q8_0", "q4_0") if kind in grid.kv_type),
        n_ubatch=max(grid.n_ubatch),
        workers=workers,
        devices=placement.devices,
    )
    note(f"placed as planned: {found}")
    placement = found.settings.placement
    base = replace(grid.base, placement=placement)
    return replace(grid, base=base, n_gpu_layers=(placement.n_gpu_layers,))


@contextmanager
def measured_file(ctx: click.Context, model: Path | None, *, keep: bool) -> Iterator[Path]:
    """The file to measure: the one that was named, or a synthetic one for as long as it takes.

    Raises:
        click.UsageError: neither was asked for, or both.
        Llama4EdgeError: the synthetic file cannot be made.
    """
    wanted = dict(ctx.meta.get(SYNTHETIC, {}))
    name = wanted.pop("synthetic", None)
    if (model is None) == (name is None):
        raise click.UsageError("give either a MODEL or --synthetic MODEL", ctx)
    if model is not None:
        if wanted or keep:
            raise click.UsageError(
                "--recipe, --type, --layers, --dir and --keep are of --synthetic", ctx
            )
        yield model
        return
    from ..convert.blueprint import blueprint
    from ..measure.synthetic import synthetic_file

    directory = wanted.pop("directory", None)
    drawn = blueprint(name, synthetic=True, **wanted)
    with ExitStack() as stack:
        # The bar ends where the file is whole; the file stays.
        with conversion_progress() as progress:
            made = synthetic_file(drawn, directory, keep=keep, progress=progress)
            path = stack.enter_context(made)
        yield path


@contextmanager
def bench_progress(grid: BenchGrid) -> Iterator[Callable[[BenchTest], None] | None]:
    """Say on stderr which test is running; yields what to hand to ``bench(on_test=…)`` or None."""
    err = console(stderr=True)
    if not err.file.isatty() or err.is_dumb_terminal:
        yield None
        return
    from rich.text import Text

    with err.status("loading") as status:
        done, total = 0, len(list(grid.cases()))

        def show(test: BenchTest) -> None:
            nonlocal done
            done += 1
            status.update(Text(f"{test.name} ({done} of {total})"))

        yield show


# Columns that are shown only where their values differ: field, heading.
_VARYING = (
    ("n_gpu_layers", "ngl"),
    ("n_cpu_moe", "ncmoe"),
    ("n_threads", "threads"),
    ("n_batch", "n_batch"),
    ("n_ubatch", "n_ubatch"),
    ("type_k", "kv"),
    ("flash_attn", "fa"),
)


def bench_view(results: Sequence[BenchResult]) -> RenderableType:
    """What was measured, a line a test."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    records = [result.as_dict() for result in results]
    varying = [
        (field, heading)
        for field, heading in _VARYING
        if len({record[field] for record in records}) > 1
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for _, heading in varying:
        table.add_column(heading, justify="right")
    table.add_column("test")
    table.add_column("tokens/s", justify="right")
    table.add_column("±", justify="right")
    for result, record in zip(results, records, strict=True):
        table.add_row(
            *(str(record[field]) for field, _ in varying),
            result.case.test.name,
            f"{result.avg_ts:.2f}",
            f"{result.stddev_ts:.2f}",
        )
    first = records[0]
    title = Text(printable(first["model_filename"]), style="bold")
    facts = [
        first["model_type"],
        bytes_text(first["model_size"]),
        f"{count_text(first['model_n_params'])} parameters",
        first["backends"],
    ]
    if "threads" not in dict(varying).values():
        facts.append(f"{first['n_threads']} threads")
    return Group(title, printable(", ".join(facts)), "", table)
