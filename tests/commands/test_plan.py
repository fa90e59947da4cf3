"""`llama4 plan`: what it prints, how it ends, and how `run` follows it."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama4_edge.planner import Plan
from llama4_edge.runtime.workers.worker import local_workers
from tests.command_line import Command, the_error
from tests.pseudo_terminal import PATIENCE


def test_a_plan_shows_what_goes_where_and_why(llama4: Command) -> None:
    result = llama4("plan", "scout", "--gpu", "rtx4090", "--ram", "64G")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "fits  Llama 4 Scout 17B 16E Instruct, int4, 32,768 tokens, KV cache f16, ubatch 512"
    )
    assert lines[2].startswith(
        "RTX 4090  not here; as the table has it; layers 0-47 and the output: 22."
    )
    # Bars of 40 signs: experts, other weights, cache, buffers, what is kept free, what is left.
    assert [len(line) for line in (lines[3], lines[5])] == [40, 40]
    assert set(lines[3]) <= set("█▓▒░-·")
    experts = next(line for line in lines if line.startswith("experts ")).split("  ")
    assert len([cell for cell in experts if cell.strip()]) == 3
    text = result.stdout
    assert "tensors of experts" in text
    assert "at 1,008 GB/s (the maker's data sheet)" in text
    assert "at 80 GB/s (assumed: two channels of DDR5)" in text
    assert r"-ngl 49 -ot '^blk\.(" in text
    assert " ".join(text.split("images ")[1].split("\ninstead")[0].split()) == (
        "take 1.7 GiB more (1.5 GiB vision tower, 116.0 MiB projector, up to 37.1 MiB to compute "
        "with) where there is room when the first one is shown; --image-size WxH keeps room"
    )


def test_json_is_the_plan(llama4: Command) -> None:
    result = llama4("plan", "scout", "--gpu", "h100 x2", "--ram", "1.5G", "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == 0
    assert record["path"] == "scout"
    assert [device["name"] for device in record["devices"]] == ["H100 #0", "H100 #1", "CPU"]
    assert record["devices"][2]["total_bytes"] == 1.5 * 2**30
    assert (record["images"]["weights_bytes"], record["images"]["device"]) == (1_746_748_416, None)
    assert json.loads(json.dumps(Plan.from_dict(record).as_dict())) == record


def test_what_does_not_fit_exits_with_1(llama4: Command) -> None:
    result = llama4("plan", "behemoth", "--gpu", "h100", "--ram", "64G")
    assert result.exit_code == 1
    assert result.stdout.startswith("does not fit")
    assert "main memory is" in result.stdout


@pytest.mark.parametrize(
    ("said", "tokens"), [("max", None), ("128k", 131_072), ("1M", 1_048_576), ("5000", 5000)]
)
def test_contexts_are_said_as_people_say_them(
    llama4: Command, said: str, tokens: int | None
) -> None:
    result = llama4("plan", "scout", "--gpu", "b200", "--ram", "64G", "-c", said, "--json")
    found = json.loads(result.stdout)["n_ctx"]
    assert found == tokens if tokens else found > 1_048_576


def test_flags_place_it_and_devices_only_narrow_the_choice(
    llama4: Command, scout_int4: Path
) -> None:
    by_hand = llama4("plan", "scout", "--gpu", "h100", "-ngl", 10, "-nkvo", "-ncmoe", 41, "--json")
    placement = json.loads(by_hand.stdout)["placement"]
    assert (placement["n_gpu_layers"], placement["offload_kqv"]) == (10, False)
    assert len(placement["overrides"]) == 1
    with local_workers(2) as endpoints:
        workers = ",".join(endpoints)
        chosen = llama4("plan", scout_int4, "--workers", workers, "-dev", "RPC1", "--json")
        checked = llama4("plan", scout_int4, "--workers", workers, "-c", "4k", "--check", "--json")
    record = json.loads(chosen.stdout)
    assert [device["name"] for device in record["devices"]] == ["RPC1", "CPU"]
    assert record["placement"]["devices"] == ["RPC1"]
    rows = json.loads(checked.stdout)["check"]
    assert [(row["name"], row["off"]) for row in rows] == [("RPC0", 0), ("RPC1", 0), ("CPU", 0)]


def test_a_check_shows_what_was_allocated(llama4: Command, scout_int4: Path) -> None:
    result = llama4("plan", scout_int4, "-c", "1k", "--check")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "as planned, within 1% on every device"
    (total,) = [line.split() for line in result.stdout.splitlines() if "0.00%" in line]
    assert total[1] == total[2]


def test_the_table_and_its_picture(llama4: Command, tmp_path: Path) -> None:
    result = llama4("plan", "scout-base", "--table", "--plot", "scout.png")
    assert (result.exit_code, result.stderr) == (0, "drawn: scout.png\n")
    assert (tmp_path / "scout.png").read_bytes().startswith(b"\x89PNG")
    lines = result.stdout.splitlines()
    assert lines[0] == "Llama 4 Scout 17B 16E, GiB"
    assert lines[1].split() == ["1k", "8k", "32k", "128k", "256k"]
    assert [line.split()[0] for line in lines[2:12:2]] == ["q4_0", "q4_k_m", "int4", "int8", "bf16"]
    cells = json.loads(llama4("plan", "scout", "--table", "--recipe", "int8", "--json").stdout)
    assert {cell["recipe"] for cell in cells} == {"int8"}
    assert cells[2]["gpu_bytes"] / 2**30 == pytest.approx(108.45, abs=0.01)


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_counted(
    llama4: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama4_edge.planner.table.table", lambda **_: pytest.fail("counted"))
    error = the_error(llama4("plan", "scout", "--plot", "absent/scout.png"))
    assert "absent/scout.png" in error and "no directory absent" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a MODEL, or --table for all presets"),
        (["scout", "--table", "--check"], "--check loads one plan"),
        (
            ["--table", "--gpu", "h100"],
            "--table and --plot take only --recipe, -ctk, -ctv",
        ),
        (["scout", "-c", "many"], "'many' is not max, or tokens such as 32768 or 128k"),
        (["scout", "-c", "-1"], "'-1' is not max, or tokens"),
        (["scout", "-c", "4096M"], "more than llama.cpp can count"),
        (["scout", "--vram", "24"], "'24' is not a size of memory, such as 24G"),
        (["scout", "--ram", "0G"], "'0G' is not a size of memory"),
        (["scout", "-ctk", "q5_2"], "'q5_2' is not one of"),
        (["scout", "--recipe", "int5"], "'int5' is not one of"),
    ],
)
def test_nonsense_is_a_usage_error(llama4: Command, arguments: list[str], message: str) -> None:
    result = llama4("plan", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scout", "--gpu", "gtx9000"], "no GPU called 'gtx9000'"),
        (["scout", "-c", "11M"], "n_ctx (-c) is more than"),
        (["nothing"], "nothing does not exist"),
        (["scout", "--check"], "only a GGUF on this machine can be loaded"),
        (["scout", "--gpu", "h100", "-dev", "CUDA0"], "neither workers nor devices"),
    ],
)
def test_what_cannot_be_planned_is_one_error(
    llama4: Command, arguments: list[str], message: str
) -> None:
    result = llama4("plan", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_run_follows_the_plan_where_no_flag_places_the_model(
    llama4: Command, scout_int4: Path
) -> None:
    command = ["run", scout_int4, "--temp", "0", "-n", "5", "-t", "1", "Hello"]
    alone = llama4(*command)
    with local_workers(2) as endpoints:
        workers = ("--workers", ",".join(endpoints))
        planned = llama4(*command, *workers, "-v")
        placed = llama4(*command, *workers, "-ngl", "1", "-v")
    assert planned.stdout == placed.stdout == alone.stdout
    assert any("tokens of f16: RPC0 " in line for line in planned.stderr.splitlines())
    assert not any("tokens of f16: RPC0 " in line for line in placed.stderr.splitlines())


# A table that is counted again and again.
ENDLESS_TABLE = """
from importlib import import_module
module = import_module("llama4_edge.planner.table")
table = module.table
def endless(**settings):
    while True:
        table(**settings)
