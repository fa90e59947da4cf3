"""`llama4 convert`: what it reports and what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from llama4_edge import make_recipe, write_recipe
from llama4_edge.quant.importance import Activations, Importance
from llama4_edge.quant.importance_file import importance_bytes
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


def test_an_importance_matrix_is_taken_or_refused(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint, shapes = (
        scout_checkpoint,
        {
            f"blk.{layer}.{part}.weight": shape
            for layer in range(4)
            for part, shape in {"attn_q": (1, 256), "ffn_down_exps": (16, 256)}.items()
        },
    )
    tensors = {
        name: Activations(np.ones(shape, np.float32), np.ones(shape[0], np.int64))
        for name, shape in shapes.items()
    }
    matrix = tmp_path / "imatrix.gguf"
    matrix.write_bytes(importance_bytes(Importance(tensors)))
    result = llama4("convert", checkpoint, "--no-vision", "--recipe", "q4_0", "--imatrix", matrix)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "importance 8 tensors weighed with" in text
    assert "no weights token_embd.weight, output.weight, blk.0.attn_k.weight" in text
    dry = llama4("convert", checkpoint, "--imatrix", matrix, "--dry-run", "--json")
    assert json.loads(dry.stdout)["importance"]["weighed"] == 4
    shutil.copyfile(next(checkpoint.glob("*.safetensors")), tmp_path / "not.gguf")
    for wrong, message in {
        tmp_path / "not.gguf": "has no activation statistics",
        tmp_path / "nowhere.gguf": "does not exist",
        tmp_path / f"{checkpoint.name}-q4_0.gguf": "has no activation statistics",
    }.items():
        refused = llama4("convert", checkpoint, "--imatrix", wrong, "-o", "out.gguf")
        assert message in the_error(refused)
    refused = llama4("convert", checkpoint, "--vision-only", "--imatrix", matrix)
    assert "imatrix is of no effect, found text=False (--vision-only)" in the_error(refused)
    assert not (tmp_path / "out.gguf").exists()


def test_a_recipe_file_is_taken_or_refused(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "types.json"
    write_recipe(make_recipe("mine", [("_exps", "q3_k")], "q6_k"), file)
    result = llama4("convert", scout_checkpoint, "--no-vision", "--recipe", file)
    assert result.exit_code == 0, result.stderr
    assert "mine" in result.stdout and (tmp_path / f"{scout_checkpoint.name}-mine.gguf").exists()
    planned = llama4("plan", scout_checkpoint, "--recipe", file, "--json")
    assert json.loads(planned.stdout)["recipe"] == str(file)
    file.write_text(file.read_text().replace("q3_k", "q3_x"))
    refused = the_error(llama4("convert", scout_checkpoint, "--recipe", file, "-o", "out.gguf"))
    assert "types[0] has an unknown tensor type, found 'q3_x'" in refused
    refused = the_error(llama4("convert", scout_checkpoint, "--recipe", "nowhere.json"))
    assert "nowhere.json does not exist" in refused
    assert not (tmp_path / "out.gguf").exists()
