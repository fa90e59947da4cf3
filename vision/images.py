"""Cuts pictures into tiles, as Llama 4 was trained to see them.

Promises the bytes of transformers' ``Llama4ImageProcessor`` before it normalizes, and the tokens of
``Llama4Processor``; tests compare every byte. Meta's reference (llama-models: ``preprocess.py``,
``chat_format.py``) chooses the same grids and tokens, and resizes with Pillow, so that its bytes
differ by one here and there. Knows nothing of features.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .layout import TILE_SIZE, Grid, image_token_count, tile_count, tile_grid
from .resizing import Planes, resize

if TYPE_CHECKING:
    from .opening import RGB, PictureInput


@dataclass(frozen=True, eq=False)
class ImageTiles:
    """A picture cut into tiles.

    Attributes:
        levels: uint8 of [tiles, 336, 336, 3]: row by row, and the whole picture last if there is
            more than one; RGB.
        grid: rows and columns of tiles, without the last.
        size: columns and rows of pixels of the picture.
    """

    levels: npt.NDArray[np.uint8] = field(repr=False)
    grid: Grid
    size: tuple[int, int]

    def __len__(self) -> int:
        return tile_count(self.grid)

    def __str__(self) -> str:
        rows, columns = self.grid
        tiles = "1 tile" if len(self) == 1 else f"{rows}x{columns} tiles and the whole"
        return f"{self.size[0]}x{self.size[1]} pixels, {tiles}, {self.n_tokens:,} tokens"

    @cached_property
    def pixels(self) -> npt.NDArray[np.float32]:
        """What the vision tower is given, float32 of [tiles, 3, 336, 336], from -1 to 1.

        transformers computes this in bfloat16, whose values are up to 2⁻⁸ off.
        """
        return np.ascontiguousarray(_NORMALIZED[self.levels.transpose(0, 3, 1, 2)])

    @property
    def picture(self) -> npt.NDArray[np.uint8]:
        """The picture as the tiles have it, uint8 of [rows, columns, 3], without what is black."""
        rows, columns = self.grid
        tiles = self.levels[: rows * columns].reshape(rows, columns, TILE_SIZE, TILE_SIZE, 3)
        canvas = tiles.swapaxes(1, 2).reshape(rows * TILE_SIZE, columns * TILE_SIZE, 3)
        width, height = self.size
        new_height, new_width = _fitted(height, width, self.grid)
        shown: npt.NDArray[np.uint8] = canvas[:new_height, :new_width]
        return shown

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name the tiles: SHA-256 of their grid and pixels."""
        head = b"llama4-edge tiles %d %d " % self.grid
        return hashlib.sha256(head + self.levels.tobytes()).digest()

    @property
    def n_tokens(self) -> int:
        """How many tokens the picture takes in a prompt."""
        return image_token_count(self.grid)


# Level by level: (level / 255 - mean) / deviation, both 0.5.
_NORMALIZED: npt.NDArray[np.float32] = (
    np.arange(256, dtype=np.float32) * np.float32(1 / 255) - np.float32(0.5)
) / np.float32(0.5)


def image_tiles(picture: PictureInput, *, allow_download: bool = False) -> ImageTiles:
    """The tiles in which the model sees a picture.

    At most 16 tiles of 336x336 pixels, in the grid that enlarges the picture least, or shrinks it
    least; what the picture does not cover is black, right of it and below. More than one tile are
    followed by one of the whole picture, stretched to a square.

    Args:
        picture: a path, the bytes of a file (PNG, JPEG, WebP, GIF, AVIF, TIFF, BMP; the first
            frame), a ``data:`` URL, a Pillow image, or an array of uint8, [rows, columns] or
            [rows, columns, channels]. It is turned upright as its EXIF says; what is transparent
            is white.
        allow_download: whether an ``http://`` or ``https://`` URL is fetched.

    Raises:
        ImageError: it is not a picture, or one that is damaged or too large.
    """
    from .opening import open_picture  # with Pillow, which a model without pictures does without

    return cut(open_picture(picture, allow_download=allow_download))


def cut(rgb: RGB) -> ImageTiles:
    """The tiles of a picture that was opened."""
    height, width = rgb.shape[:2]
    grid = tile_grid(width, height)
    planes: Planes = rgb.transpose(2, 0, 1)
    rows, columns = grid
    canvas = np.zeros((3, rows * TILE_SIZE, columns * TILE_SIZE), dtype=np.uint8)
    new_height, new_width = _fitted(height, width, grid)
    canvas[:, :new_height, :new_width] = resize(planes, new_height, new_width)
    cut = canvas.reshape(3, rows, TILE_SIZE, columns, TILE_SIZE).transpose(1, 3, 2, 4, 0)
    tiles = cut.reshape(-1, TILE_SIZE, TILE_SIZE, 3)
    if len(tiles) > 1:
        whole = resize(planes, TILE_SIZE, TILE_SIZE).transpose(1, 2, 0)
        tiles = np.concatenate([tiles, whole[None]])
    return ImageTiles(np.ascontiguousarray(tiles), grid, (width, height))


def _fitted(height: int, width: int, grid: Grid) -> tuple[int, int]:
    """Rows and columns of pixels that the picture has among its tiles.

    It keeps its proportions, and is not enlarged beyond a tile.
    """
    most_rows = min(max(height, TILE_SIZE), grid[0] * TILE_SIZE)
    most_columns = min(max(width, TILE_SIZE), grid[1] * TILE_SIZE)
    by_rows, by_columns = most_rows / height, most_columns / width
    if by_columns < by_rows:
        return max(min(math.floor(height * by_columns), most_rows), 1), most_columns
    return most_rows, max(min(math.floor(width * by_rows), most_columns), 1)