module.table = endless
from llama4_edge.__main__ import main
main()
"""


def test_an_interrupt_ends_it_soon_and_whole(tmp_path: Path) -> None:
    # It must not be lost in one of the many calls that llama.cpp makes back into Python.
    command = [sys.executable, "-c", ENDLESS_TABLE, "plan", "--table"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text():  # the process of the simulated GPUs: it has begun to count
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (130, b"", b"interrupted\n")


def test_flags_that_the_command_has_already_are_not_said_again(
    llama4: Command, tiny_path: Path
) -> None:
    shown = llama4("plan", tiny_path, "-c", 128).stdout
    assert f"llama4 chat {tiny_path} -c 128" in " ".join(shown.split())
    assert shown.count("-c 128") == 1


def test_the_next_command_asks_for_what_was_planned(llama4: Command, tiny_path: Path) -> None:
    asked = ["-ub", 64, "-lm", "none", "-ctk", "bf16", "-ctv", "f16", "-fa", "on", "--experts", 2]
    shown = " ".join(llama4("plan", tiny_path, "-c", 128, *asked).stdout.split())
    assert f"llama4 chat {tiny_path} -c 128 {' '.join(map(str, asked))}" in shown


def test_the_next_command_places_by_hand_what_was_placed_so(
    llama4: Command, tiny_path: Path
) -> None:
    placing = ["-dev", "none", "-ngl", "all", "-ncmoe", 2, "-ot", "ffn_.*_exps=CPU"]
    shown = " ".join(llama4("plan", tiny_path, "-c", 128, *placing, "-nkvo").stdout.split())
    command = "-dev none -ngl all -ncmoe 2 -ot 'ffn_.*_exps=CPU' -nkvo"
    assert f"llama4 chat {tiny_path} -c 128 {command}" in shown
    assert llama4("plan", tiny_path, "-c", 128, *shlex.split(command)).exit_code == 0


def test_several_conversations_are_planned_for_python_and_a_server(
    llama4: Command, tiny_path: Path
) -> None:
    shown = " ".join(llama4("plan", tiny_path, "-c", 128, "-np", 4).stdout.split())
    assert f"llama4_edge.Model('{tiny_path}', n_ctx=128, n_parallel=4)" in shown
    assert "-c 512 -np 4" in shown
    assert "llama4 chat" not in shown


def test_a_plan_with_workers_names_them_to_llama_cpp(llama4: Command, scout_int4: Path) -> None:
    with local_workers(1) as endpoints:
        shown = llama4("plan", scout_int4, "-c", 128, "--workers", endpoints[0]).stdout
    text = " ".join(shown.split())
    assert f"-c 128 --workers {endpoints[0]}" in text
    assert f"as flags of llama.cpp: -c 128 --rpc {endpoints[0]} -ngl" in text
