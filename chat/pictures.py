"""Pictures in messages: found among the parts, and kept with a conversation.

Promises that a picture is only opened where its part says that it is one, and that a part of
OpenAI's or Anthropic's kind names no file of this machine. Knows no template and no features.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import ImageError, SettingError
from ..ranges import as_tuple, wrong_type
from ..untrusted import shown
from ..vision.seen import SEEN

if TYPE_CHECKING:
    from ..vision.opening import PictureInput
    from .conversation import Message

Part = Mapping[str, Any]
"""Of a message: ``{"type": "text", ...}``, or a picture."""

_SHAPES = (
    '{"type": "image", "image": picture} or '
    '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
)


def take_pictures(
    messages: Iterable[Any], *, allow_download: bool = False
) -> tuple[list[Any], list[PictureInput]]:
    """The messages as templates take them, and the pictures that they have, in order.

    Args:
        messages: their parts may be ``image`` (a picture of any kind under "image", or as
            transformers and Anthropic write it), ``image_url`` and ``input_image`` (a data URL).
        allow_download: whether a part may name a picture on the web.

    Raises:
        ImageError: a part has no picture, or one that it may not name.
    """
    pictures: list[PictureInput] = []
    taken = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple):
            parts = [_without_picture(part, pictures, allow_download) for part in content]
            message = {**message, "content": parts}
        taken.append(message)
    return taken, pictures


def with_tiles(messages: Iterable[Any], *, allow_download: bool = False) -> list[Any]:
    """Messages whose pictures are cut: what shows some of them again cuts nothing.

    Raises:
        ImageError: see `take_pictures`; or a picture cannot be read.
    """

    def cut(part: Any) -> Any:
        pictures: list[PictureInput] = []
        taken = _without_picture(part, pictures, allow_download)
        if not pictures:
            return taken
        return {"type": "image", "image": SEEN.tiles(pictures[0], allow_download=allow_download)}

    return [
        {**message, "content": [cut(part) for part in message["content"]]}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list | tuple)
        else message
        for message in messages
    ]


def files_in(messages: Iterable[Message]) -> list[bytes]:
    """The files of the pictures that a conversation keeps."""
    from ..vision.opening import bytes_of  # with Pillow

    return [
        bytes_of(part["image_url"]["url"])[1]
        for message in messages
        if not isinstance(message.content, str)
        for part in message.content
        if "image_url" in part
    ]


def _without_picture(part: Any, pictures: list[PictureInput], allow_download: bool) -> Any:
    """The part as templates know it; its picture is added to the others."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "input_text":
        return {"type": "text", "text": part.get("text")}
    if kind == "image":
        pictures.append(_picture_of(part, allow_download))
    elif kind in ("image_url", "input_image"):
        pictures.append(_url_of(part.get("image_url"), allow_download))
    else:
        return part
    return {"type": "image"}


def _picture_of(part: Mapping[str, Any], allow_download: bool) -> PictureInput:
    source = part.get("source")
    if isinstance(source, Mapping):
        if "data" not in source:
            return _url_of(source.get("url"), allow_download)
        part = {"base64": source["data"]}
    for name in ("image", "url", "path"):
        if part.get(name) is not None:
            picture: PictureInput = part[name]
            return picture
    data = part.get("base64")
    if isinstance(data, str):
        return f"data:;base64,{data}"
    raise ImageError(
        "a part of a message has no picture", found=", ".join(map(str, part)), expected=_SHAPES
    )


def _url_of(value: Any, allow_download: bool) -> str:
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str):
        raise ImageError(
            "a part of a message has no URL of a picture", found=shown(value), expected=_SHAPES
        )
    scheme = url[:8].lower()
    if scheme.startswith("data:") or (
        allow_download and scheme.startswith(("http://", "https://"))
    ):
        return url
    raise ImageError(
        "a picture's URL is not a data URL",
        found=shown(url),
        expected="data:image/png;base64,...",
        hint="This is an offline program. Fetch the picture first, or allow it: "
        "allow_download=True."
        if scheme.startswith("http")
        else 'A file is {"type": "image", "image": path}.',
    )


