"""Ways to load a file: what is locked in memory, and what cannot be."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from llama4_edge.errors import AllocationError
from llama4_edge.runtime.bindings.library import CapturedLog, LogLine
from llama4_edge.runtime.bindings.memory import DeviceMemory
from llama4_edge.runtime.main_memory import check_loaded, settings_that_fit
from llama4_edge.runtime.settings import EngineSettings, LoadMode
from llama4_edge.system.memory import HostMemory, lockable_bytes

MIB = 2**20
# Loads a model in a process that may lock so many bytes of memory and has no privilege to more, and
# prints how much of it is locked, or the error.
LOAD = """
import ctypes, json, resource, sys
path, mode, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
libc = ctypes.CDLL(None)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
sets[0] &= ~(1 << 14)  # CAP_IPC_LOCK
assert libc.capset(header, sets) == 0
import llama4_edge
from llama4_edge.errors import Llama4EdgeError
try:
    with llama4_edge.Model(path, n_ctx=256, n_threads=1, load_mode=mode, devices=()) as model:
        status = open("/proc/self/status").read()
        locked = next(line for line in status.splitlines() if line.startswith("VmLck:"))
        answer = model.generate([1, 2, 3], max_tokens=4, temperature=0.0).tokens
    print(json.dumps([int(locked.split()[1]) * 1024, list(answer)]))
except Llama4EdgeError as error:
    print(json.dumps([str(error)]))
"""


def load(path: Path, mode: LoadMode, limit: int) -> list[object]:
    command = [sys.executable, "-c", LOAD, str(path), mode, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.skipif(
    sys.platform != "linux" or (lockable_bytes() or 4 * MIB) < 4 * MIB,
    reason="reads /proc/self/status, and locks some memory",
)
def test_locked_weights_stay_in_memory_and_answer_alike(tiny_path: Path) -> None:
    size = tiny_path.stat().st_size
    nothing, answer = load(tiny_path, "auto", 4 * MIB)
    assert nothing == 0
    modes: tuple[LoadMode, ...] = ("mlock", "mmap+mlock")
    for mode in modes:
        locked, same = load(tiny_path, mode, 4 * MIB)
        assert isinstance(locked, int)
        assert size * 0.5 < locked < size * 1.1
        assert same == answer


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("mode", ["mlock", "mmap+mlock"])
def test_more_than_may_be_locked_is_refused_before_it_is_loaded(
    tiny_path: Path, mode: LoadMode
) -> None:
    (error,) = load(tiny_path, mode, 65_536)
    assert isinstance(error, str)
    assert f"load_mode={mode} locks more memory than this process may, found " in error
    assert "of weights, expected at most 64.0 KiB (RLIMIT_MEMLOCK). Raise the limit" in error


def test_what_llama_cpp_could_not_lock_is_an_error() -> None:
    """As where other locks of the process have used up what the limit leaves."""
    line = "warning: failed to mlock 1048576-byte buffer (after previously locking 0 bytes): no"
    log = CapturedLog([LogLine(logging.INFO, "loading"), LogLine(logging.WARNING, line)])
    with pytest.raises(
        AllocationError, match=r"x\.gguf: the weights are not locked in memory"
    ) as it:
        check_loaded("x.gguf", log)
    assert "found failed to mlock 1048576-byte buffer" in str(it.value)
    check_loaded("x.gguf", CapturedLog([LogLine(logging.WARNING, "something else")]))


def test_direct_io_that_is_not_possible_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    line = "Failed to open file 'x.gguf' with error: no. Falling back to buffered I/O"
    with caplog.at_level(logging.WARNING):
        check_loaded("x.gguf", CapturedLog([LogLine(logging.WARNING, line)]))
    (record,) = caplog.records
    assert record.message.startswith("x.gguf: direct I/O is not possible there: Failed to open")


@pytest.mark.parametrize("mode", ["none", "dio", "mlock", "mmap+mlock"])
def test_what_has_to_be_in_memory_whole_has_to_fit(mode: LoadMode) -> None:
    need = DeviceMemory("CPU", weights=100, kv=10, compute=10)
    memory = HostMemory(1000, 119, "operating system")
    with pytest.raises(AllocationError, match="does not fit into main memory with load_mode="):
        settings_that_fit("x.gguf", EngineSettings(load_mode=mode), need, memory)


def test_a_process_knows_how_much_it_may_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (5, 9))
    monkeypatch.setattr("llama4_edge.system.memory._may_lock_all", lambda: False)
    assert lockable_bytes() == 5
    monkeypatch.setattr("llama4_edge.system.memory._may_lock_all", lambda: True)
    assert lockable_bytes() is None
    monkeypatch.setattr("llama4_edge.system.memory._may_lock_all", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert lockable_bytes() is None
