from __future__ import annotations

import ctypes
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from llama4_edge.errors import EngineError
from llama4_edge.runtime.bindings import amx, amx_probe, library
from llama4_edge.runtime.bindings.amx import AMXState, extra_buffers_are_safe, use_extra_bufts
from llama4_edge.runtime.bindings.build import build_command

_CRASHES = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
_COUNTS = "import sys, pathlib; pathlib.Path(sys.argv[1]).open('a').write('x')"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(amx, "TIMEOUT", 600.0)
    amx._state_of_this_process.cache_clear()
    amx._warn.cache_clear()
    yield
    amx._state_of_this_process.cache_clear()


@pytest.fixture
def with_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "system_info", lambda: {"CPU": {"AVX2": "1", "AMX_INT8": "1"}})


def _probe(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    monkeypatch.setattr(amx, "PROBE", command)


def _cache_files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "llama4-edge").glob("*"))


def test_a_library_without_amx_is_safe_without_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amx, "system_info", lambda: {"CPU": {"AVX2": "1"}})
    _probe(monkeypatch, *_CRASHES)
    state = extra_buffers_are_safe()
    assert state == AMXState(False, True, False, "the library was built without AMX")
    assert _cache_files(tmp_path) == []


@pytest.mark.usefixtures("with_amx")
def test_the_real_trial_comes_through_and_is_kept(tmp_path: Path) -> None:
    assert extra_buffers_are_safe() == AMXState(True, True, False, "a trial prompt succeeded")
    (kept,) = _cache_files(tmp_path)
    identity = json.loads(kept.read_text())["identity"]
    assert set(identity["files"]) == set(library.library_info().paths)
    assert extra_buffers_are_safe() == AMXState(True, True, True, "a trial prompt succeeded")


@pytest.mark.usefixtures("with_amx")
def test_a_child_that_crashes_is_not_safe_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _probe(monkeypatch, *_CRASHES)
    said = "a trial prompt ended with SIGSEGV"
    assert extra_buffers_are_safe() == AMXState(True, False, False, said)
    _probe(monkeypatch, sys.executable, "-c", "")
    assert extra_buffers_are_safe() == AMXState(True, False, True, said)


@pytest.mark.usefixtures("with_amx")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import time; time.sleep(600)", "a trial did not end in 0.2 seconds"),
        ("import sys; sys.exit('no module named gguf')", "a trial failed: no module named gguf"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "a trial prompt ended with SIGKILL",
        ),
    ],
)
def test_an_uncertain_end_is_not_safe_and_not_kept(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in script:
        monkeypatch.setattr(amx, "TIMEOUT", 0.2)
    _probe(monkeypatch, sys.executable, "-c", script)
    assert extra_buffers_are_safe() == AMXState(True, False, False, reason)
    assert _cache_files(tmp_path) == []


@pytest.mark.usefixtures("with_amx")
def test_a_child_that_cannot_start_is_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    _probe(monkeypatch, "/no/such/python")
    assert extra_buffers_are_safe().reason == "a trial could not start: No such file or directory"


@pytest.mark.usefixtures("with_amx")
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"survived": true}', "\udcff"])
def test_a_damaged_answer_on_disk_is_found_out_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = tmp_path / "tries"
    _probe(monkeypatch, sys.executable, "-c", _COUNTS, str(tries))
    assert not extra_buffers_are_safe().cached
    (kept,) = _cache_files(tmp_path)
    kept.write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert extra_buffers_are_safe() == AMXState(True, True, False, "a trial prompt succeeded")
    assert extra_buffers_are_safe().cached
    assert tries.read_text() == "xx"


@pytest.mark.usefixtures("with_amx")
def test_another_cpu_or_library_is_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    _probe(monkeypatch, sys.executable, "-c", "")
    assert not extra_buffers_are_safe().cached
    assert extra_buffers_are_safe().cached
    monkeypatch.setattr(amx, "cpu_model", lambda: "another Xeon")
    assert not extra_buffers_are_safe().cached


@pytest.mark.usefixtures("with_amx")
def test_a_cache_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be")
    _probe(monkeypatch, sys.executable, "-c", "")
    assert extra_buffers_are_safe().survived


@pytest.mark.usefixtures("with_amx")
def test_a_relative_cache_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    path = amx._cache_path({})
    assert path is not None
    assert path.parent == Path.home() / ".cache" / "llama4-edge"


@pytest.mark.usefixtures("with_amx")
def test_without_a_home_every_process_tries_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    _probe(monkeypatch, sys.executable, "-c", "")
    states = [extra_buffers_are_safe() for _ in range(2)]
    assert [(state.survived, state.cached) for state in states] == [(True, False)] * 2


@pytest.mark.usefixtures("with_amx")
def test_the_cure_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _probe(monkeypatch, *_CRASHES)
    caplog.set_level(logging.WARNING)
    assert [use_extra_bufts() for _ in range(3)] == [False] * 3
    (record,) = caplog.records
    assert "a trial prompt ended with SIGSEGV" in record.getMessage()
    assert build_command() in record.getMessage()


def test_extra_buffers_are_used_where_they_are_safe() -> None:
    assert use_extra_bufts() is extra_buffers_are_safe().survived


def test_the_trial_model_reaches_every_amx_kernel(tmp_path: Path) -> None:
    path = tmp_path / "trial.gguf"
    amx_probe.write_model(path)
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    # ggml/src/ggml-cpu/amx/common.h: qtype_has_amx_kernels
    assert kinds - {"F32"} == {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
    assert amx_probe.PROMPT >= 64


def test_the_trial_says_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        amx.PROBE,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_trial_runs_on_the_cpu_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # With n_gpu_layers 0 and a GPU among the devices, no AMX kernel would be reached.
    bindings, devices = library.llama(), []

    def record(_path: bytes, parameters: Any) -> None:
        address = ctypes.cast(parameters.devices, ctypes.POINTER(ctypes.c_void_p))
        devices.append(bool(address) and address[0] is None)

    monkeypatch.setattr(bindings, "llama_model_load_from_file", record)
    amx_probe.write_model(tmp_path / "trial.gguf")
    # (Nothing is computed: where AMX cannot be used, that ends the process.)
    with pytest.raises(EngineError, match="the trial model does not load"):
        amx_probe.decode(tmp_path / "trial.gguf")
    assert devices == [True]
