from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama4_edge.system.cores import (
    MAX_THREADS,
    cpu_model,
    cpu_quota,
    decoding_threads,
    described_cpu,
    logical_cores,
    physical_cores,
    usable_threads,
)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may run on eight hardware threads, of cores that are not described."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def groups(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A root directory with these control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


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
        assert (physical_cores(), logical_cores(), usable_threads()) == (1, 1, 1)
    finally:
        os.sched_setaffinity(0, allowed)


def test_physical_cores_are_not_made_up_where_they_cannot_be_read(tmp_path: Path) -> None:
    assert physical_cores(tmp_path / "absent") is None


def test_without_affinity_the_machine_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: None if logical else 6)
    assert (physical_cores(tmp_path / "absent"), logical_cores()) == (6, 12)


def test_without_control_groups_every_core_gets_a_thread(tmp_path: Path, eight_cores: None) -> None:
    assert cpu_quota(tmp_path) is None
    assert usable_threads(tmp_path) == 8


@pytest.mark.parametrize(
    ("content", "threads"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),  # one and a half: the second thread runs half of the time
        ("25000 100000", 1),
        ("1000 1000000", 1),
        ("1600000 100000", 8),  # more than there are
        ("", 8),
        ("100000", 8),
        ("200000 0", 8),
    ],
)
def test_a_quota_of_version_2_limits_the_threads(
    tmp_path: Path, eight_cores: None, content: str, threads: int
) -> None:
    root = groups(tmp_path, "0::/\n", {"cpu.max": content})
    assert usable_threads(root) == threads
    assert decoding_threads(root) <= threads


def test_the_tightest_of_nested_groups_counts(tmp_path: Path, eight_cores: None) -> None:
    files = {
        "user/app/cpu.max": "max 100000",
        "user/cpu.max": "300000 100000",
        "cpu.max": "500000 100000",
    }
    root = groups(tmp_path, "0::/user/app\n", files)
    assert cpu_quota(root) == (3.0, str(root / "sys/fs/cgroup/user/cpu.max"))
    assert usable_threads(root) == 3


@pytest.mark.parametrize(("quota", "threads"), [("250000", 3), ("-1", 8)])
def test_a_quota_of_version_1_limits_the_threads(
    tmp_path: Path, eight_cores: None, quota: str, threads: int
) -> None:
    files = {"cpu/box/cpu.cfs_quota_us": quota, "cpu/box/cpu.cfs_period_us": "100000"}
    root = groups(tmp_path, "5:cpu,cpuacct:/box\n4:memory:/other\n", files)
    assert usable_threads(root) == threads


def test_no_more_threads_than_ggml_is_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(768)))
    assert usable_threads(tmp_path) == MAX_THREADS


def test_the_cpu_is_named(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: A Fine CPU @ 3 GHz\nmodel name\t: other\n")
    assert cpu_model(cpuinfo) == described_cpu(cpuinfo) == "A Fine CPU @ 3 GHz"
    assert cpu_model(tmp_path / "absent") != ""


def test_where_linux_does_not_name_the_cpu_a_library_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpuinfo.get_cpu_info", lambda: {"brand_raw": "Apple M4 Max"})
    assert described_cpu(tmp_path / "absent") == "Apple M4 Max"
    monkeypatch.setattr("cpuinfo.get_cpu_info", dict)
    assert described_cpu(tmp_path / "absent") == cpu_model(tmp_path / "absent")
