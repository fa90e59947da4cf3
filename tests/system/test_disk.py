"""How fast a file's disk is: measured where it can be, with a reason where it cannot."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from llama4_edge.system.disk import ReadRate, read_rate

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has direct reads")


@linux_only
def test_a_rate_is_that_of_reading_the_file_in_half_a_second(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20) * 80)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    begun = time.perf_counter()
    rate = read_rate(path)
    seconds = time.perf_counter() - begun
    if "cannot be read" in rate.source:
        pytest.skip(f"a file system without direct reads: {rate.source}")
    assert rate.source == "measured now, by reading parts of the file"
    assert rate.bytes_per_second is not None
    # All of it at the most, and at least one block in as long as this took.
    assert 2**20 / seconds <= rate.bytes_per_second


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
    assert read_rate(path) == ReadRate(None, f"not measured because {reason}")


@linux_only
def test_a_file_that_is_not_there_gives_the_systems_reason(tmp_path: Path) -> None:
    rate = read_rate(tmp_path / "absent")
    assert rate.bytes_per_second is None
    assert rate.source == "not measured because the file cannot be read: No such file or directory"


def test_a_system_without_direct_reads_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    rate = read_rate(tmp_path)
    assert rate == ReadRate(None, "not measured because this system has no reads past its cache")
