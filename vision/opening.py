"""Opens pictures: a file, its bytes, a data URL, a Pillow image or an array becomes RGB bytes.

Promises that whatever it is given is a picture or one ImageError: what is damaged, truncated, too
large, of another kind or not there. Turns a picture upright as its EXIF says, puts what is
transparent on white, and takes the first frame of an animation. Knows nothing of models.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import importlib.util
import io
import os
import re
import string
import threading
import urllib.parse
import warnings
from typing import TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageError
from ..ranges import check_flag, value_text
from ..units import told_apart
from ..untrusted import Reader, brief
from .download import downloaded

FileInput: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview"
PictureInput: TypeAlias = "FileInput | Image.Image | npt.NDArray[np.uint8]"
"""A path, the bytes of a file, a ``data:`` URL, a Pillow image, or an array of [rows, columns] or
[rows, columns, channels] with 1 (gray), 2 (and alpha), 3 (RGB) or 4 channels (and alpha)."""

RGB: TypeAlias = "npt.NDArray[np.uint8]"
"""A picture as bytes of [rows, columns, 3]."""

MOST_BYTES = 2**30
_READER = Reader(ImageError, MOST_BYTES, "Save the picture smaller, or as JPEG.")

# Pillow opens fifty kinds, some of them with other programs' help. HEIF comes from pillow-heif.
_FORMATS = (
    "AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP",
)  # fmt: skip
_KNOWN = "PNG, JPEG, WebP, GIF, AVIF, TIFF or BMP"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SAVE_AS = "Save it as PNG or JPEG."
_DATA = "the image data"
"""What errors call a picture that is bytes."""

_ORIENTATION = 0x0112  # of EXIF

# Pillow's pieces of a picture: smaller ones stay with the process when the picture is gone.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]

_ARRAY_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}

# Which warnings are shown is a setting of the whole process.
_quiet = threading.Lock()


def open_picture(picture: PictureInput, *, allow_download: bool = False) -> RGB:
    """The picture's pixels, uint8 of [rows, columns, 3].

    What is transparent is put on white, as transformers and Meta's code do it; they take 16 bits a
    pixel of gray for white, and here the upper 8 of them count.

    Args:
        picture: see `PictureInput`.
        allow_download: whether an ``http://`` or ``https://`` URL is fetched.

    Raises:
        ImageError: it is not a picture, or one that is damaged or too large; a URL that may not be
            fetched, or cannot.
    """
    check_flag("allow_download", allow_download)
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if isinstance(picture, Image.Image):
        return np.array(_decoded("the picture", picture))
    return np.array(pixels_of(*bytes_of(picture, allow_download=allow_download)))


def is_file(picture: object) -> TypeGuard[FileInput]:
    """Whether a picture is a file, its bytes or a URL, and not pixels."""
    return isinstance(picture, str | os.PathLike | bytes | bytearray | memoryview)


def bytes_of(picture: object, *, allow_download: bool = False) -> tuple[str, bytes]:
    """What errors call a picture that is a file, and the bytes of that.

    Args:
        picture: a path, bytes or a URL.

    Raises:
        ImageError: it is something else, cannot be read, or is too large.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return _DATA, bytes(picture)
    path = os.fspath(picture) if isinstance(picture, str | os.PathLike) else None
    if not isinstance(path, str):
        raise ImageError(
            "this is not a picture",
            found=value_text(picture),
            expected="a path, bytes, a data: URL, a Pillow image or an array",
        )
    if isinstance(picture, str):
        scheme = path[:8].lower()
        if scheme.startswith("data:"):
            return "the data: URL", _of_data_url(path)
        if scheme.startswith(("http://", "https://")):
            return brief(path), _of_web(path, allow_download)
    if not path:
        raise ImageError("the path of a picture is empty", expected="a file")
    if len(path) > _LONGEST_PATH:  # base64 without data: before it, most likely
        raise ImageError(
            "the path of a picture is too long",
            found=brief(path),
            expected=f"at most {_LONGEST_PATH} characters",
            hint="Give the picture's bytes, or data:image/png;base64, before what is base64.",
        )
    return path, _READER.data(path)


_LONGEST_PATH = 4096
_PIECE = 1 << 20  # characters of base64 that are read at once


