"""Opens the model that a command was asked for: hands its options on, and decides nothing.

Promises that the progress of loading and the log are shown. Does not know what the model is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..terminal.progress import loading_progress
from .model_name import check_name
from .options import EngineOptions, PlacementOptions
from .output import show_warnings

if TYPE_CHECKING:
    from ..model import Model


@contextmanager
def opened_model(
    name: str,
    command: str,
    engine: EngineOptions,
    placement: PlacementOptions,
    *,
    projector: str | None = None,
    verbose: bool,
) -> Iterator[Model]:
    """The model that `command` was asked for, with its loading and, where wanted, its log shown."""
    settings = {**engine.settings(), **placement.settings()}
    check_name(name, command)
    from ..model import Model

    show_warnings(verbose=verbose)
    with loading_progress(Path(name).name) as progress:
        model = Model(name, projector=projector, on_load_progress=progress, **settings)
    with model:
        yield model
