"""Pictures in messages: found among the parts, cut into tiles once, and named in a prompt.

Promises that a picture is only opened where its part says that it is one, and that a part of
OpenAI's kind names no file of this machine. Knows no template and no features.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from ..untrusted import shown

if TYPE_CHECKING:
    from ..vision.images import ImageTiles
    from ..vision.opening import PictureInput

_MOST_KEPT = 1 << 28
"""Bytes of tiles that are kept: 45 pictures of 16 tiles."""

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


def _without_picture(part: Any, pictures: list[PictureInput], allow_download: bool) -> Any:
    """The part as templates know it; its picture is added to the others."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "input_text":
        return {"type": "text", "text": part.get("text")}
    if kind == "image":
        pictures.append(_picture_of(part))
    elif kind in ("image_url", "input_image"):
        pictures.append(_url_of(part.get("image_url"), allow_download))
    else:
        return part
    return {"type": "image"}


def _picture_of(part: Mapping[str, Any]) -> PictureInput:
    source = part.get("source")
    if isinstance(source, Mapping):
        part = {"base64": source.get("data")} if "data" in source else source
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
        raise ImageError("an image_url has no URL", found=shown(value), expected=_SHAPES)
    scheme = url[:8].lower()
    if scheme.startswith("data:") or (
        allow_download and scheme.startswith(("http://", "https://"))
    ):
        return url
    raise ImageError(
        "an image_url is not a data URL",
        found=shown(url),
        expected="data:image/png;base64,...",
        hint="This is an offline program. Fetch the picture first, or allow it: "
        "allow_download=True."
        if scheme.startswith("http")
        else 'A file is {"type": "image", "image": path}.',
    )


class Tiles:
    """Cuts pictures into tiles, and keeps those of the last ones: a conversation repeats them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, ImageTiles] = OrderedDict()
        self._n_bytes = 0

    def of(self, picture: PictureInput, *, allow_download: bool = False) -> ImageTiles:
        """The tiles of a picture; see ``image_tiles``."""
        from ..vision.images import image_tiles  # needed for pictures alone

        # A file may have changed, and what is behind a URL; what a text holds has not.
        key = None
        if isinstance(picture, bytes) or (isinstance(picture, str) and picture[:5] == "data:"):
            data = picture if isinstance(picture, bytes) else picture.encode()
            key = hashlib.sha256(data).digest()
        if key is not None and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        tiles = image_tiles(picture, allow_download=allow_download)
        if key is not None:
            self._keep(key, tiles)
        return tiles

    def _keep(self, key: bytes, tiles: ImageTiles) -> None:
        self._kept[key] = tiles
        self._n_bytes += tiles.levels.nbytes
        while self._n_bytes > _MOST_KEPT:
            self._n_bytes -= self._kept.popitem(last=False)[1].levels.nbytes
