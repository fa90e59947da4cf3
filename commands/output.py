"""What a command has to say: its result on stdout, as JSON or as a view, and the log on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import click

from ..terminal.console import show, show_log
from ..terminal.visible import visible, visible_json
from .flags import with_flags

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")


def show_warnings(*, verbose: bool) -> None:
    """Show the library's warnings on stderr, with flags; with `verbose` its whole log."""
    show_log(verbose=verbose, shown=with_flags)


def give(record: object, value: T, view: Callable[[T], RenderableType], *, as_json: bool) -> None:
    """Print `record` as JSON, or else the view of `value` that `present` prints."""
    if as_json:
        print_json(record)
    else:
        present(value, view)


def present(value: T, view: Callable[[T], RenderableType]) -> None:
    """Print a view of `value`, in which no text of a file, the hub or a worker hides anything."""
    show(view(visible(value)))


def print_json(record: object) -> None:
    """One JSON document on stdout, in which no text can steer a terminal."""
    click.echo(visible_json(json.dumps(_finite(record), ensure_ascii=False, indent=2)))


def _finite(value: object) -> object:
    """The same with null for NaN and infinity, for which JSON has no words."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
