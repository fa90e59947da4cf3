"""No file, array or URL is a traceback, a warning or much memory."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from llama4_edge.errors import ImageError
from llama4_edge.vision.images import image_tiles
from llama4_edge.vision.opening import open_picture
from tests.fuzzing import damaged_bytes, efforts, fuzz, hostile_values

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "PPM", "JPEG2000", "APNG", "PNG16")


def sound(kind: str) -> bytes:
    noise = np.random.default_rng(len(kind)).integers(0, 256, (24, 17, 3), dtype=np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(noise)
    options: dict[str, Any] = {}
    if kind in ("GIF", "APNG"):
        options = {"save_all": True, "append_images": [image.rotate(180)]}
    if kind in ("JPEG", "TIFF", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    if kind == "PNG16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    image.save(stream, kind.removeprefix("A").removesuffix("16"), **options) if kind in (
        "APNG", "PNG16"
    ) else image.save(stream, kind, **options)  # fmt: skip
    return stream.getvalue()


@efforts
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_a_picture_or_one_error(
    kind: str, effort: settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    # A header may claim any size below this.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)

    def check(data: bytes) -> None:
        try:
            rgb = open_picture(data)
        except ImageError as error:
            assert len(str(error)) < 1000
        else:
            assert rgb.dtype == np.uint8
            assert rgb.ndim == 3
            assert rgb.shape[2] == 3

    fuzz(check, damaged_bytes(sound(kind)), effort)


@efforts
def test_an_array_of_any_shape_is_tiles_or_one_error(effort: settings) -> None:
    def check(shape: list[int]) -> None:
        try:
            tiles = image_tiles(np.zeros(shape, dtype=np.uint8))
        except ImageError:
            return
        rows, columns = tiles.grid
        assert len(tiles) == rows * columns + (rows * columns > 1)

    sides = st.sampled_from([0, 1, 2, 3, 4, 5, 335, 337])
    fuzz(check, st.lists(sides, max_size=4), effort)


@efforts
def test_any_value_is_a_picture_or_one_error(effort: settings) -> None:
    def check(value: Any) -> None:
        with pytest.raises(ImageError) as raised:
            open_picture(value)
        assert len(str(raised.value)) < 1000

    texts = st.text(max_size=30)
    urls = st.builds(lambda head, text: head + text, st.sampled_from(
        ["data:", "data:,", "data:image/png;base64,", "data:image/png,%", "http://", ""]), texts
    )  # fmt: skip
    fuzz(check, st.one_of(hostile_values, urls, st.binary(max_size=40)), effort)
