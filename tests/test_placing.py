"""Where a model goes: planned, unless it is placed by hand; the same from both ways in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import llama4_edge
from llama4_edge import Model, Placement, Plan
from llama4_edge.cli import main
from llama4_edge.errors import AllocationError, EngineError, SettingError
from llama4_edge.runtime.settings import DEFAULT_CONTEXT, EngineSettings
from llama4_edge.runtime.workers.worker import local_workers
from llama4_edge.system.memory import HostMemory


@pytest.fixture(scope="module")
def two_workers() -> Iterator[tuple[str, ...]]:
    with local_workers(2) as endpoints:
        yield endpoints


class _RefusedError(EngineError):
    """Raised in place of loading."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EngineSettings]:
    """The settings of each engine that would have been made."""
    made: list[EngineSettings] = []

    def engine(_path: object, settings: EngineSettings, **_: Any) -> None:
        made.append(settings)
        raise _RefusedError("not loaded")

    monkeypatch.setattr("llama4_edge.opening.Engine", engine)
    return made


def settings_of(asked: list[EngineSettings], path: Path, **options: Any) -> EngineSettings:
    """What `Model` would load with."""
    with pytest.raises(_RefusedError):
        Model(path, **options)
    return asked.pop()


def test_a_model_goes_where_the_planner_says(
    scout_int4: Path, two_workers: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    expected = llama4_edge.plan(scout_int4, workers=two_workers)
    with (
        caplog.at_level(logging.INFO, logger="llama4_edge.opening"),
        Model(scout_int4, workers=two_workers, n_threads=1) as model,
    ):
        assert isinstance(model.plan, Plan)
        assert model.plan.settings == expected.settings
        assert model.engine.settings.placement == expected.settings.placement
        assert model.engine.settings.n_threads == 1
    assert [gpu.name for gpu in model.plan.gpus] == ["RPC0", "RPC1"]
    # What was chosen is logged, with the reason.
    logged = [one.message for one in caplog.records if one.name == "llama4_edge.opening"]
    assert logged[:2] == [f"planned: {model.plan}", model.plan.why[0]]


def test_a_cache_that_the_planner_quantizes_is_announced(
    asked: list[EngineSettings],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scout_int4: Path,
    two_workers: tuple[str, ...],
) -> None:
    plan = llama4_edge.plan(scout_int4, workers=two_workers, kv_type="q8_0")
    monkeypatch.setattr("llama4_edge.planner.plan", lambda *_, **__: plan)
    assert settings_of(asked, scout_int4, workers=two_workers).kv_type == "q8_0"
    assert "the KV cache is kept as q8_0, because in f16 more than experts" in caplog.text
    caplog.clear()
    settings_of(asked, scout_int4, workers=two_workers, kv_type="q8_0")
    assert "the KV cache is kept as" not in caplog.text


def test_a_model_that_is_placed_by_hand_is_not_planned(
    scout_int4: Path, two_workers: tuple[str, ...]
) -> None:
    placement = Placement(n_gpu_layers=2)
    with Model(scout_int4, workers=two_workers, placement=placement, n_threads=1) as model:
        assert model.plan is None
        assert model.engine.settings.placement == placement


def test_without_a_gpu_there_is_nothing_to_plan(
    asked: list[EngineSettings], monkeypatch: pytest.MonkeyPatch, tiny_path: Path
) -> None:
    monkeypatch.setattr("llama4_edge.planner.plan", None)
    assert settings_of(asked, tiny_path).placement == Placement()
    assert settings_of(asked, tiny_path, devices=()).placement == Placement(devices=())


def test_devices_bound_the_plan(
    asked: list[EngineSettings], scout_int4: Path, two_workers: tuple[str, ...]
) -> None:
    for devices in (["RPC1"], "RPC1"):
        chosen = settings_of(asked, scout_int4, workers=two_workers, devices=devices)
        assert chosen.placement.devices == ("RPC1",)
    with pytest.raises(SettingError, match="CUDA7"):
        Model(scout_int4, workers=two_workers, devices=["CUDA7"])
    with pytest.raises(SettingError, match="CUDA7"):
        Model(scout_int4, devices=["CUDA7"])


@pytest.fixture
def half_a_gigabyte(monkeypatch: pytest.MonkeyPatch) -> HostMemory:
    """Main memory of which as much is free, whenever it is asked."""
    memory = HostMemory(2**30, 2**29, "a test")
    for module in ("planner.machine", "runtime.main_memory"):
        monkeypatch.setattr(f"llama4_edge.{module}.host_memory", lambda *_: memory)
    return memory


@pytest.mark.usefixtures("half_a_gigabyte")
@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["-c", "2048"], {"n_ctx": 2048}),
        (["-c", "max"], {"n_ctx": "max"}),
        (["-dev", "RPC1"], {"devices": ["RPC1"]}),
        (["-dev", "none"], {"devices": []}),
        (["-ctk", "q8_0", "-ctv", "q8_0", "-ub", "64"], {"kv_type": "q8_0", "n_ubatch": 64}),
        (["-ctk", "q8_0", "-ctv", "q4_0"], {"kv_type": ("q8_0", "q4_0")}),
        (["-ctv", "q4_0"], {"kv_type": ("f16", "q4_0")}),
        (["--experts", "2", "-lm", "none"], {"n_expert_used": 2, "load_mode": "none"}),
        (
            ["-b", "99", "-t", "1", "-fa", "on"],
            {"n_batch": 99, "n_threads": 1, "flash_attention": "on"},
        ),
        (["-ngl", "2"], {"placement": Placement(n_gpu_layers=2)}),
        (
            ["-dev", "RPC1,RPC0", "-ts", "3,1", "-c", "max"],
            {
                "placement": Placement(devices=("RPC1", "RPC0"), tensor_split=(3, 1)),
                "n_ctx": "max",
            },
        ),
        (["-nkvo"], {"placement": Placement(offload_kqv=False)}),
    ],
)
def test_the_command_line_and_python_place_alike(
    asked: list[EngineSettings],
    scout_int4: Path,
    two_workers: tuple[str, ...],
    flags: list[str],
    options: dict[str, Any],
) -> None:
    command = ["run", str(scout_int4), "Hello", "--workers", ",".join(two_workers), *flags]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stderr) == (1, "error: not loaded\n")
    from_command_line = asked.pop()
    assert from_command_line == settings_of(asked, scout_int4, workers=two_workers, **options)


