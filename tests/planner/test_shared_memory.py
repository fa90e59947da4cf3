"""Machines whose GPU and processor share one memory: known by their names, planned as one."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llama4_edge.errors import SettingError
from llama4_edge.planner import Plan, fallback, machine, plan, planning
from llama4_edge.planner.gpus import GPUS, gpus_named, known_gpu
from llama4_edge.planner.machine import (
    KEPT_FOR_THE_SYSTEM,
    KEPT_FREE,
    Machine,
    described_machine,
    private_bytes,
    usable_alone,
)
from llama4_edge.runtime.bindings.devices import Device

GIB = 2**30
SHARED = [gpu for gpu in GPUS if gpu.shared is not None]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("dgx spark", "DGX Spark"),
        ("NVIDIA DGX Spark", "DGX Spark"),
        ("GB10", "DGX Spark"),
        ("NVIDIA GB10", "DGX Spark"),
        ("Dell Pro Max with GB10", "DGX Spark"),
        ("DGX Spark 128GB", "DGX Spark"),
        ("strix halo", "Strix Halo 128GB"),
        ("strix-halo 64gb", "Strix Halo 64GB"),
        ("Ryzen AI Max+ 395", "Strix Halo 128GB"),
        ("AMD RYZEN AI MAX+ PRO 395 w/ Radeon 8060S", "Strix Halo 128GB"),
        ("Ryzen AI Max 385 32GB", "Strix Halo 32GB"),
        ("AMD Ryzen AI Max 390 (64 GB)", "Strix Halo 64GB"),
        ("Radeon 8060S", "Strix Halo 128GB"),
        ("Radeon 8060S Graphics", "Strix Halo 128GB"),
        ("AMD Radeon(TM) 8060S Graphics", "Strix Halo 128GB"),
        ("AMD Radeon Graphics (RADV STRIX_HALO)", "Strix Halo 128GB"),
        ("Radeon 8060S Graphics (RADV GFX1151)", "Strix Halo 128GB"),
        ("Radeon 8060S Graphics (AMD open-source driver)", "Strix Halo 128GB"),
        ("gfx1151", "Strix Halo 128GB"),
        ("Framework Desktop", "Strix Halo 128GB"),
        ("GMKtec EVO-X2", "Strix Halo 128GB"),
        ("Ryzen AI Max+ PRO 495", "Gorgon Halo 192GB"),
        ("Radeon 8065S", "Gorgon Halo 192GB"),
        ("AI Max+ 395", "Strix Halo 128GB"),
        ("Apple M3 Max", "M3 Max 128GB"),
        ("Apple M5 Max (40-core GPU)", "M5 Max 128GB"),
        ("MacBook Pro 16-inch M5 Max", "M5 Max 128GB"),
        ("Apple M5", "M5 32GB"),
        ("Apple M5 Pro", "M5 Pro 64GB"),
        ("Apple M5 Max", "M5 Max 128GB"),
        ("m5 max 64gb", "M5 Max 64GB"),
        ("MacBook Pro M4 Max 36GB", "M4 Max 36GB"),
        ("Mac Studio M5 Ultra", "M5 Ultra 512GB"),
        ("M4 Pro", "M4 Pro 64GB"),
        ("m3ultra", "M3 Ultra 512GB"),
    ],
)
def test_they_are_known_by_what_drivers_makers_and_people_say(text: str, meant: str) -> None:
    gpu = known_gpu(text)
    assert gpu is not None
    assert gpu.name == meant
    assert gpus_named(text) == (gpu,)


@pytest.mark.parametrize(
    "text", ["Radeon 890M Graphics", "Ryzen AI 9 HX 370", "strix halo 48gb", "m5 max 100gb", "m7"]
)
def test_others_are_not_taken_for_one(text: str) -> None:
    assert known_gpu(text) is None


def test_a_count_is_not_part_of_the_name() -> None:
    for text in ("dgx spark x2", "2x GB10", "GB10*2"):
        assert [gpu.name for gpu in gpus_named(text)] == ["DGX Spark"] * 2
    # The x in a name is none.
    assert [gpu.name for gpu in gpus_named("GMKtec EVO-X2")] == ["Strix Halo 128GB"]


def test_a_driver_that_names_no_size_is_told_apart_by_the_machines_memory() -> None:
    found = [known_gpu("Apple M4 Max", size * GIB) for size in (36, 64, 128)]
    assert [gpu.name for gpu in found if gpu] == ["M4 Max 36GB", "M4 Max 64GB", "M4 Max 128GB"]
    assert [gpu.bandwidth // 10**9 for gpu in found if gpu] == [410, 546, 546]
    # Linux sees a little less than is sold.
    strix = known_gpu("Radeon 8060S Graphics", 62 * GIB)
    assert strix is not None
    assert strix.name == "Strix Halo 64GB"


def test_each_makes_a_whole_machine_and_its_gpu_has_a_part_of_the_memory() -> None:
    for gpu in SHARED:
        assert gpu.most_together == 1
        assert gpu.shared is not None
        assert gpu.memory <= gpu.shared.total
        assert gpu.shared.most <= gpu.shared.total
        assert bool(gpu.shared.how) == (gpu.memory < gpu.shared.most)
        described = described_machine([gpu])
        assert described.host.total_bytes == gpu.shared.total
        assert described.gpus[0].private_bytes == 0
        assert described.host.bandwidth == gpu.bandwidth
    shares = {gpu.name: gpu.memory / gpu.shared.total for gpu in SHARED if gpu.shared}
    assert shares["M5 Max 128GB"] == 3 / 4
    assert shares["M5 32GB"] == pytest.approx(2 / 3, abs=0.02)
    assert shares["Strix Halo 128GB"] == 1 / 2
    assert shares["DGX Spark"] == 1


@pytest.fixture(scope="module")
def spark() -> Plan:
    return plan("scout", gpus="dgx spark")


def test_what_the_gpu_takes_main_memory_has_less(spark: Plan) -> None:
    gpu, host = spark.devices
    assert spark.fits
    assert host.taken_bytes == gpu.used_bytes > 60 * GIB
    total = 124_610 * 2**20
    assert host.left_bytes == total - KEPT_FOR_THE_SYSTEM - gpu.used_bytes - host.used_bytes
    assert gpu.left_bytes == total - KEPT_FREE - gpu.used_bytes
    # A GPU with a memory of its own takes nothing of main memory.
    assert plan("scout", gpus="h100", ram=16 * GIB).host.taken_bytes == 0
    assert Plan.from_dict(spark.as_dict()) == spark
    assert spark.as_dict()["devices"][1]["taken_bytes"] == gpu.used_bytes


def test_the_longest_context_fits_into_the_one_memory() -> None:
    longest = plan("scout", gpus="dgx spark", n_ctx="max")
    gpu, host = longest.devices
    assert longest.fits
    assert longest.settings.n_ctx > 900_000
    assert gpu.used_bytes + host.used_bytes <= 124_610 * 2**20 - KEPT_FOR_THE_SYSTEM
    assert not plan("scout", gpus="dgx spark", n_ctx=longest.settings.n_ctx * 2).fits


def test_a_model_larger_than_the_one_memory_does_not_fit_by_counting_it_twice() -> None:
    # 62 GiB of 124 for the GPU and 124 for the processor would hold 180 GiB, were they two.
    result = plan("scout", recipe="int8", gpus="strix halo 96gb")
    assert not result.fits
    total = 96 * GIB * 31 // 32
    used = sum(device.used_bytes for device in result.devices)
    assert result.from_disk_bytes == used - (total - KEPT_FOR_THE_SYSTEM) > 0
    assert plan("scout", recipe="int8", gpus="strix halo 128gb").fits


@pytest.mark.parametrize(
    ("name", "default", "more"),
    [
        ("m4 max", "macOS gives the GPU about three quarters of it by default, here 96.00 GiB",
         "`sudo sysctl iogpu.wired_limit_mb=122880` gives it 120 GiB"),
        ("strix halo", "Linux gives the GPU half of it by default (GTT), beside what the firmware "
         "carves out, here 62.00 GiB", "ttm.pages_limit=31457280"),
        ("dgx spark", "the GPU may have nearly all of it, here 121.69 GiB", ""),
    ],
)  # fmt: skip
def test_the_plan_says_how_much_the_gpu_may_take_and_how_it_takes_more(
    name: str, default: str, more: str
) -> None:
    notes = [note for note in plan("scout", gpus=name).notes if "share one memory" in note]
    assert len(notes) == 1
    assert default in notes[0]
    assert more in notes[0]
    assert ("for more" in notes[0]) == bool(more)


def test_what_a_higher_limit_would_bring_is_an_alternative() -> None:
    result = plan("scout", gpus="strix halo")
    assert result.experts_on_cpu > 0
    (more,) = [one for one in result.alternatives if one.what == "120.0 GiB for the GPU"]
    assert more.effect.startswith("all on the GPU, up to ")
    assert more.fits
    # Where nothing left the GPU, or nothing would fit, there is none.
    for name in ("m5 max", "dgx spark", "strix halo 64gb"):
        others = plan("scout", gpus=name).alternatives
        assert not [one for one in others if one.what.endswith("for the GPU")]


def test_main_memory_beside_one_memory_is_refused() -> None:
    with pytest.raises(SettingError) as caught:
        plan("scout", gpus="dgx spark", ram=64 * GIB)
    assert str(caught.value) == (
        "DGX Spark has no main memory of its own: GPU and processor share one memory, found "
        "64.0 GiB of it, expected the size in the name of the GPU, as in 'Strix Halo 64GB'. "
        "Plan without ram=BYTES."
    )


@pytest.mark.parametrize("text", ["dgx spark x2", "2x strix halo", "m5 max, h100", "h100, m5 max"])
def test_a_second_gpu_beside_one_memory_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="is a whole machine, whose GPU and processor share one"):
        plan("scout", gpus=text)
    with pytest.raises(SettingError, match=r"found 2 GPUs: DGX Spark, a GPU of vram=BYTES"):
        plan("scout", gpus="dgx spark", vram=[24 * GIB])


def test_a_bound_on_strix_halo_comes_with_the_share_that_was_measured(spark: Plan) -> None:
    result = plan("scout", recipe="q4_k_m", gpus="strix halo", n_ctx=4096)
    bound, share = result.estimated_decode_tokens_per_second, result.measured_share
    assert bound is not None and share is not None
    # ROCm and Vulkan, tg128, in the source.
    assert round(17.23 / bound, 2) == share.low
    assert round(19.88 / bound, 2) == share.high
    assert share.source.startswith("https://")
    assert result.as_dict()["measured_share"] == {
        "low": 0.67, "high": 0.77, "what": share.what, "source": share.source
    }  # fmt: skip
    one = plan("scout", recipe="int4", gpus="h100", n_ctx=32768)
    empty, full = (
        one.estimated_decode_tokens_per_second,
        one.estimated_decode_tokens_per_second_full,
    )
    assert empty is not None and full is not None and one.measured_share is not None
    assert round(78.4 / empty, 2) == one.measured_share.low
    assert round(68.6 / full, 2) == one.measured_share.high
    # Nobody is known to have measured these.
    assert spark.measured_share is None
    assert spark.as_dict()["measured_share"] is None
    assert plan("scout", ram=128 * GIB).measured_share is None


# --- this machine


def _device(**changes: object) -> Device:
    device = Device(
        name="Vulkan0", description="AMD Radeon Graphics (RADV STRIX_HALO)", type="igpu",
        backend="Vulkan", total_bytes=62 * GIB, free_bytes=60 * GIB, memory_source="ggml",
    )  # fmt: skip
    return replace(device, **changes)  # type: ignore[arg-type]


@pytest.fixture
def _of_124_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_memory", lambda: 124 * GIB)
    monkeypatch.setattr(machine, "carve_out", lambda: None)
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.usefixtures("_of_124_gib")
def test_integrated_gpus_and_apples_share_main_memory() -> None:
    assert private_bytes(_device()) == 0
    assert private_bytes(_device(description="NVIDIA GB10", backend="CUDA")) == 0
    assert private_bytes(_device(description="Apple M5 Max", type="gpu", backend="MTL")) == 0
    assert private_bytes(_device(free_bytes=None, total_bytes=None)) == 0
    # Those with a memory of their own, among them an AMD GPU in an older Mac.
    assert private_bytes(_device(description="NVIDIA H100", type="gpu", backend="CUDA")) is None
    assert private_bytes(_device(description="AMD Radeon Pro", type="gpu", backend="MTL")) is None


@pytest.mark.usefixtures("_of_124_gib")
def test_what_the_firmware_set_aside_is_the_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "carve_out", lambda: (96 * GIB, 2 * GIB))
    assert private_bytes(_device(free_bytes=109 * GIB)) == 94 * GIB
    # An NVIDIA or Intel GPU is not the one with AMD's carve-out.
    assert private_bytes(_device(description="Intel(R) Arc(tm) Graphics")) == 0
    # Where nothing reports it, what exceeds main memory cannot be part of that.
    monkeypatch.setattr(machine, "carve_out", lambda: None)
    monkeypatch.setattr(machine, "machine_memory", lambda: 32 * GIB)
    assert private_bytes(_device(total_bytes=112 * GIB, free_bytes=110 * GIB)) == 80 * GIB


def _strix_with_96_set_aside(*_: object) -> Machine:
    described = described_machine(gpus_named("strix halo"))
    gpu = replace(
        described.gpus[0],
        total_bytes=112 * GIB,
        free_bytes=112 * GIB,
        private_bytes=96 * GIB,
    )
    host = replace(described.host, total_bytes=32 * GIB, free_bytes=30 * GIB, kept_free_bytes=0)
    return Machine((gpu,), host, described=True)


def test_a_gpu_with_a_carve_out_is_not_short_of_main_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "described_machine", _strix_with_96_set_aside)
    small = plan("scout", gpus="strix halo")
    assert small.fits
    assert small.gpus[0].used_bytes > 60 * GIB
    assert small.host.taken_bytes == 0
    large = plan("scout", gpus="strix halo", recipe="int8", n_ctx=8192)
    assert large.gpus[0].used_bytes > 96 * GIB
    assert large.host.taken_bytes == large.gpus[0].used_bytes - 96 * GIB
    assert large.fits


def test_on_this_machine_it_is_one_memory_too(
    scout_int4: Path, two_workers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker's device stands for an integrated GPU, of which llama.cpp has none here.
    def with_a_mac(*arguments: object) -> Machine:
        found = machine.this_machine(*arguments)  # type: ignore[arg-type]
        gpu = replace(
            found.gpus[0],
            description="Apple M4 Max",
            total_bytes=48 * GIB,
            free_bytes=48 * GIB,
            kept_free_bytes=GIB,
            private_bytes=0,
        )
        host = replace(found.host, total_bytes=64 * GIB, free_bytes=50 * GIB)
        return Machine((gpu,), host)

    monkeypatch.setattr(planning, "this_machine", with_a_mac)
    result = plan(scout_int4, n_ctx=1024, devices=["RPC0"], workers=two_workers[:1])
    (gpu,) = result.gpus
    assert result.host.taken_bytes == gpu.used_bytes > 0
    assert result.host.left_bytes == 50 * GIB - gpu.used_bytes - result.host.used_bytes
    (note,) = [note for note in result.notes if "share one memory" in note]
    # The advice is for a machine of 64 GB, whatever the largest of that chip has.
    assert "`sudo sysctl iogpu.wired_limit_mb=57344` gives it 56 GiB" in note
    less = fallback(result)
    assert less is not None
    assert less.host.taken_bytes == sum(gpu.used_bytes for gpu in less.gpus)


def test_a_shared_gpu_leaves_some_of_main_memory_to_everything_else() -> None:
    for gpu in SHARED:
        assert gpu.shared is not None
        beside = GIB
        assert usable_alone(gpu, beside) + beside + KEPT_FOR_THE_SYSTEM <= gpu.shared.total


def test_the_view_shows_what_the_gpu_has_of_main_memory(spark: Plan, tmp_path: Path) -> None:
    from rich.console import Console

    from llama4_edge.terminal.plan_view import plan_view

    with (tmp_path / "view").open("w+", encoding="utf-8") as file:
        console = Console(file=file, width=400)
        console.print(plan_view(spark))
        console.print(plan_view(plan("scout", recipe="q4_k_m", gpus="strix halo")))
        file.seek(0)
        text = file.read()
    assert re.search(r"\b6[12]\.\d GiB the GPU's", text)
    assert "/ the GPU's" in text
    assert "of such bounds 67% to 77% were measured on this GPU: Scout in Q4_K_M" in text
