from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama4_edge.errors import AllocationError
from llama4_edge.runtime.bindings.memory import DeviceMemory
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.main_memory import has_gpus, host_need, settings_that_fit
from llama4_edge.runtime.settings import EngineSettings, LoadMode
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
        "scout.gguf: a context of 4,096 tokens does not fit into main memory, found "
        "4,294,967,296 bytes for the KV cache and the compute buffers, expected at most "
        "4,294,967,295 bytes (memory.max of a group). "
        'Lower n_ctx, or give n_ctx="max" for the longest context that fits.'
    )


def test_the_contexts_of_several_sequences_are_counted_in_the_refusal() -> None:
    eight = replace(SETTINGS, n_parallel=8)
    with pytest.raises(AllocationError, match="8 contexts of 4,096 tokens do not fit") as caught:
        settings_that_fit("scout.gguf", eight, NEED, memory(4 * GIB - 1))
    assert str(caught.value.hint).startswith("Lower n_ctx or n_parallel, or give")


def test_weights_that_are_not_mapped_have_to_fit() -> None:
    copied = replace(SETTINGS, load_mode="none")
    assert settings_that_fit("scout.gguf", copied, NEED, memory(64 * GIB)) == copied
    with pytest.raises(AllocationError) as caught:
        settings_that_fit("scout.gguf", copied, NEED, memory(64 * GIB - 1))
    assert str(caught.value) == (
        "scout.gguf: the model does not fit into main memory with load_mode=none, found "
        "68,719,476,736 bytes for the weights, the KV cache and the compute buffers, expected at "
        "most 68,719,476,735 bytes (memory.max of a group). "
        "Give load_mode=mmap: of weights that are mapped, only what has room is in memory."
    )


def test_a_model_that_is_copied_answers_as_one_that_is_mapped(
    scout_int4: Path, tmp_path: Path
) -> None:
    """Its weights are anonymous memory then, and no part of the file is mapped."""
    path = tmp_path / "own.gguf"  # which no other test has mapped
    shutil.copy(scout_int4, path)
    tokens = list(range(100, 140))
    logits, weights, mapped = [], [], []
    modes: tuple[LoadMode, ...] = ("auto", "mmap", "none", "dio")
    for mode in modes:
        settings = EngineSettings(n_ctx=512, n_threads=1, load_mode=mode, use_extra_bufts=False)
        need = host_need(path, settings)
        with Engine(path, settings) as engine:
            logits.append(engine.logits(tokens))
            mapped.append(str(path) in Path("/proc/self/maps").read_text())
            weights.append((need.weights, engine.memory().on("CPU").weights))
    for other in logits[1:]:
        np.testing.assert_array_equal(logits[0], other)
    assert mapped == [True, True, False, False]
    assert weights[2][0] == weights[2][1] == weights[3][1] > 4_000_000


def test_a_file_that_was_copied_may_vanish(scout_int4: Path, tmp_path: Path) -> None:
    """Where it is mapped, a file that becomes shorter ends the process (SIGBUS)."""
    path = tmp_path / "scout.gguf"
    shutil.copy(scout_int4, path)
    with Engine(path, EngineSettings(n_ctx=512, n_threads=1, load_mode="none")) as engine:
        before = engine.logits([1, 2, 3])
        os.truncate(path, 0)
        engine.clear()
        np.testing.assert_array_equal(engine.logits([1, 2, 3]), before)


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
