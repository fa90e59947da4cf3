"""The ladder: what leaves the GPU first, how much of it, and what the plan promises then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from demo.checkpoint import Geometry
from llama4_edge.errors import CheckpointError, ModelFileError, SettingError
from llama4_edge.planner import Images, Plan, fallback, machine, plan, planning
from llama4_edge.planner.geometry import open_geometry
from llama4_edge.planner.machine import KEPT_FREE
from llama4_edge.runtime.bindings.amx import use_extra_bufts
from llama4_edge.runtime.bindings.memory import measure
from llama4_edge.runtime.placement import Placement
from llama4_edge.runtime.settings import EngineSettings, LoadMode
from llama4_edge.terminal.plan_view import llama_cpp_flags
from llama4_edge.units import bytes_text
from tests.fixtures import MakeGGUF, MakeProjector

GIB = 2**30
MODES: tuple[LoadMode, LoadMode] = ("auto", "none")


def test_gpus_are_one_text_or_several() -> None:
    one, several = (plan("scout", gpus=gpus, ram=16 * GIB) for gpus in ("h100 x2", ["h100"] * 2))
    assert one.devices == several.devices


def test_scout_in_int4_fits_on_one_h100() -> None:
    result = plan("scout", gpus=["h100"], ram=16 * GIB)
    gpu, host = result.devices
    assert result.fits
    assert result.settings.n_ctx == 32_768
    assert result.settings.placement == Placement()
    # All but the token embedding: 202048 rows of 5120 numbers in Q8_0, 34 bytes for 32.
    assert host.load.weights == (("embedding", 202_048 * 5120 // 32 * 34),)
    assert gpu.memory.weights == 64_737_341_696 - host.memory.weights
    # 48 KiB a token, and one chunk and ubatch for 36 layers.
    assert gpu.load.kv_full_bytes == 32_768 * 48 * 2**10
    assert gpu.load.kv_chunked_bytes == 36 * 8704 * 4096
    assert gpu.device.free_bytes is not None
    assert gpu.left_bytes == gpu.device.free_bytes - KEPT_FREE - gpu.used_bytes
    assert gpu.load.layers == tuple(range(49))


def test_what_pictures_need_is_said_and_put_on_no_device(
    scout_checkpoint: Path, scout_int4: Path
) -> None:
    result = plan("scout", gpus=["h100"], ram=16 * GIB)
    # 576 patches and one row for all, through 34 layers; 144 rows through the adapter.
    layer = 577 * (4 * 1408**2 + 2 * 1408 * 5632) + 2 * 577**2 * 1408
    adapter = 144 * (5632 * 4096 + 4096**2 + 4096 * 5120)
    operations = 2 * (576 * 588 * 1408 + 34 * layer + adapter)
    compute = 38_915_144  # as mtmd has it; see test_projector_file.py
    assert result.images == Images(1_625_113_600, 121_634_816, compute, operations)
    assert result.as_dict()["images"] == {
        "vision_tower_bytes": 1_625_113_600,
        "projector_bytes": 121_634_816,
        "weights_bytes": 1_746_748_416,
        "compute_bytes": compute,
        "operations": operations,
        "path": "",
        "device": None,
        "size": None,
        "tiles": 0,
        "tokens": 0,
        "seconds": None,
    }
    assert sum(device.memory.weights for device in result.devices) == 64_737_341_696
    # The same in any recipe: it stays in bf16.
    assert plan("scout", recipe="int8", gpus=["h100"], ram=64 * GIB).images == result.images
    small = plan(scout_checkpoint, ram=GIB, n_ctx=1024).images
    assert small is not None
    assert small.projector_bytes == 2 * (256 * 96 + 96 * 96 + 96 * 256)
    # A GGUF without a projector beside it.
    assert plan(scout_int4, ram=GIB, n_ctx=1024).images is None
    assert plan("behemoth", ram=GIB, n_ctx=1024).images is None


def test_the_estimate_is_bytes_over_bandwidth() -> None:
    result = plan("scout", gpus=["h100"], ram=16 * GIB)
    gpu, host = result.devices
    assert (gpu.device.bandwidth, host.device.bandwidth) == (3_352 * 10**9, 80 * 10**9)
    seconds = gpu.load.read_bytes / (3_352 * 10**9) + host.load.read_bytes / (80 * 10**9)
    assert result.estimated_decode_tokens_per_second == pytest.approx(1 / seconds)
    # One of 16 experts, and all the rest, but one row of the embedding.
    assert gpu.load.read_bytes == gpu.memory.weights - gpu.load.bytes_of("expert") * 15 // 16
    full = 12 * 32_768 * 4096 + 36 * 8192 * 4096
    assert gpu.load.kv_read_bytes == full
    assert result.estimated_decode_tokens_per_second_full == pytest.approx(
        1 / (seconds + full / (3_352 * 10**9))
    )


def test_as_few_experts_as_needed_leave_the_gpu_and_the_last_layers_first() -> None:
    result = plan("scout", gpus=["rtx4090"], ram=64 * GIB)
    gpu, host = result.devices
    assert result.fits
    assert {role for role, _ in host.load.weights} == {"embedding", "expert"}
    with open_geometry("scout") as scout:
        experts = [one for one in scout.weights if one.role == "expert"]
    moved = _moved(result, [one.name for one in experts])
    # Those of the last layers: whole layers, and perhaps part of the one before.
    layers = sorted({int(name.split(".")[1]) for name in moved})
    assert layers == list(range(layers[0], 48))
    assert len(moved) > 3 * (len(layers) - 1)
    # With one fewer it would not fit: a tensor of experts is larger than what is left.
    assert gpu.left_bytes < max(one.nbytes for one in experts) * 2
    fewer = replace(result.settings.placement, overrides=_overrides(moved[1:]))
    by_hand = plan("scout", gpus=["rtx4090"], ram=64 * GIB, placement=fewer)
    assert not by_hand.fits


def _moved(result: Plan, names: list[str]) -> list[str]:
    """Names that the overrides take from the GPU, the first layer's first."""
    import re

    return [
        name
        for name in names
        if any(re.search(one, name) for one, _ in result.settings.placement.overrides)
    ]


