"""Frames of a video, so many a second, as pictures of one tile.

PyAV reads it (the extra ``video``). Promises frames in order, turned upright, with their times;
what is not a video, or is damaged before its first frame, is one ImageError. Llama 4 knows no
videos: it is shown pictures with their times.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ImageError
from ..ranges import as_path, is_number, outside
from ..untrusted import brief
from .layout import TILE_SIZE

if TYPE_CHECKING:
    from PIL import Image

MAX_FPS = 240.0
MAX_FRAMES = 4096
"""Frames at most: they take 600,000 tokens."""


_ROUNDING = 1e-3  # seconds: Matroska's times are whole milliseconds


class Frame(NamedTuple):
    """A picture that fits into one tile, and when it is shown, in seconds."""

    seconds: float
    picture: Image.Image


def video_frames(path: str | os.PathLike[str], fps: float = 1.0) -> list[Frame]:
    """The frames of a video at 0, 1/fps, 2/fps … seconds, or the next after each.

    Args:
        fps: frames a second, above 0 and at most `MAX_FPS`; never more than the video has.

    Raises:
        ImageError: PyAV is missing, the file is not a video, or it has more than `MAX_FRAMES`.
        SettingError: ``fps`` is outside its range.
    """
    path = os.fspath(as_path("path", path))
    if not is_number(fps) or not 0 < fps <= MAX_FPS:
        raise outside("fps", fps, f"a number above 0, at most {MAX_FPS:g}")
    if not Path(path).is_file():
        if not Path(path).exists():
            raise ImageError(f"{path} does not exist")
        raise ImageError(f"{path} is not a video", found="no regular file", expected="a file")
    av = _pyav()
    frames: list[Frame] = []
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise ImageError(f"{path} has no video", hint="Its sound cannot be heard here.")
            for frame in _chosen(container, fps):
                if len(frames) == MAX_FRAMES:
                    raise ImageError(
                        f"{path} has too many frames",
                        found=f"more than {MAX_FRAMES} at {fps:g} a second",
                        expected=f"at most {MAX_FRAMES}",
                        hint="Lower fps.",
                    )
                frames.append(frame)
    except (av.FFmpegError, OSError, ValueError) as error:
        # What comes before the damage is a video all the same.
        if not frames:
            raise ImageError(
                f"{path} is not a video that can be read",
                found=brief(getattr(error, "strerror", None) or str(error)),
            ) from None
    if not frames:
        raise ImageError(f"{path} has no frames")
    return frames


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise ImageError(
            "videos are read with PyAV, which is not installed",
            hint="pip install 'llama4-edge[video]'",
        ) from None
    av.logging.set_level(av.logging.PANIC)  # FFmpeg writes to stderr by itself
    return av


def _chosen(container: Any, fps: float) -> Iterator[Frame]:
    """The first frame of each period of 1/fps seconds."""
    first: float | None = None
    n_taken = 0
    for frame in container.decode(container.streams.video[0]):
        seconds = float(frame.time or 0.0)
        first = seconds if first is None else first
        period = (seconds - first + _ROUNDING) * fps
        if period >= n_taken:
            n_taken = int(period) + 1
            yield Frame(seconds - first, _fitted(frame))


def _fitted(frame: Any) -> Image.Image:
    """A frame as a picture that is not larger than a tile."""
    from PIL import Image

    pixels: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counterclockwise
    picture = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))
    picture.thumbnail((TILE_SIZE, TILE_SIZE))
    return picture
