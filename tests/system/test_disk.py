"""How fast a file's disk is: measured where it can be, with a reason where it cannot."""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

import pytest

from llama4_edge.system import disk
from llama4_edge.system.disk import ReadRate, read_rate

PIECE = 2**20
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is measured")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """80 MiB that are on the disk."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20) * 80)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


@linux_only
def test_a_rate_is_that_of_reading_the_file_in_half_a_second(weights: Path) -> None:
    begun = time.perf_counter()
    rate = read_rate(weights, PIECE)
    seconds = time.perf_counter() - begun
    if rate.bytes_per_second is None and "older" in rate.source:
        pytest.skip(rate.source)
    assert rate.source == "measured now, by mapping parts of the file"
    assert rate.bytes_per_second is not None
    # At least one piece in as long as this took, and no faster than any memory.
    assert PIECE / seconds <= rate.bytes_per_second < 10**12


@linux_only
def test_a_piece_is_read_however_late_it_is_begun(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_LONG_ENOUGH", 0.0)
    rate = read_rate(weights, PIECE)
    if rate.bytes_per_second is None and "older" in rate.source:
        pytest.skip(rate.source)
    assert rate.source == "measured now, by mapping parts of the file"


@linux_only
@pytest.mark.parametrize(
    ("size", "reason"),
    [(2**20, "the file is too small"), (2**30, "the file is mostly holes")],
)
def test_a_file_without_bytes_to_time_gives_a_reason(
    size: int, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(size)
    assert read_rate(path, PIECE) == ReadRate(None, f"not measured because {reason}")


@linux_only
def test_a_file_that_is_not_there_gives_the_systems_reason(tmp_path: Path) -> None:
    rate = read_rate(tmp_path / "absent", PIECE)
    assert rate.bytes_per_second is None
    assert rate.source == "not measured because the file cannot be read: No such file or directory"


@linux_only
def test_pages_that_stay_in_memory_are_not_taken_for_a_fast_disk(weights: Path) -> None:
    with (
        weights.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
    ):
        assert sum(mapping[:: mmap.PAGESIZE]) > 0  # another user of every page
        rate = read_rate(weights, PIECE)
    assert rate.bytes_per_second is None
    assert "stays in memory" in rate.source


@linux_only
def test_a_file_that_becomes_shorter_meanwhile_does_no_harm(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "forget_cached", lambda *_: os.truncate(weights, 0))
    rate = read_rate(weights, PIECE)
    assert rate == ReadRate(None, "not measured because the file cannot be read: Bad address")


def test_another_system_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    rate = read_rate(tmp_path, PIECE)
    assert rate == ReadRate(None, "not measured because only Linux says what it has cached")