def _overrides(names: list[str]) -> tuple[tuple[str, str], ...]:
    return (("^(" + "|".join(name.replace(".", r"\.") for name in names) + ")$", "CPU"),)


def test_the_cache_becomes_smaller_before_attention_leaves_the_gpu() -> None:
    # All experts in main memory leave 11.5 GiB for a GPU with f16, and 10.3 GiB with q8_0.
    tight = [int(12.1 * GIB)]
    result = plan("scout", vram=tight, ram=96 * GIB)
    assert (result.fits, result.settings.kv_type) == (True, "q8_0")
    assert result.gpus[0].load.layers == tuple(range(49))
    assert "the KV cache is kept as q8_0" in result.why
    fixed = plan("scout", vram=tight, ram=96 * GIB, kv_type="f16")
    assert (fixed.fits, fixed.settings.kv_type) == (True, "f16")
    assert fixed.host.memory.kv > 0


def test_values_become_smaller_still_before_attention_leaves_the_gpu() -> None:
    """At 131,072 tokens, values in q4_0 take 0.75 GiB less than in q8_0."""
    asked: dict[str, Any] = {"ram": 96 * GIB, "n_ctx": 131_072}
    result = plan("scout", vram=[int(13.8 * GIB)], **asked)
    assert (result.fits, result.settings.kv_type) == (True, ("q8_0", "q4_0"))
    assert "the KV cache is kept as K q8_0 and V q4_0" in result.why
    assert result.host.memory.kv == 0
    assert "131,072 tokens of K q8_0 and V q4_0: " in str(result)
    # Where attention leaves anyway, and where q8_0 is asked for, values are in q8_0.
    for smaller in (
        plan("scout", vram=[int(13.3 * GIB)], **asked),
        plan("scout", vram=[int(13.8 * GIB)], kv_type="q8_0", **asked),
    ):
        assert (smaller.settings.kv_type, smaller.host.memory.kv > 0) == ("q8_0", True)


def test_where_experts_spill_the_smaller_caches_are_alternatives() -> None:
    result = plan("scout", gpus=["rtx4090"], ram=96 * GIB)
    assert result.settings.kv_type == "f16"
    caches = [one.what for one in result.alternatives if "cache" in one.what]
    assert caches == ["a KV cache of q8_0", "a KV cache of K q8_0 and V q4_0"]


def test_a_plan_says_its_types_experts_and_load_mode_as_flags() -> None:
    result = plan(
        "scout", gpus=["h100"], kv_type=("q5_1", "iq4_nl"), n_expert_used=2, load_mode="mmap+mlock"
    )
    assert {
        "-ctk q5_1 -ctv iq4_nl",
        "-lm mmap+mlock",
        "--override-kv llama4.expert_used_count=int:2",
    } <= set(llama_cpp_flags(result))
    assert Plan.from_dict(result.as_dict()) == result


