from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llama4_edge.errors import AllocationError
from llama4_edge.runtime.bindings.memory import DeviceMemory
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.main_memory import has_gpus, host_need, settings_that_fit
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.system.memory import HostMemory

GIB = 2**30
SETTINGS = EngineSettings(n_ctx=4096)
NEED = DeviceMemory("CPU", weights=60 * GIB, kv=3 * GIB, compute=GIB)


def memory(free: int) -> HostMemory:
    return HostMemory(128 * GIB, free, "memory.max of a group")


def test_what_fits_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert settings_that_fit("scout.gguf", SETTINGS, NEED, memory(64 * GIB)) == SETTINGS
    assert not caplog.records


def test_weights_that_do_not_fit_are_mapped_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        fitted = settings_that_fit("scout.gguf", SETTINGS, NEED, memory(34 * GIB))
    assert fitted == EngineSettings(n_ctx=4096, use_extra_bufts=False)
    assert [one.message for one in caplog.records] == [
        "scout.gguf: 30.0 GiB of the weights are read from the disk again for every token: main "
        "memory has 34.0 GiB free, and the model takes 64.0 GiB"
    ]


def test_a_context_that_does_not_fit_is_refused_with_the_numbers() -> None:
    assert settings_that_fit("scout.gguf", SETTINGS, NEED, memory(4 * GIB)) != SETTINGS
    with pytest.raises(AllocationError) as caught:
        settings_that_fit("scout.gguf", SETTINGS, NEED, memory(4 * GIB - 1))
    assert str(caught.value) == (
        "scout.gguf: a context of 4,096 tokens does not fit into main memory, found 4.0 GiB for "
        "the KV cache and the compute buffers, expected at most 4.0 GiB (memory.max of a group). "
        'Lower n_ctx, or give n_ctx="max" for the longest context that fits.'
    )


def test_what_is_needed_is_what_the_engine_has_then(scout_int4: Path) -> None:
    settings = EngineSettings(n_ctx=5000, n_ubatch=64, n_threads=1)
    need = host_need(scout_int4, settings)
    with Engine(scout_int4, settings) as engine:
        held = engine.memory().on("CPU")
    assert (need.kv, need.compute) == (held.kv, held.compute)
    assert need.kv > 0


def test_workers_are_gpus_unless_the_cpu_alone_is_asked_for() -> None:
    assert has_gpus(None, ["127.0.0.1:1"])
    assert has_gpus(["RPC0"], ["127.0.0.1:1"])
    assert not has_gpus((), ["127.0.0.1:1"])
    assert not has_gpus([], ["127.0.0.1:1"])
