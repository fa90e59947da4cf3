"""What commands ask in which models read a text: the text, in which chunks, and where they compute.

Does not know what the commands do.
"""

from __future__ import annotations

from typing import Any

from . import values
from .declare import flag, option


def threads_option() -> Any:
    """How many threads compute."""
    return option(
        "-t",
        "--threads",
        kind=values.whole_number(1),
        help="CPU threads.  [default: one for each core]",
    )


def devices_option() -> Any:
    """Which GPUs of this machine are used."""
    return option(
        "-dev",
        "--device",
        kind=values.devices,
        metavar="NAMES",
        help="GPUs to use, comma-separated; none is the CPU alone.  [default: all]",
    )


def workers_option() -> Any:
    """Which other machines are used."""
    return option(
        "--workers",
        kind=values.words,
        metavar="HOST:PORT,…",
        help="Other machines that run `llama4 worker`, to share the model with.",
    )


def text_option(help: str) -> Any:
    """A text that is read in chunks."""
    return option("-f", "--text", "--file", kind=values.FilePath(str), metavar="FILE", help=help)


def chunk_option(help: str) -> Any:
    """How long a chunk of it is."""
    return option("-c", "--ctx-size", kind=values.whole_number(8), help=help)


def chunks_option() -> Any:
    """How many of them are read."""
    return option("--chunks", kind=values.whole_number(1), help="Read only N chunks.")


def special_flag() -> Any:
    """Whether it may name control tokens."""
    return flag(
        "--parse-special",
        help="Take names of control tokens in the text, as <|eot|>, for those tokens.",
    )
