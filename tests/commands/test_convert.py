"""`llama4 convert`: what it reports and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command_line import Command, the_error


def test_convert_reports_each_role_and_writes_the_file(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    result = llama4("convert", scout_checkpoint, "-o", "scout.gguf", "--recipe", "INT8")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    experts = next(line for line in lines if line[:1] == ["expert"])
    assert experts[-2:] == ["8.50", "Q8_0"]
    assert lines[-2:] == [["wrote", "scout.gguf"], ["wrote", "mmproj-scout-f16.gguf"]]
    size = sum((tmp_path / line[1]).stat().st_size for line in lines[-2:])
    assert f"{size / 1024**2:.1f} MiB, from" in result.stdout


def test_a_dry_run_says_the_same_and_writes_nothing(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    result = llama4("convert", scout_checkpoint, "--dry-run")
    assert [line.split() for line in result.stdout.splitlines()[-2:]] == [
        ["would", "write", f"{scout_checkpoint.name}-int4.gguf"],
        ["would", "write", f"mmproj-{scout_checkpoint.name}-f16.gguf"],
    ]
    assert "MiB/s" not in result.stdout
    assert list(tmp_path.glob("*.gguf")) == []


def test_either_file_is_written_alone(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    name = scout_checkpoint.name
    for flags, outputs in {
        ("--no-vision",): [f"{name}-int4.gguf"],
        ("--vision-only",): [f"mmproj-{name}-f16.gguf"],
        ("--mmproj", "--vision-type", "q8_0"): [f"mmproj-{name}-q8_0.gguf"],
    }.items():
        result = llama4("convert", scout_checkpoint, "--dry-run", "--json", *flags)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["outputs"] == outputs
    refused = llama4("convert", scout_checkpoint, "--vision-only", "--no-vision")
    assert "nothing is to be converted" in the_error(refused)
    refused = llama4("convert", scout_checkpoint, "--vision-only", "--recipe", "int8")
    assert "recipe is of no effect, found text=False (--vision-only)" in the_error(refused)
    refused = llama4("convert", scout_checkpoint, "--vision-type", "int4")
    assert "unknown vision_type (--vision-type), found 'int4'" in the_error(refused)


def test_the_first_type_that_matches_decides(llama4: Command, scout_checkpoint: Path) -> None:
    result = llama4(
        "convert", scout_checkpoint, "--dry-run", "--json",
        "--type", r"blk\.[01]\.ffn_down_exps=q6_k", "--type", "_exps=q4_0",
    )  # fmt: skip
    report = json.loads(result.stdout)
    (expert,) = (role for role in report["roles"] if role["role"] == "expert")
    assert expert["types"] == {"Q6_K": 2, "Q4_0": 10}
    assert report["dry_run"] is True


def test_an_existing_output_is_kept_without_force(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "kept.gguf"
    target.write_text("mine")
    assert "kept.gguf" in the_error(llama4("convert", scout_checkpoint, "-o", target))
    assert target.read_text() == "mine"
    assert llama4("convert", scout_checkpoint, "-o", target, "--force").exit_code == 0
    assert target.read_bytes()[:4] == b"GGUF"
