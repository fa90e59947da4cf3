"""Pictures that were cut before: opened once, and cut again only where their pixels are wanted."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from llama4_edge.chat.pictures import picture_part
from llama4_edge.errors import ImageError
from llama4_edge.runtime.features import SeenPicture
from llama4_edge.vision import opening, seen
from llama4_edge.vision.images import image_tiles
from llama4_edge.vision.seen import SeenPictures
from tests.reference.pictures import noise

Array = npt.NDArray[np.uint8]


def png(pixels: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose pixels were decoded."""
    names: list[str] = []
    decode = opening.pixels_of

    def counted(name: str, data: bytes) -> Array:
        names.append(name)
        return decode(name, data)

    monkeypatch.setattr(opening, "pixels_of", counted)
    return names


def test_a_picture_is_decoded_once_however_it_is_given(tmp_path: Path, opened: list[str]) -> None:
    data, pictures = png(noise(400, 300)), SeenPictures()
    file = tmp_path / "a.png"
    file.write_bytes(data)
    expected = image_tiles(noise(400, 300))
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for picture in (file, str(file), data, bytearray(data), url):
        tiles = pictures.tiles(picture)
        assert (tiles.grid, tiles.size, len(tiles)) == (expected.grid, expected.size, 3)
        assert tiles.digest == expected.digest
        assert np.array_equal(tiles.levels, expected.levels)
    assert opened == [str(file)]


def test_a_file_that_has_changed_is_another_picture(tmp_path: Path) -> None:
    file, pictures = tmp_path / "a.png", SeenPictures()
    file.write_bytes(png(noise(40, 40)))
    before = pictures.tiles(file)
    file.write_bytes(png(noise(700, 40)))
    assert pictures.tiles(file).grid != before.grid


def test_pixels_are_cut_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, pixels = SeenPictures(), noise(500, 300)
    expected = pictures.tiles(pixels)
    monkeypatch.setattr(seen, "cut", None)
    for again in (pixels, pixels.copy(), Image.fromarray(pixels), expected):
        assert np.array_equal(pictures.tiles(again).levels, expected.levels)
    with pytest.raises(TypeError):
        pictures.tiles(noise(501, 300))


def test_tiles_are_kept_within_a_bound_and_what_they_were_for_longer(
    monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    one = 336 * 336 * 3
    monkeypatch.setattr(seen, "_MOST_BYTES", 2 * one)
    monkeypatch.setattr(seen, "_MOST_SEEN", 4)
    pictures = SeenPictures()
    files = [png(noise(50 + number, 40)) for number in range(6)]
    tiles = [pictures.tiles(file) for file in files]
    assert sum(levels.nbytes for levels in pictures._levels.values()) == 2 * one
    assert [pictures.of_file(file) is None for file in files] == [True, True, *[False] * 4]
    # The third is known, and cut again when its pixels are wanted.
    again = pictures.tiles(files[2])
    assert again.digest == tiles[2].digest
    assert len(opened) == 6
    assert np.array_equal(again.levels, tiles[2].levels)
    assert np.array_equal(again.pixels, tiles[2].pixels)
    assert len(opened) == 7


def test_a_picture_of_another_process_is_not_opened_for_a_prompt(opened: list[str]) -> None:
    data = png(noise(800, 300))
    tiles = image_tiles(data)
    opened.clear()
    first, second = SeenPictures(), SeenPictures()
    first.tiles(data)
    known = first.of_file(data)
    assert known is not None
    second.remember(known)
    opened.clear()
    again = second.tiles(data)
    assert (again.grid, again.size, again.n_tokens) == (tiles.grid, tiles.size, tiles.n_tokens)
    assert (again.digest, str(again), len(again)) == (tiles.digest, str(tiles), len(tiles))
    assert opened == []
    assert np.array_equal(again.levels, tiles.levels)
    assert opened == ["the image data"]


def test_a_picture_that_is_not_what_was_remembered_is_an_error_once() -> None:
    data, pictures = png(noise(60, 60)), SeenPictures()
    first = SeenPictures()
    first.tiles(data)
    known = first.of_file(data)
    assert known is not None
    pictures.remember(SeenPicture(known.file, known.size, bytes(32)))
    tiles = pictures.tiles(data)
    with pytest.raises(ImageError, match="the image data is not what the session was made with"):
        _ = tiles.levels
    assert pictures.tiles(data).digest == image_tiles(data).digest


def test_making_a_part_of_a_message_opens_the_picture_for_all_that_follows(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama4_edge.chat.pictures.SEEN", pictures := SeenPictures())
    file = tmp_path / "a.png"
    file.write_bytes(png(noise(350, 90)))
    url = picture_part(file)["image_url"]["url"]
    assert pictures.tiles(url).grid == (1, 2)
    assert opened == [str(file)]
    for pixels in (noise(360, 90), Image.fromarray(noise(361, 90))):
        url = picture_part(pixels)["image_url"]["url"]
        assert len(pictures.tiles(url).levels) == 3
    assert opened == [str(file)]


def test_what_tiles_have_of_a_picture_is_the_picture() -> None:
    small = noise(336, 200)
    assert np.array_equal(image_tiles(small).picture, small)
    exact = noise(672, 672)
    assert np.array_equal(image_tiles(exact).picture, exact)
    assert image_tiles(noise(1000, 3000)).picture.shape == (2016, 672, 3)
