"""Opens the model that a command was asked for: hands its options on, and decides nothing.

Promises that the progress of loading and the log are shown. Does not know what the model is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..terminal.console import show_log
from ..terminal.progress import loading_progress
from .options import MODEL, PLACEMENT, VERBOSE, placement_of

if TYPE_CHECKING:
    from ..model import Model


@contextmanager
def opened_model(ctx: click.Context, path: Path) -> Iterator[Model]:
    """The model that was asked for, with its loading shown and its log where it was wanted.

    ``-dev`` alone chooses GPUs; with any other flag of a placement the model is placed by hand.
    """
    from ..model import Model

    show_log(verbose=ctx.meta[VERBOSE])
    options = dict(ctx.meta.get(MODEL, {}))
    placement = placement_of(ctx)
    if ctx.meta.get(PLACEMENT, {}).keys() <= {"devices"}:
        options["devices"] = placement.devices
    else:
        options["placement"] = placement
    with loading_progress(path.name) as progress:
        model = Model(path, on_load_progress=progress, **options)
    with model:
        yield model
