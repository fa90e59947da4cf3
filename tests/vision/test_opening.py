"""Whatever a picture comes as, it is the same RGB; and what is no picture is one clear error."""

from __future__ import annotations

import base64
import http.server
import io
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

from llama4_edge.errors import ImageError, SettingError
from llama4_edge.vision import opening
from llama4_edge.vision.images import image_tiles
from llama4_edge.vision.opening import media_type, open_picture

Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def whole_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta's preprocess.py makes Pillow take truncated files, for the whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)


@pytest.fixture
def rgb() -> Array:
    """Four colours in four quarters, 24 by 40 pixels."""
    picture = np.zeros((40, 24, 3), dtype=np.uint8)
    picture[:20, :12] = (255, 0, 0)
    picture[:20, 12:] = (0, 255, 0)
    picture[20:, :12] = (0, 0, 255)
    picture[20:, 12:] = (255, 255, 0)
    return picture


def saved(picture: Array | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---- what a picture comes as


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF"])
def test_a_lossless_file_has_the_pixels_that_were_saved(kind: str, rgb: Array) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(open_picture(saved(rgb, kind, **options)), rgb)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "JPEG2000"])
def test_a_lossy_file_has_nearly_the_pixels_that_were_saved(kind: str, rgb: Array) -> None:
    large = np.kron(rgb, np.ones((8, 8, 1), dtype=np.uint8))
    read = open_picture(saved(large, kind, quality=95) if kind == "JPEG" else saved(large, kind))
    assert np.abs(read[16:-16, 16:-16].astype(int) - large[16:-16, 16:-16]).mean() < 5


def test_a_path_bytes_a_data_url_an_image_and_an_array_are_the_same_picture(
    tmp_path: Path, rgb: Array
) -> None:
    data = saved(rgb, "PNG")
    path = tmp_path / "ein Bild.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    ways: list[Any] = [
        path, str(path), data, bytearray(data), memoryview(data), Image.open(path),
        Image.fromarray(rgb), rgb, f"data:image/png;base64,{text}",
        f"DATA:image/png;charset=utf-8;base64,{text[:40]}\n{text[40:]}",
        "data:;base64," + text.rstrip("=").replace("+", "-").replace("/", "_"),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
    ]  # fmt: skip
    for way in ways:
        assert np.array_equal(open_picture(way), rgb), str(way)[:60]
    digests = {image_tiles(way).digest for way in ways}
    assert len(digests) == 1