def test_a_gpu_too_small_for_anything_is_left_alone() -> None:
    result = plan("scout", vram=[int(1.05 * GIB)], ram=96 * GIB)
    assert result.fits
    assert result.gpus[0].idle
    assert result.settings.placement.devices == ()
    assert result.host.memory.weights == 64_737_341_696


@pytest.fixture(params=["repacked as this CPU likes it", "never repacked"])
def repacking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether weights may be repacked; with AMX they then take 2% more than in the file."""
    allowed = request.param != "never repacked" and use_extra_bufts()
    monkeypatch.setattr(planning, "use_extra_bufts", lambda: allowed)
    return allowed


def test_on_the_cpu_alone_weights_are_counted_as_llama_cpp_holds_them(repacking: bool) -> None:
    result = plan("scout", ram=96 * GIB)
    assert result.settings.use_extra_bufts == repacking
    with open_geometry("scout") as scout:
        reported = measure(scout.path, result.settings).on("CPU")
        in_file = scout.nbytes
    host = result.host
    assert host.memory == reported
    assert host.load.weights_bytes == in_file == 64_737_341_696
    assert host.repacking_bytes == reported.weights - in_file
    assert host.repacking_bytes >= 0 if repacking else host.repacking_bytes == 0
    record = host.as_dict()
    assert sum(record["weights"].values()) + record["repacking_bytes"] == reported.weights
    more = any("weights repacked for this CPU take" in note for note in result.notes)
    assert more == (host.repacking_bytes > 0)


def test_repacking_is_given_up_where_its_bytes_do_not_fit(repacking: bool) -> None:
    roomy = plan("scout", ram=96 * GIB)
    exact = plan("scout", ram=roomy.host.used_bytes)
    assert exact.fits
    assert exact.settings.use_extra_bufts == repacking
    assert exact.settings == roomy.settings
    assert exact.host.left_bytes == 0
    # Mapped from the file instead, which needs no more than the file has.
    short = plan("scout", ram=roomy.host.used_bytes - 1)
    assert not short.settings.use_extra_bufts
    assert short.host.memory.weights == 64_737_341_696
    assert short.host.repacking_bytes == 0
    assert short.fits == (roomy.host.repacking_bytes > 0)


def test_several_gpus_share_the_layers_evenly() -> None:
    result = plan("maverick", gpus=["h100 x4"], ram=16 * GIB)
    used = [gpu.used_bytes for gpu in result.gpus]
    assert result.fits
    # To within a layer of 128 experts and a dense one.
    assert max(used) - min(used) < 10 * GIB
    assert [layer for gpu in result.gpus for layer in gpu.load.layers] == list(range(49))
    assert sum(gpu.memory.weights for gpu in result.gpus) + result.host.memory.weights == (
        _bytes_of("maverick")
    )


def _bytes_of(model: str) -> int:
    with open_geometry(model) as geometry:
        return geometry.nbytes


def test_what_fits_nowhere_says_by_how_much() -> None:
    result = plan("behemoth", gpus=["h100 x2"], ram=64 * GIB)
    assert not result.fits
    short = -result.host.left_bytes
    assert short == result.from_disk_bytes > 890 * GIB
    assert any("main memory is" in note and "from the disk" in note for note in result.notes)
    assert result.estimated_decode_tokens_per_second is None


def test_the_longest_context_fits_and_the_next_does_not() -> None:
    longest = plan("scout", gpus=["h100"], ram=16 * GIB, n_ctx="max")
    assert longest.fits
    assert longest.settings.placement == Placement()
    assert longest.settings.n_ctx % 256 == 0
    assert longest.settings.n_ctx > 300_000
    more = plan(
        "scout",
        gpus=["h100"],
        ram=16 * GIB,
        n_ctx=longest.settings.n_ctx + 256,
        placement=Placement(),
    )
    assert not more.fits


def test_the_longest_context_is_at_most_what_the_model_was_trained_for() -> None:
    assert plan("scout", gpus=["b200 x8"], ram=64 * GIB, n_ctx="max").settings.n_ctx == 10_485_760
    assert plan("scout-base", gpus=["b200 x2"], ram=64 * GIB, n_ctx="max").settings.n_ctx == 262_144


def test_the_longest_context_moves_no_more_experts_than_a_short_one(tmp_path: Path) -> None:
    short = plan("scout", gpus=["rtx4090"], ram=64 * GIB, n_ctx=8192)
    longest = plan("scout", gpus=["rtx4090"], ram=64 * GIB, n_ctx="max")
    assert longest.settings.placement == short.settings.placement
    assert any("moves no more from the GPU than one of 8,192" in note for note in longest.notes)
    assert longest.settings.n_ctx > short.settings.n_ctx


def test_the_default_asks_for_no_more_than_the_model_was_trained_for(
    make_checkpoint: Callable[..., Path],
) -> None:
    short = make_checkpoint(Geometry(max_positions=4096, vision=None))
    assert plan(short, ram=GIB).settings.n_ctx == 4096


def test_flags_are_followed_and_priced() -> None:
    placement = Placement(n_gpu_layers=10, offload_kqv=False)
    result = plan("scout", gpus=["rtx4090"], ram=64 * GIB, placement=placement)
    gpu, host = result.devices
    assert result.settings.placement == placement
    assert result.why == ("placed as asked for",)
    assert gpu.load.layers == tuple(range(39, 49))
    assert (gpu.memory.kv, host.memory.kv) == (0, 32_768 * 48 * 2**10 + 36 * 8704 * 4096)


def test_the_json_has_what_scripts_ask_for() -> None:
    record = plan("scout", gpus=["h100"], ram=16 * GIB).as_dict()
    asked = {"fits", "n_ctx", "kv_type", "n_ubatch", "placement", "bytes_per_token_read"}
    assert asked | {"estimated_decode_tokens_per_second", "bandwidths"} <= record.keys()
    of_device = {"name", "type", "total_bytes", "free_bytes", "weights_bytes", "kv_bytes"}
    for device in record["devices"]:
        assert of_device | {"compute_bytes", "left_bytes", "weights"} <= device.keys()
    assert record["bandwidths"]["H100"]["bytes_per_second"] == 3_352 * 10**9


def test_the_settings_are_those_of_the_plan() -> None:
    result = plan("scout", gpus=["rtx4090"], ram=64 * GIB, n_ctx=9000, kv_type="q8_0", n_ubatch=128)
    assert result.settings == EngineSettings(
        n_ctx=9000,
        n_ubatch=128,
        kv_type="q8_0",
        use_extra_bufts=False,
        placement=result.settings.placement,
    )


def test_weights_that_are_copied_are_no_weights_on_the_disk() -> None:
    mapped, copied = (
        plan("scout", gpus=["rtx4090"], ram=38 * GIB, n_ctx=8192, load_mode=mode) for mode in MODES
    )
    assert mapped.settings == replace(copied.settings, load_mode="auto")
    assert mapped.from_disk_bytes > 0 and copied.from_disk_bytes == 0
    assert not mapped.fits and not copied.fits
    assert (mapped.as_dict()["load_mode"], copied.as_dict()["load_mode"]) == MODES
    short = f"it is {bytes_text(mapped.from_disk_bytes, digits=2)} short"
    assert any("copied into it and not mapped" in note and short in note for note in copied.notes)
    assert not any("reads" in note or "maps the file" in note for note in copied.notes)


def test_each_fallback_asks_less_of_the_gpus_until_none_is_left(
    scout_int4: Path, two_workers: tuple[str, ...]
) -> None:
    asked = plan(scout_int4, n_ctx=1024, workers=two_workers)
    assert sum(gpu.used_bytes for gpu in asked.gpus) > 0
    plans: list[Plan] = [asked]
    while (after := fallback(plans[-1])) is not None:
        plans.append(after)
        assert len(plans) < 60
    used = [sum(gpu.used_bytes for gpu in one.gpus) for one in plans]
    assert all(later < earlier for earlier, later in pairwise(used))
    assert all(one.fits for one in plans)
    assert used[-1] == 0
    assert plans[-1].settings.placement.devices == ()
    # The experts go before anything else does.
    assert {role for role, _ in plans[1].host.load.weights} == {"embedding", "expert"}
    assert any(f"could not allocate: {asked}" in note for note in plans[1].notes)


def test_a_plan_for_another_machine_has_no_other_that_could_be_tried_here() -> None:
    assert fallback(plan("scout", gpus=["h100"], ram=16 * GIB)) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpus": ["gtx 9000"]}, "no GPU called 'gtx 9000'"),
        ({"gpus": ["h100 x0"]}, "number of GPUs is outside its range, found 'h100 x0'"),
        ({"gpus": ["h100 x16"]}, "more GPUs than llama.cpp takes"),
        ({"vram": [0]}, "vram is outside its range, found 0, expected a whole number from 1 up"),
        ({"ram": -1}, "ram is outside its range, found -1"),
        ({"n_ctx": 0}, "n_ctx is outside its range, found 0"),
        ({"n_ctx": "auto"}, "found 'auto', expected None, \"max\", or a whole number from 1 to"),
        ({"n_ctx": 1.5}, "n_ctx is outside its range, found 1.5"),
        ({"n_ctx": 10_485_761}, "Scout .*: n_ctx is more than the model was trained for"),
        ({"n_ubatch": 0}, "n_ubatch is outside its range"),
        ({"n_parallel": 0}, "n_parallel is outside its range"),
        ({"kv_type": "q5_2"}, "kv_type is unknown"),
        ({"gpus": None}, "gpus is of the wrong type, found None, expected a list of names"),
        ({"gpus": [4090]}, "a GPU's name is of the wrong type, found 4090"),
        ({"vram": 24}, "vram is of the wrong type, found 24, expected a list of bytes"),
        ({"vram": ["24G"]}, "vram is outside its range, found '24G'"),
        ({"placement": "CPU"}, "placement is of the wrong type, found 'CPU'"),
        ({"devices": "CUDA0"}, "devices is of the wrong type, found 'CUDA0'"),
        ({"devices": [0]}, "a device has no name, found 0"),
        ({"workers": "a:1"}, "workers is of the wrong type, found 'a:1', expected a list of HOST"),
        ({"workers": [None]}, "not a worker's address, found None"),
        ({"devices": ["CUDA7"]}, "there is no device CUDA7 here"),
        ({"gpus": ["h100"], "devices": ["CUDA0"]}, "neither workers nor devices"),
        ({"ram": GIB, "placement": Placement(devices=("CUDA0",))}, "neither workers nor devices"),
        (
            {"placement": Placement(overrides=(("no_such", "CPU"),))},
            "no_such=CPU matches no tensor of the model",
        ),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        plan("scout", **wrong)  # type: ignore[arg-type]


def test_a_model_that_nobody_knows_is_refused() -> None:
    with pytest.raises(CheckpointError, match="scout, scout-base, maverick, behemoth"):
        plan("scoot")


def test_without_flash_attention_the_cache_stays_as_it_is() -> None:
    result = plan("scout", vram=[int(13.5 * GIB)], ram=96 * GIB, flash_attention="off")
    # llama.cpp takes a quantized cache with flash attention only.
    assert (result.fits, result.settings.kv_type) == (True, "f16")


def test_a_gpu_that_is_full_is_left_alone(
    scout_int4: Path, two_workers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_is_full(*arguments: object) -> machine.Machine:
        result = machine.this_machine(*arguments)  # type: ignore[arg-type]
        return replace(result, gpus=(replace(result.gpus[0], free_bytes=0), *result.gpus[1:]))

    monkeypatch.setattr(planning, "this_machine", first_is_full)
    result = plan(scout_int4, n_ctx=1024, workers=two_workers)
    assert [gpu.name for gpu in result.gpus] == ["RPC1"]
    assert result.settings.placement.devices == ("RPC1",)
    assert "RPC0 is left out: its memory is full" in result.notes


def test_room_for_the_vision_tower_is_kept_on_the_first_gpu() -> None:
    without = plan("scout", gpus=["rtx4090 x2"], ram=64 * GIB)
    result = plan("scout", gpus=["rtx4090 x2"], ram=64 * GIB, image_size=(1920, 1080))
    images = result.images
    assert images is not None
    assert (images.device, images.tiles, images.tokens) == ("RTX 4090 #0", 16, 2322)
    need = 1_746_748_416 + images.compute_bytes
    first, second = result.gpus
    assert first.device.kept_free_bytes == without.gpus[0].device.kept_free_bytes + need
    assert second.device.kept_free_bytes == without.gpus[1].device.kept_free_bytes
    assert first.left_bytes >= 0
    # As much more of the experts is in main memory, to the size of three tensors.
    with_experts, as_before = dict(result.host.load.weights), dict(without.host.load.weights)
    moved = with_experts["expert"] - as_before["expert"]
    assert 0.8 * need < moved < need + 3 * 335_544_320
    # How fast that GPU multiplies is not known here.
    assert images.seconds is None
    assert Plan.from_dict(result.as_dict()) == result


def test_a_gpu_without_room_leaves_the_vision_tower_in_main_memory() -> None:
    result = plan("scout", vram=[2 * GIB], ram=96 * GIB, image_size=(336, 336))
    assert result.images is not None
    assert (result.images.device, result.images.tiles, result.images.tokens) == ("CPU", 1, 147)
    assert result.host.device.kept_free_bytes >= 1_746_748_416


def test_a_projector_beside_a_file_is_counted_as_it_is(
    scout_int4: Path, scout_projector: Path, tmp_path: Path
) -> None:
    model, file = tmp_path / "a.gguf", tmp_path / "mmproj-a.gguf"
    model.symlink_to(scout_int4)
    file.symlink_to(scout_projector)
    images = plan(model, n_ctx=1024, ram=GIB, image_size=(700, 336)).images
    assert images is not None
    assert images.path == str(file)
    assert 0 < file.stat().st_size - images.weights_bytes < 20_000
    assert images.tiles == 4


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("behemoth", (336, 336), "cannot be shown pictures"),
        ("scout", (0, 336), "image_size is outside its range"),
        ("scout", (336,), "image_size is not a size"),
        ("scout", "336x336", "image_size is not a size"),
        ("scout", (336.5, 336), "image_size"),
    ],
)
def test_what_is_no_size_of_a_picture_is_refused(model: str, size: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        plan(model, ram=64 * GIB, image_size=size)


def test_a_projector_that_is_named_need_not_lie_beside_the_model(
    make_gguf: MakeGGUF, make_projector: MakeProjector, scout_int4: Path
) -> None:
    demo = Path(__file__).parents[2] / "demo" / "Llama-4-Tiny"
    model, projector = make_gguf(demo), make_projector(demo)
    images = plan(model, n_ctx=1024, ram=GIB, image_size=(336, 336), projector=projector).images
    assert images is not None
    assert (images.path, images.device) == (str(projector), "CPU")
    with pytest.raises(ModelFileError):
        plan(model, n_ctx=1024, ram=GIB, projector=scout_int4)


def test_several_projectors_matter_only_where_one_is_needed(
    scout_int4: Path, scout_projector: Path, tmp_path: Path
) -> None:
    model = tmp_path / "a.gguf"
    model.symlink_to(scout_int4)
    for name in ("mmproj-a.gguf", "mmproj-b.gguf"):
        (tmp_path / name).symlink_to(scout_projector)
    assert plan(model, n_ctx=1024, ram=GIB).images is None
    with pytest.raises(ModelFileError, match="several projectors"):
        plan(model, n_ctx=1024, ram=GIB, image_size=(336, 336))


def test_the_time_of_a_picture_is_its_operations_at_the_rate_of_this_processor(
    scout_int4: Path, scout_projector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama4_edge.planner.pictures.matrix_rate", lambda: 1e9)
    images = plan(
        scout_int4, n_ctx=1024, ram=None, image_size=(700, 336), projector=scout_projector
    ).images
    assert images is not None
    # A tower of 56x56 pixels, 16 patches and one row for all; three layers, 64 wide.
    layer = 17 * (4 * 64 * 64 + 2 * 64 * 256) + 2 * 17 * 17 * 64
    adapter = 4 * (256 * 96 + 96 * 96 + 96 * 256)
    assert images.operations == 2 * (16 * 588 * 64 + 3 * layer + adapter)
    assert images.seconds == pytest.approx(4 * images.operations / 5e8)
    # The best of all products, however long one of them takes on a busy machine.
    monkeypatch.setattr(machine, "_LONG_ENOUGH", 600.0)
    machine.matrix_rate.cache_clear()
    assert machine.matrix_rate() > 1e8


def test_rows_of_logits_that_one_call_returns_are_counted() -> None:
    few, many = (plan("scout", gpus="h100", n_ctx=512, n_outputs=count) for count in (64, 512))
    assert (few.settings.n_outputs, many.settings.n_outputs) == (64, 512)
    more = many.devices[0].memory.compute - few.devices[0].memory.compute
    assert more == pytest.approx((512 - 64) * 202_048 * 4, rel=0.01)
