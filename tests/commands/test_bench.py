"""`llama4 bench`: its command line, its table, its JSON, and what it leaves on the disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llama4_edge.cli import main
from llama4_edge.convert.presets import PRESETS
from llama4_edge.runtime.workers.worker import local_workers
from tests.asking import until
from tests.pseudo_terminal import PATIENCE
from tests.small_config import SMALL

Bench = Callable[..., Result]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**PRESETS["scout"].config, **SMALL}))
    return path


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs the command with a cache of its own, on one thread."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> Result:
        words = ["bench", *(str(one) for one in arguments), "-t", "1"]
        return CliRunner().invoke(main, words, catch_exceptions=False)

    return run


def test_a_synthetic_model_is_made_measured_and_removed(
    bench: Bench, config: Path, tmp_path: Path
) -> None:
    done = bench("--synthetic", config, "-p", "8", "-n", "4", "-r", 2, "-d", "0,8")
    assert done.exit_code == 0, done.output
    title, facts, _, header, *rows = done.stdout.splitlines()
    assert title.endswith(".gguf") and "random" not in title
    assert "18.2M" not in facts and facts.endswith("CPU, 1 threads")
    assert header.split() == ["test", "tokens/s", "±"]
    assert [row[:9].strip() for row in rows] == ["pp8", "tg4", "pp8 @ d8", "tg4 @ d8"]
    assert list((tmp_path / "cache" / "llama4-edge" / "synthetic").iterdir()) == []


def test_json_is_an_array_as_llama_bench_prints_it(bench: Bench, config: Path) -> None:
    done = bench(
        "--synthetic", config, "--layers", 4, "--recipe", "q4_0", "-p", "0", "-n", "4",
        "-r", 1, "-ctk", "f16,q8_0", "-ctv", "f16,q4_0", "--json",
    )  # fmt: skip
    records = json.loads(done.stdout)
    assert [(one["n_gen"], one["type_k"], one["type_v"]) for one in records] == [
        (4, "f16", "f16"),
        (4, "f16", "q4_0"),
        (4, "q8_0", "f16"),
        (4, "q8_0", "q4_0"),
    ]
    assert records[0]["model_type"].endswith("Q4_0")


def test_a_kept_model_is_found_again_by_its_own_name(
    bench: Bench, config: Path, tmp_path: Path
) -> None:
    arguments = ("--synthetic", config, "-p", "8", "-n", "0", "-r", 1, "--dir", tmp_path / "kept")
    assert bench(*arguments, "--keep").exit_code == 0
    (kept,) = (tmp_path / "kept").iterdir()
    before = kept.stat().st_mtime_ns
    assert bench(*arguments).exit_code == 0
    assert kept.stat().st_mtime_ns == before
    # It is a model file like any other.
    named = bench(kept, "-p", "8", "-n", "0", "-r", 1)
    assert named.stdout.startswith(str(kept))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give either a MODEL or --synthetic MODEL"),
        (["x.gguf", "--synthetic", "scout"], "give either a MODEL or --synthetic MODEL"),
        (["x.gguf", "--recipe", "int4"], "are of --synthetic"),
        (["x.gguf", "--keep"], "are of --synthetic"),
        (["x.gguf", "-p", "0", "-n", "0"], "there is nothing to measure"),
        (["x.gguf", "-p", "8,"], "'' is not a whole number from 0"),
        (["x.gguf", "-pg", "8"], "'8' is not two numbers, as in 512,128"),
        (["x.gguf", "-ctk", "f16,q2"], "'q2' is not one of f16, bf16, q8_0"),
        (["x.gguf", "-fa", "off", "-ctv", "q8_0"], "need flash attention"),
        (["x.gguf", "-r", "0"], "'0' is not a whole number from 1"),
        (["--synthetic", "scout", "--layers", "3"], "'3' is not a whole number from 4"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(
    bench: Bench, arguments: list[str], complaint: str
) -> None:
    result = bench(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["absent.gguf"], "absent.gguf"),
        (["--synthetic", "scuot"], "scuot is not a model"),
        (["--synthetic", "behemoth", "--recipe", "bf16"], "too little free space"),
        (["--synthetic", "scout", "--layers", "49"], "cannot be cut to 49 layers"),
        (["--synthetic", "scout", "--type", "nope=q8_0"], "matches no tensor"),
    ],
)
def test_what_cannot_be_measured_is_one_line_of_error(
    bench: Bench, arguments: list[str], complaint: str
) -> None:
    result = bench(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and complaint in line
    as_json = bench(*arguments, "--json")
    assert complaint in json.loads(as_json.stdout)["problem"] + str(
        json.loads(as_json.stdout)["found"]
    )


def test_a_model_goes_where_the_plan_says_unless_flags_place_it(bench: Bench, config: Path) -> None:
    with local_workers(1) as (endpoint,):
        arguments = (
            "--synthetic", config, "-p", "8", "-n", "0", "-r", 1, "--workers", endpoint, "--json",
        )  # fmt: skip
        planned = bench(*arguments)
        assert "placed as planned: " in planned.stderr and "RPC0" in planned.stderr
        (record,) = json.loads(planned.stdout)
        assert (record["backends"], record["n_gpu_layers"]) == ("RPC", -1)
        placed = bench(*arguments, "-ngl", "0,2", "-ot", "ffn_up_exps=CPU")
        assert placed.stderr == ""
        described = [
            (one["n_gpu_layers"], one["tensor_buft_overrides"]) for one in json.loads(placed.stdout)
        ]
        assert described == [(0, "ffn_up_exps=CPU"), (2, "ffn_up_exps=CPU")]


def test_ctrl_c_leaves_no_file(config: Path, tmp_path: Path) -> None:
    cache = tmp_path / "synthetic"
    command = [
        sys.executable, "-m", "llama4_edge", "bench",
        "--synthetic", str(config), "-t", "1", "-r", "1000000", "--dir", str(cache),
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: (cache.is_dir() and any(cache.iterdir())) or child.poll() is not None)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted"
    assert list(cache.iterdir()) == []
