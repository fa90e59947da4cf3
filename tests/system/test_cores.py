from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama4_edge.system.cores import logical_cores, physical_cores


def test_siblings_are_one_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        topology = tmp_path / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    assert (physical_cores(tmp_path), logical_cores()) == (2, 4)


def test_one_core_is_counted_when_the_process_may_use_one() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert (physical_cores(), logical_cores()) == (1, 1)
    finally:
        os.sched_setaffinity(0, allowed)


def test_physical_cores_are_not_made_up_where_they_cannot_be_read(tmp_path: Path) -> None:
    assert physical_cores(tmp_path / "absent") is None
