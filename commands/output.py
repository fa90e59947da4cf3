"""What a command has to say, on stdout: as JSON or as a view."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ..terminal.console import show

if TYPE_CHECKING:
    from rich.console import RenderableType


def give(record: object, view: Callable[[], RenderableType], *, as_json: bool) -> None:
    """Print `record` as JSON, or else the view, which is only made then."""
    if as_json:
        print_json(record)
    else:
        show(view())


def print_json(record: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(record, ensure_ascii=False, indent=2))
