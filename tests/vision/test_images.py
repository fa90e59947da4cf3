"""Grids, the order of tiles, padding and tokens, on pictures whose tiles are known by sight."""

from __future__ import annotations

import numpy as np
import pytest

import llama4_edge
from llama4_edge.vision.images import image_tiles
from llama4_edge.vision.layout import (
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    PATCH,
    TILE_X,
    TILE_Y,
    image_token_count,
    image_token_names,
    tile_grid,
)


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (1344, 1344, (4, 4)),
        (1920, 1080, (3, 5)),
        (1080, 2340, (5, 3)),
        (4032, 3024, (3, 4)),
        (337, 335, (1, 2)),
        (336, 336, (1, 1)),
        (13, 17, (1, 1)),
        (10_000, 1, (1, 16)),
        (1, 10_000, (16, 1)),
    ],
)
def test_the_grid_enlarges_least_or_shrinks_least(
    width: int, height: int, grid: tuple[int, int]
) -> None:
    assert tile_grid(width, height) == grid


def test_tiles_come_row_by_row_and_the_whole_picture_last() -> None:
    picture = np.zeros((2 * 336, 3 * 336, 3), dtype=np.uint8)
    for row in range(2):
        for column in range(3):
            picture[336 * row : 336 * (row + 1), 336 * column : 336 * (column + 1)] = (
                10 * row + column,
                200,
                255,
            )
    tiles = image_tiles(picture)
    assert tiles.grid == (2, 3)
    assert tiles.levels.shape == (7, 336, 336, 3)
    assert [tile[0, 0, 0] for tile in tiles.levels[:6]] == [0, 1, 2, 10, 11, 12]
    assert all(np.ptp(tile[..., 0]) == 0 for tile in tiles.levels[:6])
    # Stretched to a square: the middle of the first row is column 1.
    assert tiles.levels[6][10, 168].tolist() == [1, 200, 255]


def test_a_picture_of_one_tile_is_not_resized_and_has_no_second() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    tiles = image_tiles(picture)
    assert tiles.grid == (1, 1)
    assert np.array_equal(tiles.levels, picture[None])
    exact = (picture.astype(np.float64) / 255 - 0.5) / 0.5
    assert tiles.pixels.shape == (1, 3, 336, 336)
    assert tiles.pixels.dtype == np.float32
    assert tiles.pixels.flags.c_contiguous
    assert np.abs(tiles.pixels[0].transpose(1, 2, 0) - exact).max() < 2**-22


def test_what_the_picture_does_not_cover_is_black_right_and_below() -> None:
    tiles = image_tiles(np.full((100, 336, 3), 255, dtype=np.uint8))
    assert tiles.grid == (1, 1)
    assert np.all(tiles.levels[0, :100] == 255)
    assert np.all(tiles.levels[0, 100:] == 0)
    assert np.all(tiles.pixels[0, :, 100:] == -1.0)
    tiles = image_tiles(np.full((336, 100, 3), 255, dtype=np.uint8))
    assert np.all(tiles.levels[0, :, :100] == 255)
    assert np.all(tiles.levels[0, :, 100:] == 0)


def test_a_small_picture_is_enlarged_to_a_tile_and_no_further() -> None:
    # 100 by 500: no grid's side is smaller than the picture's, so it keeps its size.
    tiles = image_tiles(np.full((500, 100, 3), 255, dtype=np.uint8))
    assert tiles.grid == (2, 1)
    assert int((tiles.levels[:2, :, :, 0] == 255).sum()) == 500 * 100
    # 50 by 100 becomes 168 by 336.
    tiles = image_tiles(np.full((100, 50, 3), 255, dtype=np.uint8))
    assert int((tiles.levels[0, :, :, 0] == 255).sum()) == 168 * 336


def test_tokens_are_rows_of_tiles_between_separators_and_the_whole_at_the_end() -> None:
    tile = [PATCH] * 144
    assert image_token_names((1, 1)) == [IMAGE_START, IMAGE, *tile, IMAGE_END]
    row = [*tile, TILE_X, *tile, TILE_Y]
    assert image_token_names((2, 2)) == [IMAGE_START, *row, *row, IMAGE, *tile, IMAGE_END]


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (3, 5), (16, 1), (4, 4)])
def test_tokens_are_counted_without_writing_them(grid: tuple[int, int]) -> None:
    assert image_token_count(grid) == len(image_token_names(grid))


def test_the_digest_is_that_of_what_is_seen() -> None:
    picture = np.zeros((336, 336, 3), dtype=np.uint8)
    other = picture.copy()
    other[335, 335, 2] = 1
    digest = image_tiles(picture).digest
    assert len(digest) == 32
    assert digest == image_tiles(picture.copy()).digest
    assert digest != image_tiles(other).digest


def test_the_public_function_is_this_one_and_says_what_it_made() -> None:
    assert llama4_edge.image_tiles is image_tiles
    tiles = image_tiles(np.zeros((1080, 1920, 3), dtype=np.uint8))
    assert str(tiles) == "1920x1080 pixels, 3x5 tiles and the whole, 2,322 tokens"
    assert len(tiles) == 16
