"""llama.cpp's own count of its memory, before loading and after."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama4_edge.errors import EngineError
from llama4_edge.runtime.bindings.memory import DeviceMemory, MemoryReport, measure, measure_loaded
from llama4_edge.runtime.settings import EngineSettings


def test_what_is_counted_beforehand_is_what_loading_allocates(tiny_path: Path) -> None:
    settings = EngineSettings(n_ctx=2048, n_ubatch=128)
    report = measure(tiny_path, settings)
    assert report == measure_loaded(tiny_path, settings)
    (host,) = report.devices
    assert host.device == "CPU"
    assert host.weights > 0
    assert host.compute > 0


def test_a_file_that_llama_cpp_refuses_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF nonsense")
    for ask in (measure, measure_loaded):
        with pytest.raises(EngineError, match=r"llama\.cpp refuses the model"):
            ask(tmp_path / "x.gguf", EngineSettings())


def test_a_device_that_holds_nothing_has_no_bytes() -> None:
    report = MemoryReport((DeviceMemory("CPU", 1, 2, 3),))
    assert report.on("CPU").total == 6
    assert report.on("GPU") == DeviceMemory("GPU", 0, 0, 0)
