"""`llama4 inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from ..terminal.progress import byte_progress
from . import TROUBLE
from .declare import argument, command, flag, json_flag, option, usage_error
from .model_name import check_name
from .output import give


@dataclass(frozen=True)
class InspectOptions:
    """What `llama4 inspect` may be asked."""

    file: str = argument(kind=click.Path())
    tensors: bool = flag("--tensors", help="A line for each tensor too.")
    check: bool = flag(
        "--check", help="Read all of a GGUF and its parts, or a session, and find damage."
    )
    diff: str | None = option(
        "--diff", kind=click.Path(), metavar="OTHER",
        help="Show how FILE differs from the GGUF OTHER instead.",
    )  # fmt: skip
    as_json: bool = json_flag()


@command(InspectOptions)
def inspect(options: InspectOptions) -> int:
    """Show what a GGUF, checkpoint, session or imatrix holds.

    FILE is a GGUF, or a checkpoint directory: its metadata, and its tensors by role with their
    types, bytes and bits per weight; or a session: what was said, and what was read with which
    model and settings; or what `llama4 calibrate` or llama-imatrix wrote, in either form: the
    figures of llama-imatrix --show-statistics, and the tokens that experts saw. With --check, exits
    with 1 when something is damaged.

    With --diff, metadata, types, shapes and numbers of two GGUFs are compared, whatever their types
    are and however they are split: relative differences are to the larger of two numbers, and of
    the RMS to that of the first file. Exits with 0 when nothing differs, 1 when something does, and
    2 when it cannot be told.

    \b
    llama4 inspect scout.gguf
    llama4 inspect scout.gguf --check
    llama4 inspect Llama-4-Scout-17B-16E-Instruct --tensors
    llama4 inspect book.l4s
    llama4 inspect imatrix.gguf
    llama4 inspect scout.gguf --json | jq .bits_per_weight
    llama4 inspect --diff scout-bf16.gguf scout-int4.gguf
    """
    if options.diff is not None:
        return _diff(options.diff, options)
    from ..inspection import inspect as run_inspection
    from ..inspection import is_checkpoint
    from ..terminal.inspection_view import inspection_view

    check_name(options.file, "inspect")
    if options.check and is_checkpoint(Path(options.file)):
        raise usage_error("--check reads a GGUF; a checkpoint is checked as it is converted")
    if options.check:
        with byte_progress() as progress:
            inspection = run_inspection(options.file, check=True, progress=progress)
    else:
        inspection = run_inspection(options.file)
    give(
        inspection.as_dict(),
        inspection,
        partial(inspection_view, tensors=options.tensors),
        as_json=options.as_json,
    )
    return 1 if inspection.damaged else 0


def _diff(first: str, options: InspectOptions) -> int:
    """Compare the file `first` with that of the options."""
    from ..comparison import diff
    from ..terminal.difference_view import difference_view

    if options.tensors or options.check:
        raise usage_error("--diff compares two GGUFs: --tensors and --check are of no effect")
    click.get_current_context().meta[TROUBLE] = 2
    check_name(first, "inspect")
    check_name(options.file, "inspect")
    with byte_progress() as progress:
        difference = diff(first, options.file, progress=progress)
    give(difference.as_dict(), difference, difference_view, as_json=options.as_json)
    return 0 if difference.equal else 1
