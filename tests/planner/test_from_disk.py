"""What a model costs that main memory has no room for, and is mapped from the disk."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from llama4_edge.planner import Plan, from_disk, plan
from llama4_edge.planner.machine import ASSUMED_RAM_BANDWIDTH
from llama4_edge.system.disk import ReadRate
from llama4_edge.terminal.plan_view import plan_view
from llama4_edge.units import bytes_text

GIB = 2**30
DISK = 10**9


@pytest.fixture(autouse=True)
def known_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_disk, "read_rate", lambda *_: ReadRate(DISK, "measured now"))


def short_by(model: Path, share: float) -> Plan:
    """A plan with main memory for all but a share of the experts."""
    roomy = plan(model, ram=64 * GIB, n_ctx=1024)
    experts = roomy.host.load.bytes_of("expert")
    # Where memory is short nothing is repacked, which takes more.
    needed = roomy.host.used_bytes - roomy.host.repacking_bytes
    return plan(model, ram=needed - int(experts * share), n_ctx=1024)


def test_experts_come_from_the_disk_as_often_as_they_have_no_room(scout_int4: Path) -> None:
    result = short_by(scout_int4, 0.25)
    assert not result.fits and result.from_disk_bytes > 0
    assert result.disk is not None
    experts = result.host.load.bytes_of("expert")
    # A token visits one of 16. The embedding, of which it reads a row, leaves memory before them.
    absent = result.from_disk_bytes - result.host.load.bytes_of("embedding")
    assert 0.1 < absent / experts < 0.25
    assert result.disk.read_bytes == pytest.approx(absent / 16, rel=0.01)
    assert (result.disk.bandwidth, result.disk.bandwidth_source) == (DISK, "measured now")


def test_the_bound_counts_the_disk_and_the_memory_one_after_the_other(scout_int4: Path) -> None:
    result = short_by(scout_int4, 0.25)
    assert result.disk is not None
    load = result.host.load
    seconds = result.disk.read_bytes / DISK + load.read_bytes / ASSUMED_RAM_BANDWIDTH
    assert result.estimated_decode_tokens_per_second == pytest.approx(1 / seconds)
    seconds += load.kv_read_bytes / ASSUMED_RAM_BANDWIDTH
    assert result.estimated_decode_tokens_per_second_full == pytest.approx(1 / seconds)


def test_where_not_one_token_has_room_everything_is_read_each_time(scout_int4: Path) -> None:
    result = plan(scout_int4, ram=64 * GIB, n_ctx=1024)
    context = result.host.memory.kv + result.host.memory.compute + result.host.output_bytes
    short = plan(scout_int4, ram=context + result.host.load.read_bytes // 2, n_ctx=1024)
    assert short.disk is not None
    assert short.disk.read_bytes == short.host.load.read_bytes
    assert any("come from the disk every time" in note for note in short.notes)


def test_a_context_that_has_no_room_has_no_speed(scout_int4: Path) -> None:
    result = plan(scout_int4, ram=2**20, n_ctx=1024)
    assert result.disk is None
    assert result.estimated_decode_tokens_per_second is None
    assert any("does not hold the KV cache" in note for note in result.notes)


def test_weights_that_are_copied_do_not_come_from_the_disk(scout_int4: Path) -> None:
    roomy = plan(scout_int4, ram=64 * GIB, n_ctx=1024)
    copied = plan(scout_int4, ram=roomy.host.used_bytes * 3 // 4, n_ctx=1024, load_mode="none")
    assert not copied.fits and copied.disk is None
    assert copied.estimated_decode_tokens_per_second is None


def test_a_model_that_fits_reads_nothing_from_the_disk(scout_int4: Path) -> None:
    assert plan(scout_int4, ram=64 * GIB, n_ctx=1024).disk is None


def test_a_model_that_is_not_here_says_what_it_would_read_and_no_speed() -> None:
    result = plan("scout", ram=32 * GIB)
    assert result.disk is not None
    assert result.disk.bandwidth is None
    assert result.disk.bandwidth_source == "not measured because the file is not here"
    assert GIB < result.disk.read_bytes < 3 * GIB
    assert result.estimated_decode_tokens_per_second is None
    assert any("its speed was not measured because the file is not here" in n for n in result.notes)


def test_json_says_what_the_disk_costs(scout_int4: Path) -> None:
    result = short_by(scout_int4, 0.25)
    assert result.disk is not None
    assert result.as_dict()["disk"] == {
        "read_bytes": result.disk.read_bytes,
        "bandwidth": DISK,
        "bandwidth_source": "measured now",
    }
    assert Plan.from_dict(result.as_dict()) == result
    unknown = replace(result, disk=replace(result.disk, bandwidth=None))
    assert Plan.from_dict(unknown.as_dict()) == unknown


def test_the_text_calls_it_an_estimate_and_names_the_disk(scout_int4: Path) -> None:
    result = short_by(scout_int4, 0.25)
    assert result.disk is not None
    text = StringIO()
    Console(width=300, file=text).print(plan_view(result))
    shown = text.getvalue()
    assert "speed    about " in shown and "an estimate, from reading memory and the disk" in shown
    read = bytes_text(result.disk.read_bytes)
    assert f"the file's disk: {read} a token, at 1.0 GB/s (measured now)" in shown
