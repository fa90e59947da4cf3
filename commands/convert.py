"""`llama4 convert`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..terminal.console import note
from ..terminal.progress import byte_progress
from . import values
from .declare import argument, command, flag, given, json_flag, option, usage_error
from .model_name import check_name
from .options import recipe_option, revision_option, type_option
from .output import give, present

if TYPE_CHECKING:
    from ..measure.choice import Fit
    from ..progress import Progress

_BUDGETS = ("fit", "target_size", "target_bpw")


@dataclass(frozen=True)
class ConvertOptions:
    """What `llama4 convert` may be asked."""

    source: str = argument(kind=click.Path())
    output: str | None = option(
        "-o", "--output", kind=values.FilePath(path_type=str), metavar="OUT.gguf",
        help="The file to write.  [default: SOURCE-RECIPE.gguf in this directory]",
    )  # fmt: skip
    recipe: str | None = recipe_option("Which type each tensor gets; see below.")
    fit: str | None = option(
        "--fit", kind=str, metavar="'GPU, N tokens'",
        help="Instead of a recipe, choose types tensor by tensor for a machine and a context: "
        "'h100, 131072 tokens', '2x rtx 4090, 64gb ram, 32k tokens'.",
    )  # fmt: skip
    target_size: str | None = option(
        "--target-size", kind=str, metavar="SIZE",
        help="The same for a file of this size, as in 45GB or 42GiB.",
    )  # fmt: skip
    target_bpw: float | None = option(
        "--target-bpw", kind=float, metavar="BITS",
        help="The same for so many bits a weight, as in 4.5.",
    )  # fmt: skip
    save_recipe: Path | None = option(
        "--save-recipe", kind=values.FilePath(), metavar="FILE.json",
        help="Write the types that were chosen to a file that --recipe takes; with --dry-run too.",
    )  # fmt: skip
    types: tuple[tuple[tuple[str, str], ...], ...] = type_option()
    imatrix: str | None = option(
        "--imatrix", kind=values.FilePath(path_type=str), metavar="FILE",
        help="Weigh errors with activation statistics, as `llama4 calibrate` writes them.",
    )  # fmt: skip
    merge_lora: tuple[tuple[str, float], ...] = option(
        "--merge-lora", kind=values.scaled_file, metavar="ADAPTER[=SCALE]", multiple=True,
        help="Merge a LoRA adapter, as convert-lora takes it, before encoding; may be given again.",
    )  # fmt: skip
    threads: int | None = option(
        "-t",
        "--threads",
        kind=values.whole_number(1),
        help="Threads that encode.  [default: all cores]",
    )
    dry_run: bool = flag("--dry-run", help="Check everything and report, but write nothing.")
    revision: str | None = revision_option()
    keep_source: bool = flag(
        "--keep-source",
        help="Leave a repository's shards in the hub's cache, instead of deleting each once "
        "encoded.",
    )
    no_vision: bool = flag("--no-vision", help="Leave the projector for pictures out.")
    vision_only: bool = flag(
        "--vision-only", "--mmproj", help="Write the projector for pictures alone."
    )
    vision_type: str | None = option(
        "--vision-type", kind=str, metavar="TYPE",
        help="What the projector's matrices are stored as: f16, bf16, q8_0, q4_0 or f32.",
    )  # fmt: skip
    requantize: bool = flag(
        "--requantize",
        help="Encode tensors of a GGUF that were rounded to fewer bits than Q8_0's already.",
    )
    split_size: int | None = option(
        "--split-size", kind=values.file_size, metavar="N(M|G)",
        help="Write parts with at most this many bytes of tensors; llama.cpp loads them together.",
    )  # fmt: skip
    force: bool = flag(
        "--force",
        help="Replace the output if it exists, and the partial output of another conversion.",
    )
    as_json: bool = json_flag()

    @staticmethod
    def defaults() -> dict[str, object]:
        """What `convert` declares."""
        from ..convert.vision import DEFAULT_VISION_TYPE
        from ..quant.recipes import DEFAULT_RECIPE

        return {"recipe": DEFAULT_RECIPE, "vision_type": DEFAULT_VISION_TYPE}


@command(ConvertOptions, recipes=True)
def convert(options: ConvertOptions) -> None:
    """Convert a checkpoint, or a GGUF, to a GGUF file, in one pass.

    SOURCE is a directory with config.json, tokenizer.json and safetensors, as published; or a
    repository on the Hugging Face Hub. Of a repository one shard is fetched while another is
    encoded, so that the disk holds the output and two shards at most.

    A vision tower becomes a file of its own beside the model, mmproj-SOURCE-TYPE.gguf: what
    llama.cpp's tools take as --mmproj.

    A GGUF in bf16, f16, f32 or q8_0, split or not, becomes one of another recipe with its metadata:
    llama-quantize's bytes, and from bf16 those of the checkpoint. A projector takes --vision-type.

    --fit, --target-size and --target-bpw choose the type of each tensor instead of a recipe, so
    that the model fits and loses as little as it can. What was chosen, and why, is shown first.

    Everything is checked before anything is written, and files get their names when all are whole.
    An interrupted conversion resumes when the same command is given again.

    \b
    llama4 convert Llama-4-Scout-17B-16E-Instruct
    llama4 convert meta-llama/Llama-4-Scout-17B-16E-Instruct --recipe int8 -o scout-int8.gguf
    llama4 convert SOURCE --type 'ffn_down_exps=q6_k' --dry-run
    llama4 convert SOURCE --recipe iq4_xs --imatrix imatrix.gguf
    llama4 convert SOURCE --vision-only --vision-type q8_0
    llama4 convert scout-bf16-00001-of-00005.gguf --recipe int4
    llama4 convert SOURCE --fit 'h100, 131072 tokens' --save-recipe h100.json
    """
    from ..conversion import convert as run_conversion
    from ..terminal.fit_view import fit_view
    from ..terminal.tables import report_view

    check_name(options.source, "convert")
    settings = given(options)
    source, output = settings.pop("source"), settings.pop("output", None)
    settings["text"] = not settings.pop("vision_only", False)
    settings["vision"] = not settings.pop("no_vision", False)
    settings["types"] = values.flattened(options.types)
    settings.pop("as_json", None)
    recipe_file = _recipe_file(options, settings)
    fits: list[Fit] = []
    bar = _Bar()

    def on_fit(found: Fit) -> None:
        fits.append(found)
        if recipe_file is not None:
            found.save(recipe_file)
        if not options.as_json:
            with bar.away():
                present(found, fit_view)

    try:
        with bar:
            report = run_conversion(source, output, progress=bar.show, on_fit=on_fit, **settings)
    except KeyboardInterrupt:
        if fits or not settings.keys() & set(_BUDGETS):
            note("Give the same command again to resume.")
        raise
    record = report.as_dict()
    if fits:
        record["fit"] = fits[0].as_dict()
    give(record, report, report_view, as_json=options.as_json)


class _Bar:
    """A bar that makes way for what is shown in between."""

    def __enter__(self) -> _Bar:
        self._stack = ExitStack()
        self._show = self._stack.enter_context(byte_progress())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, at: Progress) -> None:
        """Draw how far the job is."""
        if self._show is not None:
            self._show(at)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Have no bar while the block runs, and another one after it."""
        self._stack.close()
        yield
        self._show = self._stack.enter_context(byte_progress())


def _recipe_file(options: ConvertOptions, settings: dict[str, Any]) -> Path | None:
    """Where the types that are chosen for a budget are written to, if anywhere."""
    target: Path | None = settings.pop("save_recipe", None)
    if not settings.keys() & set(_BUDGETS):
        if target is not None:
            raise usage_error("--save-recipe goes with --fit, --target-size or --target-bpw")
        return None
    if "recipe" in settings or not settings["text"]:
        raise usage_error("--fit, --target-size and --target-bpw choose the types of the model: "
                          "leave out --recipe and --vision-only")  # fmt: skip
    if target is not None:
        _check_target(target, options.output)
    return target


def _check_target(target: Path, output: str | None) -> None:
    """Raise where the recipe could not be written, before it is made."""
    from ..quant.recipe_file import check_recipe_target

    if output is not None and target.resolve() == Path(output).resolve():
        raise usage_error("--save-recipe and --output are the same file")
    check_recipe_target(target)
