"""``--image`` and ``--mmproj``; pictures whose files are named, dropped or pasted in a chat."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..errors import ImageError
from ..untrusted import brief
from .declare import option, usage_error

if TYPE_CHECKING:
    from ..chat.conversation import Content
    from ..chat.pictures import Part
    from ..model import Model

_SUFFIXES = {
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff",
    ".webp",
}  # fmt: skip

# What a terminal writes where a file is dropped: a path from the root or a URL of it, in quotes or
# with a backslash before what a shell would take for something else.
_DROPPED = re.compile(
    r"""(?<!\S)(?:'(?P<single>(?:/|~/|file:///)[^'\n]*)'|"(?P<double>(?:/|~/|file:///)[^"\n]*)\""""
    r"""|(?P<bare>(?:/|~/|file:///)(?:\\.|[^\s\\])*))(?!\S)"""
)


def projector_option() -> Any:
    """The option that several commands share."""
    return option(
        "-mm", "--mmproj", kind=str, metavar="FILE",
        help="The GGUF of the vision tower.  [default: the only mmproj-*.gguf beside the model]",
    )  # fmt: skip


@dataclass(frozen=True)
class PictureOptions:
    """What is shown before a prompt."""

    images: tuple[str, ...] = option(
        "--image", kind=str, metavar="FILE", multiple=True,
        help="Show a picture (PNG, JPEG, WebP, GIF, AVIF, TIFF, BMP; HEIC with the extra heic) "
        "before the prompt; - is standard input. May be given several times.",
    )  # fmt: skip
    video: str | None = option(
        "--video", kind=str, metavar="FILE",
        help="Show frames of a video before the prompt, as pictures of one tile with their times.",
    )  # fmt: skip
    fps: float | None = option(
        "--fps", kind=float, metavar="N", help="Frames of the video a second.  [default: 1]"
    )
    projector: str | None = projector_option()

    @property
    def given(self) -> str | None:
        """The flag of what is to be shown, None where nothing is."""
        return "--image" if self.images else "--video" if self.video else None

    def parts(self) -> list[Part]:
        """Parts of a message with the pictures, and with the frames.

        Raises:
            click.UsageError: there are frames a second and no video.
            ImageError: a file is not a picture or a video, or cannot be read.
        """
        if self.video is None:
            if self.fps is not None:
                raise usage_error("--fps is for --video")
            return read_images(self.images)
        if self.video == "-":
            raise usage_error("--video takes a file: a video cannot be read from standard input")
        from ..chat.pictures import video_parts

        return [
            *read_images(self.images),
            *video_parts(self.video, 1.0 if self.fps is None else self.fps),
        ]


def read_images(paths: Sequence[str]) -> list[Part]:
    """Parts of a message with the pictures of these files.

    Raises:
        ImageError: one is not a picture, or cannot be read.
    """
    if not paths:
        return []
    from ..chat.pictures import picture_part
    from ..vision.opening import MOST_BYTES
    from ..vision.seen import SEEN

    parts = []
    for path in paths:
        if path == "-":
            data = b"" if sys.stdin is None else sys.stdin.buffer.read(MOST_BYTES + 1)
            SEEN.tiles_of_file("standard input", data)  # what errors call it
            parts.append(picture_part(data))
        elif is_url(path):
            raise ImageError(
                "a picture from the network is not fetched",
                found=brief(path),
                expected="a file",
                hint="Download it first.",
            )
        else:
            parts.append(picture_part(path))
    return parts


def is_url(path: str) -> bool:
    """Whether it names a picture on the web."""
    return path.lower().startswith(("http://", "https://"))


def with_pictures(parts: Sequence[Part], text: str) -> Content:
    """A message's content: the pictures, then the text."""
    return (*parts, {"type": "text", "text": text}) if parts else text


def looked_at(model: Model, path: str) -> tuple[Part, str]:
    """A picture for the next message, and what a person is told of it, who is shown its tiles.

    Raises:
        ImageError: it is not a picture, or cannot be read.
        EngineError, ModelFileError: the model cannot look at pictures.
    """
    from PIL import Image

    from ..terminal.picture import show_picture
    from ..vision.finding import no_projector

    if model.projector is None:
        raise no_projector(model.info.path)
    (part,) = read_images([path])
    (picture,) = model.chat_prompt([{"role": "user", "content": [part]}]).pictures
    show_picture(Image.fromarray(picture.picture))
    return part, f"{Path(path).name}: {picture}."


def dropped_paths(text: str) -> tuple[list[str], str]:
    """The files of pictures that a message names as terminals do, and the message without them.

    Only what is there counts, named from the root or as a URL, with a suffix of pictures.
    """
    paths: list[str] = []

    def taken(word: re.Match[str]) -> str:
        path = _path_of(word)
        if path.suffix.lower() not in _SUFFIXES or not path.is_file():
            return word.group()
        paths.append(str(path))
        return ""

    rest = _DROPPED.sub(taken, text)
    return paths, rest.strip() if paths else text


def named_pictures(text: str) -> list[str]:
    """The files that /image names: one as it is, or several as a shell takes them.

    Words count where one of them is there; otherwise all of the text is one name.

    Raises:
        ImageError: it holds a zero byte, or names a home that nobody has here.
    """
    whole = _file(text)
    if is_url(text) or whole.exists():
        return [text if is_url(text) else str(whole)]
    words = [_file(word) for word in _words(text)]
    if len(words) == 1 or any(word.exists() for word in words):
        return [str(word) for word in words]
    return [str(whole)]


def _words(text: str) -> list[str]:
    """The words of a text, in which quotes and backslashes are what they are in a shell."""
    try:
        if os.name == "nt":  # where backslashes are in every path
            return [word.strip("'\"") for word in shlex.split(text, posix=False)]
        return shlex.split(text)
    except ValueError:  # a quote that does not end
        return [text]


def _path_of(word: re.Match[str]) -> Path:
    return _file(word["single"] or word["double"] or re.sub(r"\\(.)", r"\1", word["bare"]))


def _file(name: str) -> Path:
    if name.startswith("file://"):
        name = unquote(urlsplit(name).path)
    if "\0" in name:
        raise ImageError("the name of a picture holds a zero byte", expected="a file")
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~somebody
        raise ImageError(f"{brief(name)}: there is no such home directory") from None