def test_there_is_one_default_context(
    asked: list[EngineSettings], scout_int4: Path, two_workers: tuple[str, ...]
) -> None:
    assert EngineSettings().n_ctx == DEFAULT_CONTEXT == 32_768
    assert llama4_edge.plan(scout_int4).settings.n_ctx == DEFAULT_CONTEXT
    assert settings_of(asked, scout_int4).n_ctx == DEFAULT_CONTEXT
    assert settings_of(asked, scout_int4, workers=two_workers).n_ctx == DEFAULT_CONTEXT


def test_the_longest_context_is_the_planners(
    asked: list[EngineSettings], half_a_gigabyte: HostMemory, scout_int4: Path
) -> None:
    plan = llama4_edge.plan(scout_int4, n_ctx="max")
    longest = plan.settings.n_ctx
    assert longest > DEFAULT_CONTEXT
    # It does not take the last byte, which others may take before it is loaded.
    assert 1 / 32 <= plan.host.left_bytes / half_a_gigabyte.free < 1 / 31
    for options in ({}, {"placement": Placement()}, {"devices": ()}):
        assert settings_of(asked, scout_int4, n_ctx="max", **options).n_ctx == longest
    # and a context of twice as much is refused before anything is loaded
    with pytest.raises(AllocationError, match="does not fit into main memory"):
        Model(scout_int4, n_ctx=2 * longest)
    assert not asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"n_ctx": "2048"},
            "found '2048', expected None, \"max\", or a whole number",
        ),
        ({"n_ctx": 2048.0}, "n_ctx is outside its range, found 2048.0"),
        ({"n_ctx": True}, "n_ctx is outside its range, found True"),
        ({"n_ctx": 0}, "n_ctx is outside its range, found 0"),
        ({"n_batch": "1"}, "n_batch is outside its range, found '1'"),
        ({"n_threads": 1.5}, "n_threads is outside its range, found 1.5"),
        ({"placement": {}}, "placement is of the wrong type, found {}, expected a Placement"),
        ({"placement": "CPU"}, "placement is of the wrong type, found 'CPU'"),
        (
            {"placement": Placement(), "devices": ["CUDA0"]},
            "devices are named beside a placement, found ['CUDA0']",
        ),
        ({"kv_type": "q5"}, "'q5'"),
        (
            {"n_expert_used": 5},
            "n_expert_used is more than the model has, found 5, expected 1 to 4",
        ),
        ({"flash_attention": True}, "True"),
        ({"workers": "localhost"}, "'localhost'"),
        ({"workers": 5}, "workers is of the wrong type, found 5, expected names"),
        ({"devices": 5}, "devices is of the wrong type, found 5, expected names"),
        ({"devices": [1]}, "a device has no name, found 1"),
        ({"plan": "best"}, "plan is of the wrong type, found 'best', expected a Plan or None"),
    ],
)
def test_a_setting_that_is_none_is_refused_with_what_was_found(
    tiny_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError) as caught:
        Model(tiny_path, **options)
    assert message in str(caught.value)
