"""The plan's bytes against those of a model that was really loaded, on workers as GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llama4_edge.errors import EngineError, SettingError
from llama4_edge.planner import plan
from llama4_edge.planner.check import check
from llama4_edge.runtime.placement import Placement, cpu_moe_overrides
from llama4_edge.runtime.settings import KVType


@pytest.fixture(params=["scout_int4", "maverick_int4"])
def model(request: pytest.FixtureRequest) -> Path:
    path = request.getfixturevalue(request.param)
    assert isinstance(path, Path)
    return path


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_two_workers_allocate_to_the_byte_what_was_planned(
    model: Path, two_workers: tuple[str, ...], kv_type: KVType
) -> None:
    result = plan(model, n_ctx=20_000, kv_type=kv_type, workers=two_workers)
    rows = check(result)
    assert [row.planned.device for row in rows] == ["RPC0", "RPC1", "CPU"]
    for row in rows:
        assert row.planned == row.allocated
    # Both have layers, and something to compute in.
    assert all(
        row.allocated.weights and row.allocated.kv and row.allocated.compute for row in rows[:2]
    )


@pytest.mark.parametrize(
    "placement",
    [
        Placement(overrides=cpu_moe_overrides()),
        Placement(n_gpu_layers=2),
        Placement(n_gpu_layers=0),
        Placement(offload_kqv=False, devices=("RPC0",)),
        Placement(devices=("RPC1",), overrides=((r"blk\.[13]\.ffn_(up|down)_exps", "CPU"),)),
    ],
)
def test_every_placement_is_allocated_as_planned(
    model: Path, two_workers: tuple[str, ...], placement: Placement
) -> None:
    planned = plan(model, n_ctx=4096, workers=two_workers, placement=placement)
    rows = check(planned)
    assert [row.planned.device for row in rows] == [one.device.name for one in planned.devices]
    for row in rows:
        assert (row.planned.weights, row.planned.kv) == (row.allocated.weights, row.allocated.kv)
        assert row.agrees


def test_main_memory_alone_is_allocated_to_the_byte_as_planned(model: Path) -> None:
    (row,) = check(plan(model, n_ctx=4096))
    assert row.planned == row.allocated
    assert (row.off, row.agrees) == (0.0, True)


def test_a_plan_that_is_wrong_does_not_agree(scout_int4: Path) -> None:
    right = plan(scout_int4, n_ctx=4096)
    weights = right.host.memory.weights
    more = replace(right.host.memory, weights=weights * 11 // 10)
    wrong = replace(right, devices=(replace(right.host, memory=more),))
    (row,) = check(wrong)
    assert not row.agrees
    assert row.off == pytest.approx((weights // 10) / row.allocated.total, abs=1e-6)


def test_what_cannot_be_loaded_is_not_loaded(scout_int4: Path) -> None:
    with pytest.raises(SettingError, match="only a GGUF on this machine can be loaded"):
        check(plan(scout_int4, n_ctx=4096, ram=2**30))
    with pytest.raises(SettingError, match="only a GGUF on this machine can be loaded"):
        check(plan("scout", n_ctx=4096))
    fits = plan(scout_int4, n_ctx=4096)
    small = replace(fits.host, device=replace(fits.host.device, free_bytes=2**20))
    short = replace(fits, devices=(small,))
    with pytest.raises(EngineError, match="does not fit as planned, and is not loaded"):
        check(short)


def test_progress_is_reported_while_it_loads(scout_int4: Path) -> None:
    seen: list[float] = []
    check(plan(scout_int4, n_ctx=256), on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