@pytest.mark.parametrize("piece", [3, 4, 5, 7, 64])
def test_base64_is_the_same_in_pieces_of_any_length(
    piece: int, rgb: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_PIECE", piece)
    text = base64.b64encode(saved(rgb, "PNG")).decode()
    lines = "\r\n".join(text[at : at + 9] for at in range(0, len(text), 9))
    for way in (text, lines, text.rstrip("="), f" {text} =\n"):
        assert np.array_equal(open_picture(f"data:image/png;base64,{way}"), rgb)
    for wrong in (
        f"{text[:20]}=={text[20:]}",
        f"{text[:9]}!{text[9:]}",
        text[: len(text) // 4 * 4 - 3],
    ):
        assert "not base64" in str(refusal(f"data:image/png;base64,{wrong}"))


def test_what_it_gives_is_the_callers_own(rgb: Array) -> None:
    opened = open_picture(rgb)
    opened[:] = 7
    assert rgb[0, 0].tolist() == [255, 0, 0]


def test_arrays_may_have_one_to_four_channels() -> None:
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    three = np.stack([gray] * 3, axis=-1)
    assert np.array_equal(open_picture(gray), three)
    assert np.array_equal(open_picture(gray[..., None]), three)
    opaque = np.full_like(gray, 255)
    assert np.array_equal(open_picture(np.stack([gray, opaque], axis=-1)), three)
    assert np.array_equal(open_picture(np.dstack([three, opaque])), three)
    assert np.array_equal(open_picture(three[::-1, ::2]), three[::-1, ::2])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_is_turned_upright(kind: str, orientation: int, rgb: Array) -> None:
    # How the camera stored what is upright, for each orientation of the EXIF standard.
    turned: dict[int, Callable[[Array], Array]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    large = np.kron(rgb, np.ones((4, 4, 1), dtype=np.uint8))
    image = Image.fromarray(np.ascontiguousarray(turned[orientation](large)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = open_picture(saved(image, kind, exif=exif))
    assert upright.shape == large.shape
    for row, column in [(20, 20), (20, 70), (140, 20), (140, 70)]:
        assert np.abs(upright[row, column].astype(int) - large[row, column]).max() < 12


def test_a_damaged_exif_leaves_the_picture_as_it_is(rgb: Array) -> None:
    data = saved(rgb, "PNG")
    at = data.index(b"IDAT") - 4
    exif = png_chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff garbage")
    assert np.array_equal(open_picture(data[:at] + exif + data[at:]), rgb)


# ---- modes


def test_what_is_transparent_is_white_in_every_mode() -> None:
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (200, 100, 50, 255)
    rgba[0, 1] = (200, 100, 50, 128)
    expected = [[[200, 100, 50], [227, 177, 152]], [[255, 255, 255], [255, 255, 255]]]
    image = Image.fromarray(rgba)
    for way in (image, rgba, saved(image, "PNG"), saved(image, "WEBP", lossless=True)):
        assert np.abs(open_picture(way).astype(int) - expected).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putdata([0, 1])
    read = open_picture(saved(palette, "PNG", transparency=0))
    assert read.tolist() == [[[255, 255, 255], [10, 20, 30]]]
    read = open_picture(saved(palette, "GIF", transparency=1))
    assert read.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    gray = Image.fromarray(np.array([[0, 90]], dtype=np.uint8))
    read = open_picture(saved(gray, "PNG", transparency=90))
    assert read.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    for mode in ("LA", "La", "RGBa"):
        source = image.convert("RGBA" if mode == "RGBa" else "LA")
        assert open_picture(source.convert(mode))[1, 1].tolist() == [255, 255, 255], mode


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_pixels_of_every_mode_become_those_that_pillow_makes_of_them(mode: str, rgb: Array) -> None:
    image = Image.fromarray(rgb).convert(mode)
    assert np.array_equal(open_picture(image), np.array(image.convert("RGB")))


def test_cmyk_of_a_jpeg_is_no_negative(rgb: Array) -> None:
    large = np.kron(rgb, np.ones((8, 8, 1), dtype=np.uint8))
    read = open_picture(saved(Image.fromarray(large).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(read[80, 48].astype(int) - (255, 0, 0)).max() < 30


def test_the_upper_8_of_16_bits_count() -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    expected = [[0, 0, 1, 128, 255]]
    for kind in ("PNG", "TIFF", "PPM"):
        read = open_picture(saved(Image.fromarray(levels), kind))
        assert read[..., 0].tolist() == expected, kind
    wide = Image.fromarray(levels.astype(np.int32))
    assert open_picture(wide)[..., 1].tolist() == expected


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert open_picture(data)[0, 0].tolist() == [255, 0, 0], kind


# ---- what is refused


def refusal(picture: Any, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as raised:
        open_picture(picture, **options)
    assert len(str(raised.value)) < 500
    return raised.value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello, world", "the image data is not a picture that can be read, found text: 'hello, "),
        ("Grüße\n".encode(), "found text"),
        (b"\xff\x00\x01\x02", "found a file that begins with b'\\xff"),
        (b"RIFF\0\0\0\0AVI LIST", "found a video"),
        (b"8BPS\0\1", "found a Photoshop document"),
        (b"%PDF-1.7\n", "found a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "found an SVG"),
        (b"<!DOCTYPE html><html>", "found an HTML page"),
        (b"GGUF\x03\0\0\0", "found a GGUF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "found a video"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture that can"),
        (b"\x89PNG\r\n\x1a\n", "the image data is"),
    ],
)
def test_a_file_of_another_kind_is_named(data: bytes, words: str) -> None:
    assert words in str(refusal(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "PPM"])
def test_a_file_that_ends_early_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(noise, kind)
    for length in (len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        error = refusal(data[:length])
        assert error.hint
    assert "truncated" in str(refusal(saved(noise, "JPEG")[:2000]))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", b"x")
    error = refusal(bomb + png_chunk(b"IEND", b""))
    assert error.problem == "the image data has too many pixels"
    assert error.expected == "at most 178,956,970 (twice PIL.Image.MAX_IMAGE_PIXELS)"


def test_pillows_own_limit_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((100, 201), dtype=np.uint8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for way in (picture, Image.fromarray(picture), saved(picture, "PNG")):
        assert "too many pixels" in str(refusal(way))
    # Beyond the limit Pillow warns, and refuses beyond twice the limit.
    assert open_picture(saved(picture[:, :200], "PNG")).shape == (100, 200, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_picture(picture).shape == (100, 201, 3)


def test_a_picture_without_pixels_is_refused() -> None:
    for empty in (np.zeros((0, 5), np.uint8), np.zeros((5, 0, 3), np.uint8)):
        assert "has no pixels" in str(refusal(empty))
    assert "has no pixels" in str(refusal(Image.new("RGB", (0, 3))))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), dtype=np.float32), np.zeros((4, 4, 3), dtype=np.int64), np.zeros(4, "u1"),
        np.zeros((4, 4, 5), "u1"), np.zeros((1, 4, 4, 3), "u1"), np.array("x"), np.array([None]),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)  # fmt: skip
def test_an_array_of_another_kind_is_refused(array: Array) -> None:
    error = refusal(array)
    assert error.problem == "the array is not a picture"
    assert error.found == f"{array.dtype} of {list(array.shape)}"


def test_a_picture_of_floats_is_refused() -> None:
    assert "no fixed range" in str(refusal(Image.new("F", (3, 3))))


def test_a_file_that_is_not_there_or_not_regular_is_refused(tmp_path: Path) -> None:
    assert "none.png does not exist" in str(refusal(tmp_path / "none.png"))
    assert "not a regular file" in str(refusal(tmp_path)) or "directory" in str(refusal(tmp_path))
    assert "too long" in str(refusal("iVBORw0KGgo" * 1000))
    (tmp_path / "a.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x\n")
    assert "Git LFS pointer" in str(refusal(tmp_path / "a.png"))


@pytest.mark.parametrize("value", [None, 3, True, 1.5, [], {}, object(), [[1, 2], [3, 4]]])
def test_what_cannot_be_a_picture_is_refused(value: Any) -> None:
    assert refusal(value).problem == "this is not a picture"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:", "no comma"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,%%%", "not base64"),
        ("data:image/png;base64,ä", "not base64"),
        ("data:text/html;base64,aGVsbG8=", "not a picture, found text/html"),
        ("data:image/png;base64,aGVsbG8=", "not a picture that can be read"),
        ("data:" + "x" * 10_000 + ",", "no comma"),
    ],
)
def test_a_data_url_that_is_none_is_refused(url: str, words: str) -> None:
    assert words in str(refusal(url))


# ---- the network


@pytest.fixture
def site(rgb: Array) -> Iterator[str]:
    data = saved(rgb, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            if self.path == "/a.png":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_picture_from_the_network_is_fetched_only_where_that_is_allowed(
    site: str, rgb: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (f"{site}/a.png", "https://example.org/a.png", "HTTP://x"):
        error = refusal(url)
        assert error.problem == "a picture from the network is not fetched"
        assert "allow_download=True" in str(error)
    assert np.array_equal(open_picture(f"{site}/a.png", allow_download=True), rgb)
    assert "404" in str(refusal(f"{site}/b.png", allow_download=True))
    assert "cannot be fetched" in str(refusal("http://127.0.0.1:1/", allow_download=True))
    assert "cannot be fetched" in str(refusal("http://[", allow_download=True))
    monkeypatch.setattr(opening, "MOST_BYTES", 20)
    assert "too large" in str(refusal(f"{site}/a.png", allow_download=True))


def test_allow_download_is_true_or_false(rgb: Array) -> None:
    with pytest.raises(SettingError, match="allow_download"):
        open_picture(rgb, allow_download="no")  # type: ignore[arg-type]


def test_an_empty_path_is_named() -> None:
    with pytest.raises(ImageError, match="the path of a picture is empty, expected a file"):
        open_picture("")


def test_heic_is_read_with_pillow_heif() -> None:
    """The extra ``heic``."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    pixels = np.full((64, 96, 3), (200, 40, 90), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "HEIF", quality=95)
    opened = open_picture(file.getvalue())
    assert opened.shape == pixels.shape
    assert np.abs(opened.astype(int) - pixels).max() < 8
    assert media_type(file.getvalue()) in ("image/heif", "image/heic")
