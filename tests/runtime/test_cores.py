from __future__ import annotations

import os

from llama4_edge.runtime.cores import logical_cores, physical_cores


def test_there_are_no_more_physical_cores_than_logical_ones():
    assert 1 <= physical_cores() <= logical_cores()


def test_one_core_is_counted_when_the_process_may_use_one():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert (physical_cores(), logical_cores()) == (1, 1)
    finally:
        os.sched_setaffinity(0, allowed)


def test_logical_cores_are_counted_where_the_physical_ones_cannot_be_read(monkeypatch):
    def unreadable(_path: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.read_text", unreadable)
    assert physical_cores() == logical_cores()
