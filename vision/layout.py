"""How many tiles a picture of a size is cut into, and which tokens stand for them in a prompt.

Promises the grids and tokens of transformers and of Meta's reference. Needs no picture.
"""

from __future__ import annotations

import math

import numpy as np

TILE_SIZE = 336
"""Pixels of a tile's side."""

MAX_TILES = 16
"""Tiles of a picture, without the global one."""

PATCHES_PER_TILE = 144
"""Tokens of a tile: 24 by 24 patches of 14 pixels, of which the pixel shuffle joins 2 by 2."""

IMAGE_START, IMAGE, IMAGE_END = "<|image_start|>", "<|image|>", "<|image_end|>"
PATCH, TILE_X, TILE_Y = "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>"

Grid = tuple[int, int]
"""Rows and columns of tiles."""


def tile_grid(width: int, height: int) -> Grid:
    """Rows and columns of tiles for a picture of so many pixels.

    The one with the smallest scale of at least 1; if each would shrink the picture, the one that
    shrinks it least; of several the smallest. The scales are float32, in which the reference
    compares them: it decides ties.
    """
    sides = np.array(_GRIDS, dtype=np.float32) * np.float32(TILE_SIZE)
    scales = np.min(sides / np.array([height, width], dtype=np.float32), axis=1)
    enlarging = scales[scales >= 1]
    scale = enlarging.min() if len(enlarging) else scales.max()
    best = [grid for grid, reached in zip(_GRIDS, scales, strict=True) if reached == scale]
    return min(best, key=math.prod)


_GRIDS = tuple(
    (rows, columns)
    for rows in range(1, MAX_TILES + 1)
    for columns in range(1, MAX_TILES + 1)
    if rows * columns <= MAX_TILES
)


def tile_count(grid: Grid) -> int:
    """How many tiles a picture of this grid has, with the one of the whole picture."""
    tiles = math.prod(grid)
    return tiles + (tiles > 1)


def image_token_names(grid: Grid) -> list[str]:
    """The tokens that stand for a picture in a prompt, by name.

    A start, each row's tiles between separators, the whole picture, an end. Each `PATCH` is one row
    of its tile's features.
    """
    rows, columns = grid
    tile = [PATCH] * PATCHES_PER_TILE
    names = [IMAGE_START]
    if rows * columns > 1:
        for _ in range(rows):
            names += tile
            for _ in range(columns - 1):
                names += [TILE_X, *tile]
            names.append(TILE_Y)
    return [*names, IMAGE, *tile, IMAGE_END]


def image_token_count(grid: Grid) -> int:
    """How many tokens a picture of this grid takes in a prompt."""
    tiles = math.prod(grid)
    # One separator a tile; and start, image and end.
    return PATCHES_PER_TILE + 3 + (tiles * (PATCHES_PER_TILE + 1) if tiles > 1 else 0)
