"""Adapters in a plan: their bytes where they lie, and the buffers to compute with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama4_edge.errors import ModelFileError
from llama4_edge.planner import Plan, plan
from llama4_edge.planner.check import check
from llama4_edge.runtime.placement import Placement, cpu_moe_overrides
from tests.adapters import tiny_adapter, tiny_control_vector
from tests.gguf_maker import tiny_model

TARGETS = [
    name
    for name, tensor in tiny_model().tensors.items()
    if tensor.ndim > 1 and name != "rope_freqs.weight"
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapter(TARGETS, rank=16).write(tmp_path_factory.mktemp("a") / "adapter.gguf")


@pytest.fixture(scope="module")
def vector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_control_vector().write(tmp_path_factory.mktemp("v") / "vector.gguf")


def bytes_of(*parts: str) -> int:
    """Bytes of the adapter's matrices for tensors whose names have one of these in them."""
    made = tiny_adapter(TARGETS, rank=16)
    return sum(
        tensor.nbytes for name, tensor in made.tensors.items() if any(p in name for p in parts)
    )


@pytest.mark.parametrize(
    "placement",
    [
        None,
        Placement(overrides=cpu_moe_overrides()),
        Placement(n_gpu_layers=2),
        Placement(offload_kqv=False, devices=("RPC0",)),
    ],
)
def test_what_was_planned_is_allocated_to_the_byte(
    tiny_path: Path,
    adapter: Path,
    vector: Path,
    two_workers: tuple[str, ...],
    placement: Placement | None,
) -> None:
    planned = plan(
        tiny_path,
        n_ctx=2048,
        workers=two_workers,
        placement=placement,
        adapters=[(adapter, 0.5)],
        control_vectors=[vector],
    )
    for row in check(planned):
        assert row.planned == row.allocated


def test_adapters_lie_with_the_tensors_that_they_change(tiny_path: Path, adapter: Path) -> None:
    def on_devices(placement: Placement) -> tuple[int, int]:
        planned = plan(tiny_path, n_ctx=2048, vram=[2**32], placement=placement, adapters=[adapter])
        gpu, host = planned.devices
        return gpu.memory.adapters, host.memory.adapters

    embedding, experts, everything = bytes_of("token_embd"), bytes_of("_exps"), bytes_of("")
    on_gpu, on_host = on_devices(Placement())
    # Where a row is no multiple of 32 numbers, as the vocabulary's, a GPU pads what follows.
    assert on_gpu == pytest.approx(everything - embedding, abs=128)
    assert on_host == embedding
    on_gpu, on_host = on_devices(Placement(overrides=cpu_moe_overrides()))
    assert on_gpu == pytest.approx(everything - embedding - experts, abs=128)
    assert on_host == embedding + experts


def test_repacked_weights_leave_their_adapters_in_plain_memory(
    tiny_path: Path, adapter: Path
) -> None:
    host = plan(tiny_path, n_ctx=2048, devices=(), adapters=[adapter]).host
    assert host.memory.adapters == bytes_of("")


def test_computing_with_an_adapter_takes_more(tiny_path: Path, adapter: Path) -> None:
    without = plan(tiny_path, n_ctx=2048, vram=[2**32]).devices[0]
    with_it = plan(tiny_path, n_ctx=2048, vram=[2**32], adapters=[adapter]).devices[0]
    assert with_it.memory.compute > without.memory.compute
    assert with_it.used_bytes == with_it.memory.total


def test_a_plan_keeps_them(tiny_path: Path, adapter: Path, vector: Path, tmp_path: Path) -> None:
    planned = plan(
        tiny_path,
        n_ctx=2048,
        adapters=[(adapter, 0.5)],
        control_vectors=[(vector, -1.0)],
        control_vector_layers=(1, 2),
    )
    planned.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == planned


def test_an_adapter_of_another_model_is_refused_before_anything_is_counted(adapter: Path) -> None:
    with pytest.raises(ModelFileError, match="adapter of another model"):
        plan("scout", vram=[2**40], ram=2**40, adapters=[adapter])
