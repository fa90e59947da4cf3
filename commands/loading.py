"""Opens the model that a command was asked for: hands its options on, and decides nothing.

Promises that the progress of loading and the log are shown. Does not know what the model is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelFileError, did_you_mean
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
    check_exists(path)
    from ..model import Model

    show_warnings(verbose=verbose)
    with loading_progress(path.name) as progress:
        model = Model(path, on_load_progress=progress, **settings)
    with model:
        yield model


def check_exists(path: Path) -> None:
    """Refuse the name of something that is not a file, with the command that makes it one.

    Raises:
        ModelFileError: nothing of that name exists.
    """
    try:
        path.stat()
    except FileNotFoundError:
        raise ModelFileError(f"there is no file {path}", hint=_next_command(path)) from None
    except OSError:
        pass  # what is wrong is said where it is read


def _next_command(path: Path) -> str | None:
    """What to do about a name that is not one of a file."""
    from ..convert.presets import PRESETS
    from ..hub.names import parse_repository

    if str(path) in PRESETS:
        return (
            f"{path} is a model that `llama4 plan` and `llama4 bench --synthetic` know. To run it, "
            "convert its checkpoint (llama4 convert) or fetch a GGUF (llama4 pull)."
        )
    repository, _, quantization = str(path).partition(":")
    if not path.suffix and (name := parse_repository(repository)):
        return f"If it is a repository, fetch it first: llama4 pull {name} {quantization}".rstrip()
    folder = path.parent if path.parent.is_dir() else Path()
    return did_you_mean(path.name, [file.name for file in folder.glob("*.gguf")])
