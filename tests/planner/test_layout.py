"""Which tensor lies where: held, device by device and byte by byte, against llama.cpp's report."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llama4_edge.planner.geometry import open_geometry
from llama4_edge.planner.gpus import gpus_named
from llama4_edge.planner.layout import device_loads, distribute, layer_devices, split_for
from llama4_edge.planner.machine import described_machine
from llama4_edge.runtime.bindings.memory import measure
from llama4_edge.runtime.placement import Placement
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.runtime.workers.simulated_gpus import simulated_gpus

PLACEMENTS = {
    "all": Placement(tensor_split=split_for([9, 30, 10])),
    "shares": Placement(tensor_split=(3, 1, 2)),
    "experts on the CPU": Placement(
        tensor_split=(1, 1, 1), overrides=((r"blk\.(1|5|47)\.ffn_.*_exps", "CPU"),)
    ),
    "by name": Placement(
        tensor_split=(1, 1, 1), overrides=(("output.weight", "H100 #0"), ("shexp", "CPU"))
    ),
    "20 layers": Placement(n_gpu_layers=20, tensor_split=(1, 0, 1)),
    "cache on the CPU": Placement(offload_kqv=False, tensor_split=(1, 1, 1)),
    "nothing": Placement(n_gpu_layers=0, tensor_split=(1, 1, 1)),
}


@pytest.mark.parametrize("model", ["scout", "maverick"])
@pytest.mark.parametrize("placed", PLACEMENTS)
def test_every_byte_lies_where_llama_cpp_puts_it(model: str, placed: str) -> None:
    gpus = described_machine(gpus_named("h100 x3")).gpus
    names = tuple(gpu.name for gpu in gpus)
    placement = PLACEMENTS[placed]
    named = Placement(
        n_gpu_layers=placement.n_gpu_layers,
        devices=names,
        tensor_split=placement.tensor_split,
        overrides=placement.overrides,
        offload_kqv=placement.offload_kqv,
    )
    settings = EngineSettings(n_ctx=40_000, placement=named, use_extra_bufts=False)
    with open_geometry(model) as geometry:
        report = measure(geometry.path, settings, simulated_gpus(names))
        loads = device_loads(geometry, settings, gpus)
        for device, load in zip((*names, "CPU"), loads, strict=True):
            memory = report.on(device)
            assert (load.weights_bytes, load.kv_bytes) == (memory.weights, memory.kv), device


def test_layers_are_shared_by_free_memory_where_no_split_is_given() -> None:
    gpus = described_machine(gpus_named("h200, rtx3060")).gpus
    of_layer = layer_devices(48, Placement(), gpus)
    # 49 layers in proportion to 143771 and 12288 MiB.
    assert of_layer.count("H200 #0") == 46
    assert of_layer[46:] == ("RTX 3060 #1",) * 3


def test_without_a_gpu_everything_lies_in_main_memory() -> None:
    assert layer_devices(4, Placement(), []) == ("CPU",) * 5
    gpus = described_machine(gpus_named("h100")).gpus
    assert layer_devices(4, Placement(devices=()), gpus) == ("CPU",) * 5


@pytest.mark.parametrize("seed", range(20))
def test_a_split_gives_each_gpu_the_layers_it_was_made_for(seed: int) -> None:
    rng = random.Random(seed)
    counts = [rng.randrange(0, 12) for _ in range(rng.randrange(2, 9))]
    counts[rng.randrange(len(counts))] += 5
    gpus = described_machine(gpus_named(f"h100 x{len(counts)}")).gpus
    # As llama.cpp gets them: each divided by their sum, in 32 bits.
    split = split_for(counts)
    parts = tuple(float(np.float32(part / sum(split))) for part in split)
    of_layer = layer_devices(sum(counts) - 1, Placement(tensor_split=parts), gpus)
    assert [of_layer.count(gpu.name) for gpu in gpus] == counts


def test_layers_are_distributed_evenly() -> None:
    assert distribute([10] * 8, [100, 100], [0, 0])[0] == (4, 4)
    assert distribute([10] * 9, [100, 200], [0, 0])[0] == (3, 6)
    # A compute buffer as large as this leaves the first no room for its half.
    split, load = distribute([10] * 8, [100, 100], [70, 0])
    assert split == (1, 7)
    assert load == pytest.approx(0.8)
    # One that both need, and that fits, leaves neither without work.
    assert distribute([1] * 8, [100, 100], [50, 60])[0] == (4, 4)
    # What does not fit says how much too large it is.
    assert distribute([10] * 8, [20, 20], [0, 0])[1] == pytest.approx(2.0)
