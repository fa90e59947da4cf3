"""A device with less memory than it reported: the fallback is used, with a warning."""

from __future__ import annotations

import logging
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from llama4_edge import Model, Placement, Plan, Sampling, plan
from llama4_edge.errors import AllocationError, SettingError
from llama4_edge.planner import fallback
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.runtime.workers.worker import Worker, local_workers, running_worker

GREEDY = Sampling(temperature=0.0)
MIB = 2**20


def leave_only(worker: Worker, nbytes: int) -> None:
    """Let a worker's process have so much more address space: beyond it, allocating fails."""
    pages = int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + nbytes
    resource.prlimit(worker.process.pid, resource.RLIMIT_AS, (limit, limit))


def test_a_failed_allocation_leads_to_a_fallback_and_the_same_answer(
    scout_int4: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_worker(port=0, n_threads=1) as worker:
        # 9 MiB of weights, 98 MiB of cache for the one full layer, and something to compute in.
        asked = plan(scout_int4, n_ctx=200_000, n_ubatch=16, workers=[worker.endpoint])
        assert asked.gpus[0].load.kv_full_bytes == 200_192 * 512
        leave_only(worker, 64 * MIB)
        with caplog.at_level(logging.WARNING), Model(scout_int4, plan=asked, n_threads=1) as model:
            used = model.plan
            answer = model.generate("Hello", max_tokens=5, sampling=GREEDY)
    assert isinstance(used, Plan)
    assert used.gpus[0].used_bytes < 64 * MIB
    assert used.settings.n_ctx == 200_000
    warnings = [one.message for one in caplog.records if one.name == "llama4_edge.opening"]
    assert "failed to allocate" in warnings[0]
    assert f"Planned was: {asked}. Now trying: " in warnings[0]
    assert warnings[-1].endswith(f"Now trying: {used}")
    with Model(scout_int4, n_threads=1) as alone:
        assert alone.generate("Hello", max_tokens=5, sampling=GREEDY).tokens == answer.tokens


def test_a_model_that_plans_by_itself_falls_back_too(
    scout_int4: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_worker(port=0, n_threads=1) as worker:
        leave_only(worker, 64 * MIB)
        with (
            caplog.at_level(logging.WARNING, "llama4_edge.opening"),
            Model(scout_int4, n_ctx=200_000, n_ubatch=16, workers=[worker.endpoint]) as model,
        ):
            assert model.plan is not None
            assert model.plan.gpus[0].used_bytes < 64 * MIB
            assert model.engine.settings.n_ctx == 200_000
    warnings = [record.message for record in caplog.records if record.name == "llama4_edge.opening"]
    assert warnings[-1].endswith(f"Now trying: {model.plan}")


def test_placed_by_hand_a_failed_allocation_is_an_error(scout_int4: Path) -> None:
    with running_worker(port=0, n_threads=1) as worker:
        leave_only(worker, 64 * MIB)
        with pytest.raises(AllocationError, match="failed to allocate"):
            Model(
                scout_int4,
                n_ctx=200_000,
                n_ubatch=16,
                placement=Placement(),
                workers=[worker.endpoint],
            )


def test_after_the_last_plan_the_error_is_raised(scout_int4: Path) -> None:
    with running_worker(port=0, n_threads=1) as worker:
        leave_only(worker, 64 * MIB)
        # A plan without GPUs has no fallback; these settings still ask a GPU for too much.
        last = plan(scout_int4, devices=[])
        assert fallback(last) is None
        settings = EngineSettings(n_ctx=200_000, n_ubatch=16, workers=(worker.endpoint,))
        with pytest.raises(AllocationError, match="cannot make a context of 200000 tokens"):
            Model(scout_int4, plan=replace(last, settings=settings))


def test_a_model_is_placed_as_planned(scout_int4: Path) -> None:
    with local_workers(2) as endpoints:
        result = plan(scout_int4, n_ctx=2048, workers=endpoints)
        with Model(scout_int4, plan=result, n_threads=1) as model:
            settings = model.engine.settings
            assert model.plan is result
            assert (settings.placement, settings.n_ctx) == (result.settings.placement, 2048)
            report = model.engine.memory()
    for device in result.gpus:
        assert report.on(device.name) == device.memory


def test_what_a_plan_decides_is_not_asked_for_beside_it(scout_int4: Path) -> None:
    result = plan(scout_int4, n_ctx=2048)
    with pytest.raises(SettingError, match="found n_ctx, kv_type"):
        Model(scout_int4, plan=result, n_ctx=4096, kv_type="q8_0")
