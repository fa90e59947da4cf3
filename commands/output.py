"""What a command has to say: its result on stdout, as JSON or as a view, and the log on stderr."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ..terminal.console import show, show_log
from .flags import with_flags

if TYPE_CHECKING:
    from rich.console import RenderableType

# What JSON may hold as it is and a terminal obeys: C1 controls, and overrides of the direction.
_STEERING = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def show_warnings(*, verbose: bool) -> None:
    """Show the library's warnings on stderr, with flags; with `verbose` its whole log."""
    show_log(verbose=verbose, shown=with_flags)


def give(record: object, view: Callable[[], RenderableType], *, as_json: bool) -> None:
    """Print `record` as JSON, or else the view, which is only made then."""
    if as_json:
        print_json(record)
    else:
        show(view())


def print_json(record: object) -> None:
    """One JSON document on stdout, in which no text can steer a terminal."""
    text = json.dumps(record, ensure_ascii=False, indent=2)
    click.echo(_STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text))
