"""Opens the model that a command was asked for: hands its options on, and decides nothing.

Promises that the progress of loading and the log are shown. Does not know what the model is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..terminal.progress import loading_progress
from .options import EngineOptions, PlacementOptions
from .output import show_warnings

if TYPE_CHECKING:
    from ..model import Model


@contextmanager
def opened_model(
    path: Path, engine: EngineOptions, placement: PlacementOptions, *, verbose: bool
) -> Iterator[Model]:
    """The model that was asked for, with its loading shown and its log where it was wanted."""
    settings = {**engine.settings(), **placement.settings()}
    from ..model import Model

    show_warnings(verbose=verbose)
    with loading_progress(path.name) as progress:
        model = Model(path, on_load_progress=progress, **settings)
    with model:
        yield model
