"""`llama4 compare`: its table, its JSON, its picture."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llama4_edge.cli import main
from tests.command_line import the_error

TEXT = "What is said twice is heard once, and what is said once is not. " * 10


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def compare(*words: object, stdin: str | None = None) -> Result:
    arguments = ["compare", *(str(word) for word in words), "-t", "1"]
    return CliRunner().invoke(main, arguments, input=stdin, catch_exceptions=False)


def test_the_table_has_a_line_a_model(scout_bf16: Path, scout_int4: Path, text: Path) -> None:
    done = compare(scout_bf16, scout_int4, "--text", text, "-c", 64)
    assert done.exit_code == 0, done.output
    title, _, header, reference, candidate = done.stdout.splitlines()
    assert "chunks of 64 tokens" in title
    assert header.split()[:5] == ["model", "size", "perplexity", "KL", "mean"]
    assert reference.startswith(scout_bf16.name)
    assert candidate.startswith(scout_int4.name) and candidate.count("±") == 4


def test_json_has_the_figures_by_name(scout_bf16: Path, scout_int4: Path) -> None:
    done = compare(scout_bf16, scout_int4, "-f", "-", "-c", 64, "--json", stdin=TEXT)
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    (candidate,) = record["candidates"]
    assert candidate["model"] == str(scout_int4)
    assert set(candidate["kl"]) == {
        "mean", "mean_error", "mean_interval", "median", "median_interval", "p99", "p99_interval",
        "max",
    }  # fmt: skip
    low, high = candidate["kl"]["mean_interval"]
    assert low < candidate["kl"]["mean"] < high
    assert 0 < candidate["same_top"] <= 1
    assert candidate["perplexity"] > 1 and record["reference"]["perplexity"] > 1


def test_a_picture_is_drawn(scout_bf16: Path, scout_int4: Path, text: Path, tmp_path: Path) -> None:
    plot = tmp_path / "kl.png"
    done = compare(scout_bf16, scout_int4, "-f", text, "-c", 64, "--plot", plot)
    assert done.exit_code == 0, done.output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_candidates_are_compared_with_each_setting(
    scout_bf16: Path, scout_int4: Path, tiny_path: Path, text: Path
) -> None:
    files = (scout_bf16, scout_bf16, scout_int4)
    done = compare(
        *files, "-f", text, "-c", 64, "-ctk", "f16,q8_0", "-ctv", "q8_0", "--experts", "2", "--json"
    )
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["reference"]["kv_type"] == ["f16", "f16"]
    assert [
        (one["model"], one["kv_type"], one["n_expert_used"]) for one in record["candidates"]
    ] == [
        (str(file), [type_k, "q8_0"], 2)
        for file in (scout_bf16, scout_int4)
        for type_k in ("f16", "q8_0")
    ]
    done = compare(*files[:2], "-f", text, "-c", 64, "-ctk", "q8_0", "-ctv", "q8_0")
    assert f"{scout_bf16.name}, KV q8_0" in done.stdout
    refused = compare(tiny_path, tiny_path, "-f", text, "-c", 64, "--experts", "16")
    assert "n_expert_used (--experts) is more than the model has" in the_error(refused)


def test_settings_of_candidates_want_one(scout_bf16: Path, text: Path) -> None:
    done = compare(scout_bf16, "-f", text, "-ctk", "q8_0")
    assert done.exit_code == 2 and "there is none" in done.output


def test_nothing_to_compare_is_one_line(scout_bf16: Path) -> None:
    assert "nothing to compare" in the_error(compare(scout_bf16))


def test_what_is_no_text_is_one_line(scout_bf16: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xff\xfe\xfa")
    assert "UTF-8" in the_error(compare(scout_bf16, "-f", path))
    assert "does not exist" in the_error(compare(scout_bf16, "-f", tmp_path / "none"))


def test_a_full_disk_is_one_line_and_leaves_nothing(
    scout_bf16: Path, text: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved" / "reference"
    saved.parent.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "llama4_edge", "compare", str(scout_bf16), "-f", str(text)),
            *("-c", "64", "-t", "1", "--save", str(saved)),
        ],
        capture_output=True,
        text=True,
        # Of a module that nobody has imported yet, Python would leave the beginning to all others.
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {saved} cannot be written, found File too large")
    assert not list(saved.parent.iterdir())


@pytest.mark.parametrize("name", ["kl.gguf", "absent/kl.png"])
def test_a_plot_that_cannot_be_written_is_seen_before_anything_is_read(name: str) -> None:
    pytest.importorskip("matplotlib")
    done = CliRunner().invoke(
        main, ["compare", "absent.gguf", "-f", "absent.txt", "--plot", name, "--json"]
    )
    assert json.loads(done.stdout)["problem"] == f"{name}: the plot cannot be written"
