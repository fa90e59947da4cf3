"""Frames of videos: which ones, when, how large, and what is no video."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from llama4_edge import with_video
from llama4_edge.commands.pictures import PictureOptions
from llama4_edge.errors import ImageError, SettingError
from llama4_edge.vision import video
from llama4_edge.vision.video import video_frames


def make_video(
    path: Path, n_frames: int = 35, rate: int = 10, size: tuple[int, int] = (320, 240)
) -> Path:
    """A video that turns from blue to red, each frame of one colour, without losses."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for index in range(n_frames):
            level = 255 * index // n_frames
            pixels = np.full((height, width, 3), (level, 0, 255 - level), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def blue_to_red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "a.mkv")


@pytest.mark.parametrize(
    ("fps", "seconds"),
    [
        (1, [0, 1, 2, 3]),
        (0.5, [0, 2]),
        (2, [0, 0.5, 1, 1.5, 2, 2.5, 3]),
        (3, [0, 0.4, 0.7, 1, 1.4, 1.7, 2, 2.4, 2.7, 3, 3.4]),
        (10, [index / 10 for index in range(35)]),
        (100, [index / 10 for index in range(35)]),
    ],
)
def test_frames_are_those_at_or_after_each_period(
    blue_to_red: Path, fps: float, seconds: list[float]
) -> None:
    frames = video_frames(blue_to_red, fps)
    assert [round(frame.seconds, 3) for frame in frames] == seconds
    reds = [np.asarray(frame.picture)[..., 0].mean() for frame in frames]
    assert reds == sorted(reds)
    # 255 · 10 t / 35 at the time t; less what YUV rounds.
    assert np.abs(np.array(reds) - 255 * np.array(seconds) / 3.5).max() < 3


def test_thirty_frames_a_second_lose_none_to_rounding(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", n_frames=61, rate=30)
    assert len(video_frames(path, 30)) == 61
    assert len(video_frames(path, 10)) == 21


def test_large_frames_are_made_to_fit_into_a_tile(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", n_frames=2, size=(1280, 720))
    assert video_frames(path)[0].picture.size == (336, 189)


def test_each_frame_of_a_message_has_its_time(blue_to_red: Path) -> None:
    *parts, question = with_video("What changes?", blue_to_red, fps=0.5)
    assert [part["text"] for part in parts[::2]] == ["0:00.0\n", "0:02.0\n"]
    assert all(part["image_url"]["url"].startswith("data:image/png") for part in parts[1::2])
    assert question == {"type": "text", "text": "What changes?"}


@pytest.mark.parametrize("content", [b"", b"# A text\n", b"\0" * 5000])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"not a video that can be read|has no"):
        video_frames(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "none.mp4", tmp_path, fifo, "http://localhost/a.mp4"):
        with pytest.raises(ImageError, match=r"does not exist|no regular file"):
            video_frames(path)


def test_a_truncated_video_gives_what_is_there(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", n_frames=40)
    data = path.read_bytes()
    path.write_bytes(data[: 2 * len(data) // 3])
    assert 0 < len(video_frames(path, 10)) < 40


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e9, "1", True, None])
def test_frames_a_second_have_a_range(blue_to_red: Path, fps: Any) -> None:
    with pytest.raises(SettingError, match="fps is outside its range"):
        video_frames(blue_to_red, fps)


def test_too_many_frames_are_refused(blue_to_red: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_FRAMES", 5)
    with pytest.raises(ImageError, match=r"more than 5 at 10 a second.*Lower fps"):
        video_frames(blue_to_red, 10)


def test_without_pyav_the_error_says_what_to_install(
    blue_to_red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match=r"llama4-edge\[video\]"):
        video_frames(blue_to_red)


def test_no_frames_a_second_are_not_taken_for_one(blue_to_red: Path) -> None:
    with pytest.raises(SettingError, match=r"fps .* found 0\.0"):
        PictureOptions(video=str(blue_to_red), fps=0.0).parts()