def _of_web(url: str, allow_download: bool) -> bytes:
    if not allow_download:
        raise ImageError(
            "a picture from the network is not fetched",
            found=brief(url),
            expected="a path, bytes or a data: URL",
            hint="Download it first, or allow it: allow_download=True",
        )
    return downloaded(url, MOST_BYTES)


_DATA_URL = re.compile(r"data:(?P<type>[^,]{0,200}),", re.IGNORECASE)


def _of_data_url(url: str) -> bytes:
    """The bytes in a ``data:`` URL (RFC 2397)."""
    head = _DATA_URL.match(url)
    if head is None:
        raise ImageError(
            "the data: URL has no comma after its type",
            found=brief(url),
            expected="data:image/png;base64,...",
        )
    kind = head["type"].split(";")
    if kind[0] and not kind[0].strip().lower().startswith(("image/", "application/octet-stream")):
        found = brief(kind[0])
        raise ImageError("the data: URL is not a picture", found=found, expected="image/*")
    if len(url) > MOST_BYTES:
        found, limit = told_apart(len(url), MOST_BYTES)
        raise ImageError("the data: URL is too long", found=found, expected=f"at most {limit}")
    text = url[head.end() :]
    if not any(part.strip().lower() == "base64" for part in kind[1:]):
        return urllib.parse.unquote_to_bytes(text.encode("utf-8", "replace"))
    try:
        return _of_base64(urllib.parse.unquote(text) if "%" in text else text)
    except (binascii.Error, ValueError) as error:
        raise ImageError("the data: URL is not base64", found=str(error)) from None


def _of_base64(text: str) -> bytes:
    """The bytes in base64, with or without its padding, white space and the letters of URLs.

    It is read in pieces: while Python reads one, no other thread runs.

    Raises:
        ValueError: it is something else.
    """
    text = text.rstrip("=" + string.whitespace)
    decoded, letters = [], ""
    for begin in range(0, len(text), _PIECE):
        letters += re.sub(r"\s+", "", text[begin : begin + _PIECE])
        letters = letters.replace("-", "+").replace("_", "/")
        if "=" in letters:
            raise ValueError("padding in the middle")
        whole = len(letters) // 4 * 4
        decoded.append(base64.b64decode(letters[:whole], validate=True))
        letters = letters[whole:]
    return b"".join(
        [*decoded, base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)]
    )


def _of_array(array: npt.NDArray[np.uint8]) -> RGB:
    """The pixels in an array."""
    shape = array.shape
    channels = 1 if array.ndim == 2 else shape[-1] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or channels not in _ARRAY_MODES:
        raise ImageError(
            "the array is not a picture",
            found=f"{array.dtype} of {list(shape)}",
            expected="uint8 of [rows, columns] or [rows, columns, channels], 1 to 4 channels",
            hint="Scale it to 0 to 255, convert it to uint8 and put the channels last.",
        )
    _check_size("the array", shape[1], shape[0])
    if channels == 3:
        return np.array(array, order="C")
    flat = np.ascontiguousarray(array)
    pixels = flat.reshape(shape[:2]) if channels == 1 else flat
    return np.array(_rgb(Image.fromarray(pixels)))


def pixels_of(name: str, data: bytes) -> RGB:
    """The pixels of the first frame in a file's bytes, to be read.

    Args:
        name: what errors call it.
        data: as `bytes_of` gives it.

    Raises:
        ImageError: it is not a picture, or one that is damaged or too large.
    """
    return _decoded(name, _opened(name, data))


def media_type(data: bytes) -> str:
    """The media type of a file that `open_picture` opens, such as ``image/png``."""
    kind = _opened(_DATA, data).format
    return Image.MIME.get(kind or "", "application/octet-stream")


def _opened(name: str, data: bytes) -> Image.Image:
    """A file's first frame, before it is decoded."""
    if not data:
        raise ImageError(f"{name} is empty", expected=_KNOWN)
    _register_heif()
    Image.init()
    known = [kind for kind in _FORMATS if kind in Image.OPEN]
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=known)
    except UnidentifiedImageError:
        raise _unknown(name, data) from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name} has too many pixels",
            found="a decompression bomb, says Pillow",
            expected=_most_pixels_text(),
            hint="Save the picture smaller.",
        ) from None
    except Exception as error:  # whatever a damaged file does to one of Pillow's readers
        raise _damaged(name, error) from None


