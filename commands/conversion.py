"""The options of `llama4 convert`. Knows nothing of how anything is converted."""

from __future__ import annotations

from pathlib import Path

import click

from .options import (
    Command,
    byte_count,
    recipe_name,
    revision_option,
    type_override,
)

_OPTIONS = (
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="OUT.gguf",
        help="The file to write.  [default: SOURCE-RECIPE.gguf in this directory]",
    ),
    click.option(
        "--recipe",
        type=recipe_name,
        metavar="NAME",
        default="int4",
        show_default=True,
        help="Which type each tensor gets; see below.",
    ),
    click.option(
        "--type",
        "types",
        type=type_override,
        multiple=True,
        metavar="'REGEX=TYPE'",
        help="A type for the tensors whose name REGEX finds; the first that does, decides.",
    ),
    click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads that encode.  [default: all cores]",
    ),
    click.option("--dry-run", is_flag=True, help="Check everything and report, but write nothing."),
    revision_option,
    click.option(
        "--keep-source",
        is_flag=True,
        help="Leave a repository's shards in the hub's cache, instead of dropping each once "
        "encoded.",
    ),
    click.option(
        "--split-size",
        type=byte_count,
        metavar="N(M|G)",
        help="Write parts with at most so many bytes of tensors, which llama.cpp loads together.",
    ),
    click.option(
        "--force",
        is_flag=True,
        help="Replace the output if it exists, and what another conversion left half done.",
    ),
)


def conversion_options(command: Command) -> Command:
    """What is written, where, and how."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command
