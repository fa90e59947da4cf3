"""`llama4 bench`: llama-bench's options and names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Llama4EdgeError
from ..terminal.bench_view import bench_progress, bench_view
from ..terminal.console import note
from ..terminal.progress import byte_progress
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
    usage_errors,
    verbose_flag,
)
from .model_name import check_name
from .options import (
    AdapterOptions,
    DeviceOptions,
    LayerOptions,
    experts_option,
    given_workers,
    kv_types,
    load_mode_option,
    placed,
    recipe_option,
    type_option,
    with_load_mode,
)
from .output import give, present, show_warnings

if TYPE_CHECKING:
    from ..measure.speed import BenchGrid, BenchResult
    from ..planner.plan import Plan
    from ..runtime.settings import LoadMode

_NUMBERS = "N,N,…"
_LENGTHS, _COUNTS = (values.several(values.whole_number(least)) for least in (0, 1))


@dataclass(frozen=True)
class GridOptions:
    """What is measured: every combination of these, named as in llama-bench."""

    n_prompt: tuple[int, ...] | None = option(
        "-p", "--n-prompt", kind=_LENGTHS, metavar=_NUMBERS,
        help="Tokens of the prompts to read; 0 for none.",
    )  # fmt: skip
    n_gen: tuple[int, ...] | None = option(
        "-n", "--n-gen", kind=_LENGTHS, metavar=_NUMBERS,
        help="Tokens to decode one by one; 0 for none.",
    )  # fmt: skip
    pairs: tuple[tuple[int, int], ...] = option(
        "-pg", kind=values.pair, metavar="N,N", multiple=True,
        help="Read the first number of tokens and then decode the second; may be given again.",
    )  # fmt: skip
    n_depth: tuple[int, ...] | None = option(
        "-d", "--n-depth", kind=_LENGTHS, metavar=_NUMBERS,
        help="Tokens that the context holds before.",
    )  # fmt: skip
    repetitions: int | None = option(
        "-r", "--repetitions", kind=values.whole_number(1), help="How often each test is measured."
    )
    n_threads: tuple[int, ...] | None = option(
        "-t", "--threads", kind=_COUNTS, metavar=_NUMBERS,
        help="CPU threads.  [default: one for each core]",
    )  # fmt: skip
    n_batch: tuple[int, ...] | None = option(
        "-b", "--batch-size", kind=_COUNTS, metavar=_NUMBERS,
        help="Tokens of a prompt given to llama.cpp in one call.",
    )  # fmt: skip
    n_ubatch: tuple[int, ...] | None = option(
        "-ub", "--ubatch-size", kind=_COUNTS, metavar=_NUMBERS,
        help="Tokens of a prompt computed at once.",
    )  # fmt: skip
    type_k: tuple[str, ...] | None = option(
        "-ctk", "--cache-type-k", kind=values.several(values.kv_type), metavar="TYPE,…",
        help="Type of the keys in the KV cache: f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl.",
    )  # fmt: skip
    type_v: tuple[str, ...] | None = option(
        "-ctv", "--cache-type-v", kind=values.several(values.kv_type), metavar="TYPE,…",
        help="Type of the values in it.",
    )  # fmt: skip
    flash_attention: tuple[str, ...] | None = option(
        "-fa", "--flash-attn", kind=values.several(values.switch), metavar="on|off|auto,…",
        help="Flash attention; -fa alone is on.",
    )  # fmt: skip
    n_gpu_layers: tuple[int, ...] | None = option(
        "-ngl", "--n-gpu-layers", "--gpu-layers", kind=values.several(values.layers),
        metavar=_NUMBERS, help="Layers on GPUs, counted from the last one.",
    )  # fmt: skip
    n_cpu_moe: tuple[int, ...] | None = option(
        "-ncmoe", "--n-cpu-moe", kind=values.several(values.whole_number(0, 1024)),
        metavar=_NUMBERS, help="Keep the experts of the first N layers on the CPU.",
    )  # fmt: skip

    @staticmethod
    def defaults() -> dict[str, object]:
        """What `BenchGrid` declares."""
        from ..measure.speed import BenchGrid

        declared = {field.name: field.default for field in fields(BenchGrid)}
        lists = {name: ",".join(map(str, value)) for name, value in declared.items()
                 if isinstance(value, tuple) and value and name != "n_threads"}  # fmt: skip
        placed = {
            "n_gpu_layers": "as `llama4 plan` says",
            "type_k": BenchGrid.base.type_k,
            "type_v": BenchGrid.base.type_v,
        }
        return {**lists, **placed, "repetitions": declared["repetitions"]}


@dataclass(frozen=True)
class SyntheticOptions:
    """A model of random weights, made for the measurement."""

    synthetic: str | None = option(
        "--synthetic", kind=str, metavar="MODEL",
        help="Measure a model of random weights made on the spot: scout, scout-base, maverick, "
        "behemoth, a config.json, a checkpoint or a repository.",
    )  # fmt: skip
    recipe: str | None = recipe_option("Recipe of the synthetic model, as in `llama4 convert`.")
    types: tuple[tuple[tuple[str, str], ...], ...] = type_option()
    layers: int | None = option(
        "--layers",
        kind=values.whole_number(4),
        help="Only the first N layers, at least 4.  [default: all]",
    )
    directory: Path | None = option(
        "--dir",
        kind=values.FilePath(),
        metavar="DIR",
        help="Where the synthetic file is while it is measured.",
    )
    keep: bool = flag("--keep", help="Keep the synthetic model for the next time.")

    @staticmethod
    def defaults() -> dict[str, object]:
        """What `blueprint` and `synthetic_file` declare."""
        from ..measure.synthetic import default_directory
        from ..quant.recipes import DEFAULT_RECIPE

        return {"recipe": DEFAULT_RECIPE, "directory": default_directory()}


@dataclass(frozen=True)
class BenchOptions:
    """What `llama4 bench` may be asked."""

    model: str | None = argument(kind=click.Path(), required=False)
    grid: GridOptions = group(GridOptions)
    where: DeviceOptions = group(DeviceOptions)
    synthetic: SyntheticOptions = group(SyntheticOptions)
    n_expert_used: int | None = experts_option()
    load_mode: tuple[LoadMode, ...] = load_mode_option()
    adapters: AdapterOptions = group(AdapterOptions)
    no_warmup: bool = flag("--no-warmup", help="Measure the first run of each test too.")
    as_json: bool = json_flag()
    verbose: bool = verbose_flag()


@command(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Measure how fast a model reads and answers.

    The same tests, tokens and field names as llama-bench, so that results compare. Without options
    that place it, the model goes where `llama4 plan` says. With --synthetic nothing is downloaded:
    the file has a model's geometry and types, random weights and no tokenizer, and is removed
    afterwards.

    \b
    llama4 bench scout.gguf
    llama4 bench scout.gguf -p 512 -n 128 -d 0,4096,32768 --json
    llama4 bench --synthetic scout --recipe int4 --layers 4
    """
    from ..measure.speed import bench as run_bench

    show_warnings(verbose=options.verbose)
    grid = _grid(options)
    results: list[BenchResult] = []
    try:
        with _measured_file(options) as path, bench_progress(grid) as on_test:
            for result in run_bench(path, grid, on_plan=_note_plan, on_test=on_test):
                results.append(result)  # noqa: PERF402 (those before an error stay)
    except (KeyboardInterrupt, Llama4EdgeError):
        # What was measured took minutes, and stands.
        if results and not options.as_json:
            present(results, bench_view)
        raise
    give(
        [result.as_dict() for result in results],
        results,
        bench_view,
        as_json=options.as_json,
    )