def _decoded(name: str, image: Image.Image) -> RGB:
    """The pixels of an image that is opened, upright and without transparency, to be read."""
    _check_size(name, *image.size)
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return np.asarray(_rgb(_upright(image)))
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(name, error) from None


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; as it is, where that cannot be read, or says nothing."""
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image  # exif_transpose would give a copy
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, on white where it is transparent."""
    transparency = image.info.get("transparency")
    if image.mode.startswith("I"):
        return _of_wide_gray(image, transparency)
    if image.mode == "F":
        raise ImageError(
            "a picture of floating-point numbers has no fixed range",
            found='Pillow mode "F"',
            expected="8 or 16 bits a pixel",
            hint=_SAVE_AS,
        )
    if image.mode == "La":
        image = image.convert("LA")
    if "A" not in image.getbands() and "a" not in image.getbands() and transparency is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    over = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, over).convert("RGB")


def _of_wide_gray(image: Image.Image, transparency: object) -> Image.Image:
    """16 bits a pixel, or 32 of which no more are used: the upper 8 of the 16."""
    values = np.array(image)
    levels = (np.clip(values, 0, 2**16 - 1).astype(np.uint16) >> 8).astype(np.uint8)
    if isinstance(transparency, int):
        levels[values == transparency] = 255
    return Image.fromarray(levels).convert("RGB")


def _check_size(name: str, columns: int, rows: int) -> None:
    if rows < 1 or columns < 1:
        raise ImageError(f"{name} has no pixels", found=f"{columns}x{rows}")
    most = _most_pixels()
    if most is not None and rows * columns > most:
        raise ImageError(
            f"{name} has too many pixels",
            found=f"{columns}x{rows}",
            expected=_most_pixels_text(),
            hint="Save the picture smaller.",
        )


def _most_pixels() -> int | None:
    """Beyond these Pillow takes a picture for a decompression bomb; None where it takes none."""
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def _most_pixels_text() -> str:
    most = _most_pixels()
    return "fewer" if most is None else f"at most {most:,} (twice PIL.Image.MAX_IMAGE_PIXELS)"


def _register_heif() -> None:
    """Let Pillow read HEIC where pillow-heif is installed."""
    if "HEIF" not in Image.OPEN and importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()


def _unknown(name: str, data: bytes) -> ImageError:
    """The error for a file of no kind that is read."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return ImageError(
            f"{name} is HEIC, which Pillow does not read by itself",
            expected=_KNOWN,
            hint="pip install 'llama4-edge[heic]', or save the picture as JPEG.",
        )
    return ImageError(
        f"{name} is not a picture that can be read",
        found=_kind(data),
        expected=_KNOWN,
        hint=_SAVE_AS,
    )


_SIGNATURES = (
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG"),
    (b"<?xml", "XML, as SVG is"),
    (b"<!DOC", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"GGUF", "a GGUF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1a\x45\xdf\xa3", "a video"),
    (b"8BPS", "a Photoshop document"),
    (b"ID3", "music"),
    (b"OggS", "music or a video"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)


def _kind(data: bytes) -> str:
    """What a file that is no picture is, or how it begins."""
    begin = data[:64].lstrip().lower()
    for signature, kind in _SIGNATURES:
        if begin.startswith(signature.lower()):
            return kind
    if data[4:8] == b"ftyp" or (data[:4] == b"RIFF" and data[8:12] == b"AVI "):
        return "a video"
    try:
        text = data[:200].decode()
    except UnicodeDecodeError:
        return f"a file that begins with {data[:8]!r}"
    return f"text: {brief(text.strip(), 40)!r}" if text.isprintable() else "text"


def _damaged(name: str, error: Exception) -> ImageError:
    words = brief(str(error).partition("\n")[0] or type(error).__name__)
    truncated = "truncated" in words.lower() or isinstance(error, EOFError)
    return ImageError(
        f"{name} is {'truncated' if truncated else 'damaged'}",
        found=words,
        expected="a whole picture",
        hint="Copy or download it again.",
    )
