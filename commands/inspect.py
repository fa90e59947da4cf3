"""`llama4 inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from ..terminal.progress import byte_progress
from .declare import argument, command, flag, json_flag, usage_error
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
    as_json: bool = json_flag()


@command(InspectOptions)
def inspect(options: InspectOptions) -> int:
    """Show what a GGUF, a checkpoint or a session holds.

    FILE is a GGUF, or a checkpoint directory: its metadata, and its tensors by role with their
    types, bytes and bits per weight; or a session: what was said, and what was read with which
    model and settings. With --check, exits with 1 when something is damaged.

    \b
    llama4 inspect scout.gguf
    llama4 inspect scout.gguf --check
    llama4 inspect Llama-4-Scout-17B-16E-Instruct --tensors
    llama4 inspect book.l4s
    llama4 inspect scout.gguf --json | jq .bits_per_weight
    """
    from ..inspection import inspect as run_inspection
    from ..inspection import is_checkpoint
    from ..terminal.tables import inspection_view

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