def with_images(text: str, pictures: PictureInput | Iterable[PictureInput]) -> tuple[Part, ...]:
    """A message's content that shows the pictures first, and then has `text`.

        >>> content = with_images("What is the difference?", ["before.jpg", "after.jpg"])
        >>> model.chat([{"role": "user", "content": content}])

    Args:
        text: the question, or the task.
        pictures: one or several, as for `image_tiles`; the content holds the pictures themselves.

    Raises:
        ImageError: one of them is not a picture, or damaged or too large.
    """
    if not isinstance(text, str):
        raise wrong_type("text", text, "a string")
    is_list = isinstance(pictures, Iterable) and not _is_picture(pictures)
    every = as_tuple("pictures", pictures, "pictures") if is_list else (pictures,)
    parts = [picture_part(cast("PictureInput", one)) for one in every]
    return (*parts, {"type": "text", "text": text})


def _is_picture(value: object) -> bool:
    """Whether it is one that can be iterated over."""
    return isinstance(value, str | bytes | bytearray | memoryview | np.ndarray)


def with_video(text: str, path: str | os.PathLike[str], *, fps: float = 1.0) -> tuple[Part, ...]:
    """A message's content that shows frames of a video, each with its time, and then has `text`.

    Each frame is a picture of one tile, 147 tokens, because a video has many.

    Args:
        text: the question, or the task.
        path: a video that PyAV reads (``pip install 'llama4-edge[video]'``).
        fps: frames a second.

    Raises:
        ImageError: it is not a video, has too many frames, or PyAV is missing.
        SettingError: ``fps`` is outside its range.
    """
    if not isinstance(text, str):
        raise wrong_type("text", text, "a string")
    return (*video_parts(path, fps), {"type": "text", "text": text})


def video_parts(path: str | os.PathLike[str], fps: float) -> list[Part]:
    """The frames alone; see `with_video`."""
    from ..vision.video import video_frames  # needed for videos alone

    parts: list[Part] = []
    for frame in video_frames(path, fps):
        minutes, seconds = divmod(frame.seconds, 60)
        parts += [
            {"type": "text", "text": f"{int(minutes)}:{seconds:04.1f}\n"},
            picture_part(frame.picture),
        ]
    return parts


def picture_part(picture: PictureInput) -> Part:
    """A part of a message that holds the picture itself, as a ``data:`` URL.

    It is cut into tiles on this occasion, so that it is opened once.

    Raises:
        ImageError: it is not a picture, or one that is damaged or too large.
    """
    from PIL import Image  # needed for pictures alone

    from ..vision.opening import bytes_of, is_file, media_type, open_picture

    if is_file(picture):
        name, data = bytes_of(picture)
        SEEN.tiles_of_file(name, data)  # whether it is one
        kind = media_type(data)
    else:
        pixels = open_picture(picture)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        data, kind = file.getvalue(), "image/png"
        SEEN.keep(data, pixels)
    url = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return {"type": "image_url", "image_url": {"url": url}}


def kept_parts(content: Iterable[Any]) -> tuple[Part, ...]:
    """The parts of a message as a conversation keeps them: texts, and pictures as ``data:`` URLs.

    Raises:
        ImageError: a picture cannot be read.
        SettingError: a part is neither text nor a picture.
    """
    return tuple(part if is_kept(part) else _kept(part) for part in content)


def _kept(part: Any) -> Part:
    pictures: list[PictureInput] = []
    taken = _without_picture(part, pictures, allow_download=False)
    if pictures:
        return picture_part(pictures[0])
    if not isinstance(taken, Mapping) or not isinstance(taken.get("text"), str):
        raise SettingError(
            "the content of a message is not a string, and has a part that is not a picture",
            found=shown(part),
            expected='{"type": "text", "text": "..."}',
        )
    return {"type": "text", "text": taken["text"]}


def is_kept(part: Any) -> bool:
    """Whether a part is as `kept_parts` gives it: such a one names no file."""
    if not isinstance(part, Mapping):
        return False
    if set(part) == {"type", "text"}:
        return part["type"] == "text" and isinstance(part["text"], str)
    image = part.get("image_url")
    if set(part) != {"type", "image_url"} or not isinstance(image, Mapping):
        return False
    url = image.get("url") if set(image) == {"url"} else None
    return part["type"] == "image_url" and isinstance(url, str) and url.startswith("data:")
