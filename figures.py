"""How a picture of figures is saved: matplotlib, an extra, and one error where it is missing.

Draws nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OutputError
from .system.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def saved_figure(
    path: str | os.PathLike[str], down: int, across: int, size: tuple[float, float]
) -> Iterator[tuple[Figure, Any]]:
    """A figure and its panels, an array of [down, across], to draw in; saved as the name ends.

    Args:
        size: of the figure, in inches.

    Raises:
        OutputError: matplotlib is not installed, or the file cannot be written.
    """
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(down, across, figsize=size, squeeze=False)
    try:
        yield figure, panels
        figure.tight_layout()
        picture = BytesIO()
        figure.savefig(picture, format=Path(path).suffix[1:] or "png", dpi=150)
        write_atomically(path, picture.getvalue())
    except (OSError, ValueError) as error:
        raise _cannot(path, getattr(error, "strerror", None) or error) from error
    finally:
        pyplot.close(figure)


def check_figure(path: str | os.PathLike[str]) -> None:
    """Raise where `saved_figure` would, before hours of measuring what is to be drawn.

    Raises:
        OutputError: matplotlib is not installed, or there can be no picture of that name.
    """
    formats = _pyplot().FigureCanvasBase.get_supported_filetypes()
    path = Path(path)
    if path.suffix[1:].lower() not in {"", *formats}:
        raise _cannot(path, f"a name that ends in {path.suffix}")
    if path.is_dir() or not path.parent.is_dir():
        raise _cannot(path, "a directory" if path.is_dir() else f"no directory {path.parent}")


def _pyplot() -> Any:
    try:
        # Only here: it is an extra, and takes a second to import.
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise OutputError(
            "a plot needs matplotlib, which is not installed",
            hint="Install it with: pip install 'llama4-edge[plot]'",
        ) from error
    return pyplot


def _cannot(path: str | os.PathLike[str], found: object) -> OutputError:
    return OutputError(
        f"{os.fspath(path)}: the plot cannot be written",
        found=found,
        hint="Give a .png, .svg or .pdf in a directory that exists.",
    )
