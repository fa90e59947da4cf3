"""`llama4 convert-lora` and `llama4 convert --merge-lora`: what they report and write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama4_edge.runtime.files.adapter_file import check_adapter_file
from llama4_edge.runtime.files.model_file import check_model_file
from tests.adapters import halves, write_peft
from tests.command_line import Command, the_error


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    pair = halves("model.layers.0.self_attn.q_proj", 256, 256)
    return write_peft(tmp_path / "poems", pair)


def test_an_adapter_becomes_a_file_that_fits_its_base(
    llama4: Command, adapter: Path, scout_bf16: Path, tmp_path: Path
) -> None:
    result = llama4("convert-lora", adapter, "--base", scout_bf16)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines() if line]
    assert lines[-1] == ["wrote", "poems-f32.gguf"]
    assert ["note", f"held against {scout_bf16}; rank 2, alpha 4"] in lines
    info = check_adapter_file(tmp_path / "poems-f32.gguf", check_model_file(scout_bf16))
    assert list(info.matrices) == ["blk.0.attn_q.weight"]


def test_json_has_the_same_report(
    llama4: Command, adapter: Path, scout_checkpoint: Path, tmp_path: Path
) -> None:
    result = llama4(
        "convert-lora", adapter, "--base", scout_checkpoint, "--outtype", "f16", "-o", "out.gguf",
        "--json",
    )  # fmt: skip
    report = json.loads(result.stdout)
    assert (report["recipe"], report["output"]) == ("f16", "out.gguf")
    assert report["bytes"] == (tmp_path / "out.gguf").stat().st_size


def test_errors_name_the_flag(llama4: Command, adapter: Path) -> None:
    assert "Give it: base=MODEL" not in the_error(llama4("convert-lora", adapter))
    assert "base=MODEL (--base MODEL)" in the_error(llama4("convert-lora", adapter))
    found = the_error(llama4("convert-lora", adapter, "--base", "scout", "--outtype", "q8_0"))
    assert "outtype is unknown, found 'q8_0', expected f32, f16, bf16" in found


def test_merging_is_said_and_changes_the_file(
    llama4: Command, adapter: Path, scout_checkpoint: Path, tmp_path: Path
) -> None:
    for name, flags in {
        "plain": (), "merged": ("--merge-lora", f"{adapter}=0.5"),
    }.items():  # fmt: skip
        result = llama4(
            "convert", scout_checkpoint, "-o", f"{name}.gguf", "--no-vision", "--recipe", "bf16",
            *flags,
        )  # fmt: skip
        assert (result.exit_code, result.stderr) == (0, "")
    assert f"merged {adapter} times 0.5: added to 1 tensors" in result.stdout
    plain, merged = (tmp_path / f"{name}.gguf" for name in ("plain", "merged"))
    assert plain.stat().st_size == merged.stat().st_size
    assert plain.read_bytes() != merged.read_bytes()
