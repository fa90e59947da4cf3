"""`llama4 split`."""

from __future__ import annotations

from dataclasses import dataclass

import click

from ..terminal.console import note
from ..terminal.progress import byte_progress
from . import values
from .declare import argument, command, flag, given, json_flag, option, usage_error
from .model_name import check_name
from .output import give


@dataclass(frozen=True)
class SplitOptions:
    """What `llama4 split` may be asked."""

    file: str = argument(kind=click.Path())
    size: int | None = option(
        "--size", kind=values.file_size, metavar="N(M|G)",
        help="Bytes of tensors that one part may hold; a larger tensor has one of its own.",
    )  # fmt: skip
    parts: int | None = option(
        "--parts", kind=values.whole_number(2), help="How many parts, as even as tensors allow."
    )
    output: str | None = option(
        "-o", "--output", kind=values.FilePath(path_type=str), metavar="NAME",
        help="What the parts are called.  [default: like FILE, in this directory]",
    )  # fmt: skip
    dry_run: bool = flag("--dry-run", help="Check everything and report, but write nothing.")
    force: bool = flag("--force", help="Replace parts that exist.")
    as_json: bool = json_flag()


@command(SplitOptions)
def split(options: SplitOptions) -> None:
    """Divide a GGUF into parts, as llama-gguf-split does.

    FILE is a text model, or any part of one that is split already. llama.cpp and all commands here
    load the parts as one model: give them the first. Tensors and metadata stay as they are, and
    parts get their names when all are whole.

    \b
    llama4 split scout-int4.gguf --size 20G
    llama4 split scout-int4.gguf --parts 4 -o /media/stick/scout
    """
    from ..gguf_conversion import split as run_split
    from ..terminal.tables import report_view

    check_name(options.file, "split")
    if (options.size is None) == (options.parts is None):
        raise usage_error("One of --size and --parts is needed.")
    settings = given(options)
    settings["split_size"] = settings.pop("size", None)
    source, output = settings.pop("file"), settings.pop("output", None)
    settings.pop("as_json", None)
    try:
        with byte_progress() as progress:
            report = run_split(source, output, progress=progress, **settings)
    except KeyboardInterrupt:
        note("Give the same command again to resume.")
        raise
    give(report.as_dict(), report, report_view, as_json=options.as_json)
