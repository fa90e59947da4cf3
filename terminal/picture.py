"""Shows a picture in the terminal: as pixels where it can, in half blocks elsewhere.

textual-image asks the terminal what it can when it is imported, so that happens only where a
picture is shown, and never while something is typed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from PIL import Image

_COLUMNS = 40
"""Of a picture at most; it is for recognizing, not for looking at."""


def show_picture(picture: Image.Image) -> None:
    """Draw a picture below what was written, on a terminal that can be asked what it draws."""
    if not (sys.stdout.isatty() and sys.stdin is not None and sys.stdin.isatty()):
        return
    from textual_image.renderable import Image as Drawing

    console = Console()
    width = min(_COLUMNS, console.width)
    # A cell is about twice as high as wide.
    if 2 * console.height * picture.width < width * picture.height:
        width = max(1, 2 * console.height * picture.width // picture.height)
    console.print(Drawing(picture, width=width, height="auto"))