def _note_plan(plan: Plan) -> None:
    note(f"placed as planned: {plan}")


def _grid(options: BenchOptions) -> BenchGrid:
    """What is to be measured.

    Raises:
        click.UsageError: a value outside its range, or nothing to measure.
    """
    from ..measure.speed import BenchGrid
    from ..runtime.placement import Placement
    from ..runtime.settings import EngineSettings

    where = placed(options.where, LayerOptions())
    placement = where.get("placement") or Placement(devices=where.get("devices"))
    with usage_errors():
        base = EngineSettings(
            placement=placement,
            n_expert_used=options.n_expert_used,
            **with_load_mode({"load_mode": options.load_mode}),
            **given_workers(options.where),
            **given(options.adapters),
        )
        return BenchGrid(base=base, warmup=not options.no_warmup, **_given_grid(options.grid))


def _given_grid(grid: GridOptions) -> dict[str, Any]:
    """What was given, with every type of keys beside every type of values, as in llama-bench."""
    settings = given(grid)
    types_k, types_v = settings.pop("type_k", None), settings.pop("type_v", None)
    if types_k or types_v:
        settings["kv_type"] = tuple(
            kv_types(*pair) for pair in product(types_k or (None,), types_v or (None,))
        )
    return settings


@contextmanager
def _measured_file(options: BenchOptions) -> Iterator[Path]:
    """The file to measure: the one that was named, or a synthetic one for as long as it takes.

    Raises:
        click.UsageError: neither was asked for, or both.
        Llama4EdgeError: the synthetic file cannot be made.
    """
    wanted: dict[str, Any] = given(options.synthetic)
    name = wanted.pop("synthetic", None)
    if (options.model is None) == (name is None):
        raise usage_error("give either a MODEL or --synthetic MODEL")
    if options.model is not None:
        if wanted:
            raise usage_error("--recipe, --type, --layers, --dir and --keep are of --synthetic")
        check_name(options.model, "bench")
        yield Path(options.model)
        return
    from ..convert.blueprint import blueprint
    from ..measure.synthetic import synthetic_file

    directory, keep = wanted.pop("directory", None), wanted.pop("keep", False)
    shape = blueprint(
        name, synthetic=True, **{**wanted, "types": values.flattened(options.synthetic.types)}
    )
    with ExitStack() as stack:
        # The bar ends where the file is whole; the file stays.
        with byte_progress() as progress:
            file = synthetic_file(shape, directory, keep=keep, progress=progress)
            path = stack.enter_context(file)
        yield path
