"""GPUs that are not here: they take what real devices take, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llama4_edge.convert.blueprint import blueprint
from llama4_edge.errors import EngineError, SettingError
from llama4_edge.runtime.bindings.devices import list_devices
from llama4_edge.runtime.bindings.library import library_info
from llama4_edge.runtime.bindings.memory import measure, measure_loaded
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.runtime.placement import MAX_DEVICES, Placement
from llama4_edge.runtime.settings import EngineSettings, KVType
from llama4_edge.runtime.workers import simulated_gpus as module
from llama4_edge.runtime.workers.remote import connect
from llama4_edge.runtime.workers.simulated_gpus import simulated_gpus
from llama4_edge.runtime.workers.worker import local_workers
from tests.asking import until

from .test_worker import runs


def test_a_simulated_gpu_takes_what_a_worker_takes(tiny_path: Path) -> None:
    names = ("A", "B")
    placed = Placement(devices=names, tensor_split=(1, 1))
    settings = EngineSettings(n_ctx=2048, placement=placed)
    counted = measure(tiny_path, settings, simulated_gpus(names))
    with local_workers(2) as endpoints, connect(endpoints) as workers:
        placed = Placement(devices=("RPC0", "RPC1"), tensor_split=(1, 1))
        settings = EngineSettings(n_ctx=2048, placement=placed, workers=endpoints)
        loaded = workers.run(lambda: measure_loaded(tiny_path, settings, workers.native_devices))
    # A GPU aligns tensors to 128 bytes, the CPU behind these workers to 64.
    padding = 64 * len(read_gguf(tiny_path).tensors)
    for name, worker in (("A", "RPC0"), ("B", "RPC1"), ("CPU", "CPU")):
        one, other = counted.on(name), loaded.on(worker)
        assert one.kv == other.kv
        assert other.weights <= one.weights <= other.weights + padding
        assert other.compute <= one.compute <= other.compute + 4 * padding
        assert other.compute > 16 * padding


def test_a_simulated_gpu_has_room_for_the_weights_that_a_gpu_copies_to_itself(
    tmp_path: Path,
) -> None:
    scout = blueprint("scout").write_header(tmp_path / "scout.gguf")
    experts = 16 * 5120 * 8192 // 256 * 144  # one tensor of them in Q4_K

    def compute(n_ubatch: int) -> int:
        placement = Placement(devices=("A",), overrides=(("_exps", "CPU"),))
        settings = EngineSettings(n_ubatch=n_ubatch, placement=placement, use_extra_bufts=False)
        return measure(scout, settings, simulated_gpus(["A"])).on("A").compute

    # Few tokens are computed where the weights are, many where the GPU is.
    assert compute(31) < experts // 10
    assert compute(32) >= experts


def test_a_simulated_gpu_has_room_for_the_copy_of_a_quantized_cache(tmp_path: Path) -> None:
    scout = blueprint("scout").write_header(tmp_path / "scout.gguf")

    def compute(kv_type: KVType, n_ubatch: int) -> int:
        settings = EngineSettings(
            n_ctx=131_072,
            n_ubatch=n_ubatch,
            kv_type=kv_type,
            placement=Placement(devices=("A",)),
        )
        return measure(scout, settings, simulated_gpus(["A"])).on("A").compute

    # CUDA attends to keys and values in f16 where it reads a prompt, one layer's at a time.
    copy = 131_072 * 8 * 128 * 2 * 2
    assert compute("f16", 64) < copy // 4
    assert compute("q8_0", 64) >= copy
    assert compute("q4_0", 64) == compute("q8_0", 64)
    assert compute("q8_0", 2) < copy // 4


def test_simulated_gpus_are_in_nobodys_list_of_devices() -> None:
    simulated_gpus(["A"])
    assert [one.name for one in list_devices() if one.backend == "RPC"] == []


def test_there_are_only_as_many_simulated_gpus_as_llama_cpp_takes(tiny_path: Path) -> None:
    names = [f"GPU {number}" for number in range(MAX_DEVICES)]
    settings = EngineSettings(
        n_ctx=256, placement=Placement(devices=tuple(names), tensor_split=(1,) * len(names))
    )
    report = measure(tiny_path, settings, simulated_gpus(names))
    assert {*names, "CPU"} == {one.device for one in report.devices}
    with pytest.raises(SettingError, match=f"expected at most {MAX_DEVICES}"):
        simulated_gpus([*names, "one more"])


def test_without_rpc_it_is_said_what_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    info = library_info()
    without = tuple(path for path in info.paths if "libggml-rpc" not in path)
    monkeypatch.setattr(module, "library_info", lambda: replace(info, paths=without))
    with pytest.raises(EngineError, match=r"llama\.cpp without libggml-rpc.*-DGGML_RPC=ON"):
        module._start()


def test_the_process_behind_them_ends_with_this_one_even_when_it_is_killed() -> None:
    program = (
        "from llama4_edge.runtime.workers.simulated_gpus import simulated_gpus; "
        "simulated_gpus(['A']); "
        "print('up', flush=True); import time; time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert children
    until(lambda: not any(runs(int(pid)) for pid in children))
