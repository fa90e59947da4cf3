"""What finished sequences keep in main memory takes what a plan leaves, and moves nothing."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

from rich.console import Console

from llama4_edge import Model
from llama4_edge.planner import Plan, plan
from llama4_edge.terminal.plan_view import llama_cpp_flags, plan_view

GIB = 2**30


def planned(ram: int, cache_ram: int | None = None) -> Plan:
    return plan("scout", gpus=["rtx4090"], ram=ram, cache_ram=cache_ram)


def test_the_usual_amount_is_a_quarter_of_what_is_left_and_at_most_8_gib() -> None:
    tight, roomy = planned(64 * GIB), planned(256 * GIB)
    assert 0 < tight.cache_ram_bytes == tight.host.left_bytes // 4 < 8 * GIB
    assert roomy.cache_ram_bytes == 8 * GIB


def test_what_was_asked_for_is_taken_up_to_what_is_left_and_never_moves_anything() -> None:
    usual = planned(64 * GIB)
    for cache_ram, expected in ((0, 0), (GIB, GIB), (100 * GIB, usual.host.left_bytes)):
        result = planned(64 * GIB, cache_ram)
        assert result.cache_ram_bytes == expected
        assert result.devices == usual.devices and result.fits
        assert replace(result.settings, cache_ram=None) == usual.settings
        assert any("left for cache_ram" in note for note in result.notes) == (cache_ram > expected)


def test_a_plan_that_does_not_fit_keeps_nothing() -> None:
    assert planned(16 * GIB).cache_ram_bytes == 0
    assert planned(16 * GIB, GIB).cache_ram_bytes == 0


def test_json_and_text_say_how_many_conversations_that_is() -> None:
    result = planned(256 * GIB, 4 * GIB)
    record = result.as_dict()
    assert (record["cache_ram"], record["cache_ram_bytes"]) == (4 * GIB, 4 * GIB)
    assert Plan.from_dict(record) == result
    assert "-cram 4096" in list(llama_cpp_flags(result))
    # 48 KiB a token for the full layers, and a chunk of 36 others: 2.625 GiB.
    one = 32_768 * 48 * 2**10 + 8192 * 36 * 4096
    text = StringIO()
    Console(width=200, file=text).print(plan_view(result))
    shown = text.getvalue()
    assert "up to 4.0 GiB more of main memory" in shown
    assert f"{4 * GIB / one:.1f} full contexts of 2.6 GiB" in shown


def test_several_sequences_say_what_each_takes() -> None:
    result = plan("scout", gpus=["h100 x2"], ram=64 * GIB, n_parallel=8)
    cache = sum(device.memory.kv for device in result.devices)
    assert cache == 8 * (32_768 * 48 * 2**10 + 8704 * 36 * 4096)
    assert "each of the 8 sequences has 2.70 GiB of the KV cache for itself" in result.notes


def test_a_model_keeps_as_much_as_its_plan_says(tiny_path: Path) -> None:
    chosen = plan(tiny_path, cache_ram=64 << 20)
    with Model(tiny_path, plan=chosen) as model:
        assert model.engine.settings.cache_ram == 64 << 20
    with Model(tiny_path, cache_ram=32 << 20) as model:
        assert model.engine.settings.cache_ram == 32 << 20
        assert model.plan is None or model.plan.settings.cache_ram == 32 << 20
