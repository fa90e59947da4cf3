"""`llama4 merge`."""

from __future__ import annotations

from dataclasses import dataclass

import click

from ..terminal.console import note
from ..terminal.progress import byte_progress
from . import values
from .declare import argument, command, flag, given, json_flag, option
from .model_name import check_name
from .output import give


@dataclass(frozen=True)
class MergeOptions:
    """What `llama4 merge` may be asked."""

    file: str = argument(kind=click.Path())
    output: str | None = option(
        "-o", "--output", kind=values.FilePath(path_type=str), metavar="OUT.gguf",
        help="The file to write.  [default: like the parts, in this directory]",
    )  # fmt: skip
    dry_run: bool = flag("--dry-run", help="Check everything and report, but write nothing.")
    force: bool = flag("--force", help="Replace the output if it exists.")
    as_json: bool = json_flag()


@command(MergeOptions)
def merge(options: MergeOptions) -> None:
    """Put the parts of a GGUF together into one file.

    FILE is any of the parts; the others lie beside it under their names. Tensors and metadata stay
    as they are, and the file gets its name when it is whole. The parts stay too.

    \b
    llama4 merge scout-int4-00001-of-00004.gguf
    llama4 merge scout-int4-00001-of-00004.gguf -o scout.gguf
    """
    from ..gguf_conversion import merge as run_merge
    from ..terminal.tables import report_view

    check_name(options.file, "merge")
    settings = given(options)
    source, output = settings.pop("file"), settings.pop("output", None)
    settings.pop("as_json", None)
    try:
        with byte_progress() as progress:
            report = run_merge(source, output, progress=progress, **settings)
    except KeyboardInterrupt:
        note("Give the same command again to resume.")
        raise
    give(report.as_dict(), report, report_view, as_json=options.as_json)
