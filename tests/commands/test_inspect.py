"""`llama4 inspect`: what it shows, and what it finds damaged."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from llama4_edge import convert
from llama4_edge.quant.importance import Activations, Importance
from llama4_edge.quant.importance_file import importance_bytes
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.command_line import Command, the_error


def test_inspect_shows_a_gguf_and_its_tensors(llama4: Command, model: Path) -> None:
    text = llama4("inspect", model).stdout
    assert text.startswith(f"{model}\n")
    assert "blk.0" not in text
    assert "tokenizer.ggml.tokens" in text
    assert "1,024 values" in text
    assert all(line == line.rstrip() for line in text.splitlines())
    tensors = llama4("inspect", model, "--tensors").stdout.splitlines()
    row = next(line.split() for line in tensors if line.startswith("blk.0.ffn_down_exps.weight"))
    # hidden 256, 16 experts of 256: rows of the down projection are as wide as an expert.
    assert row[1:3] == ["BF16", "16x256x256"]


def test_a_gguf_and_its_checkpoint_hold_the_same_parameters(
    llama4: Command, model: Path, scout_checkpoint: Path
) -> None:
    gguf, checkpoint = (
        json.loads(llama4("inspect", path, "--json").stdout) for path in (model, scout_checkpoint)
    )
    assert (gguf["kind"], checkpoint["kind"]) == ("gguf", "checkpoint")
    assert list(gguf) == list(checkpoint)
    shapes = [
        {one["name"]: one["shape"] for one in summary["tensors"] if one["role"] not in without}
        for summary, without in ((gguf, {"rope"}), (checkpoint, {"vision_tower", "projector"}))
    ]
    assert shapes[0] == shapes[1]
    assert gguf["expert_bits_per_weight"] == checkpoint["expert_bits_per_weight"] == 16.0


def test_a_checkpoint_s_layout_is_shown(llama4: Command, scout_checkpoint: Path) -> None:
    lines = llama4("inspect", scout_checkpoint).stdout.splitlines()[-3:]
    assert [line.split()[0] for line in lines] == ["stored", "names", "experts"]
    assert lines[0].endswith("tensors in 3 files, BF16")
    assert lines[2].split()[1:] == ["fused"]


def test_one_file_of_a_checkpoint_is_sent_to_its_directory(
    llama4: Command, scout_checkpoint: Path
) -> None:
    shard = next(scout_checkpoint.glob("*.safetensors"))
    assert f"llama4 inspect {scout_checkpoint}" in the_error(llama4("inspect", shard))


def test_inspect_check_reads_all_of_a_sound_gguf(llama4: Command, model: Path) -> None:
    result = llama4("inspect", model, "--check")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(llama4("inspect", model).stdout)
    assert result.stdout.splitlines()[-1] == "ok      every tensor was read, and holds numbers"
    assert json.loads(llama4("inspect", model, "--check", "--json").stdout)["damage"] == []


def test_inspect_check_says_a_line_for_each_damage(
    llama4: Command, model: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    tensors = read_gguf(model).tensors
    keys, norm = (
        next(one for one in tensors if one.name == name)
        for name in ("blk.0.attn_k.weight", "blk.1.attn_norm.weight")
    )
    last = max(tensors, key=lambda one: one.offset)
    data = bytearray(model.read_bytes())
    data[keys.offset + 10 : keys.offset + 12] = b"\xc0\x7f"
    data[norm.offset : norm.offset + norm.nbytes] = bytes(norm.nbytes)
    end = last.offset + last.nbytes - 100
    damaged.write_bytes(data[:end])
    result = llama4("inspect", damaged, "--check")
    assert (result.exit_code, result.stderr) == (1, "")
    lines = {
        f"problem {keys.name} at byte {keys.offset + 10} of {damaged}: 1 number is infinite or NaN",
        f"note    {norm.name} at byte {norm.offset} of {damaged}: "
        f"all {norm.nbytes:,} bytes are zero",
        f"problem {last.name} at byte {end} of {damaged}: 100 of {last.nbytes:,} bytes are missing",
    }
    assert set(result.stdout.splitlines()[-3:]) == lines
    record = json.loads(llama4("inspect", damaged, "--check", "--json").stdout)
    assert {(one["tensor"], one["certain"]) for one in record["damage"]} == {
        (keys.name, True),
        (norm.name, False),
        (last.name, True),
    }


def test_inspect_check_warns_of_zeros_and_still_succeeds(
    llama4: Command, model: Path, tmp_path: Path
) -> None:
    """A tensor may be zero; nothing of it is certainly wrong."""
    norm = next(one for one in read_gguf(model).tensors if one.name == "output_norm.weight")
    data = bytearray(model.read_bytes())
    data[norm.offset : norm.offset + norm.nbytes] = bytes(norm.nbytes)
    (tmp_path / "zero.gguf").write_bytes(data)
    result = llama4("inspect", "zero.gguf", "--check")
    assert result.exit_code == 0
    assert "note    output_norm.weight at byte" in result.stdout


def test_inspect_check_reads_every_part(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    report = convert(scout_checkpoint, tmp_path / "parts.gguf", split_size=4_000_000, vision=False)
    parts = [Path(name) for name in report.outputs]
    assert len(parts) == 3
    assert llama4("inspect", parts[1], "--check").exit_code == 0
    parts[1].unlink()
    os.truncate(parts[2], 5)
    record = json.loads(llama4("inspect", parts[0], "--check", "--json").stdout)
    assert [(one["tensor"], one["file"]) for one in record["damage"]] == [
        (None, str(parts[0])),
        (None, str(parts[0])),
    ]
    said = [one["what"] for one in record["damage"]]
    assert f"1 part is missing: {parts[1]}" in said[0]
    assert "is truncated" in said[1]


@pytest.mark.parametrize(
    ("architecture", "exit_code"), [("llama4", 0), ("clip", 0), ("qwen3", 1), ("", 1)]
)
def test_inspect_shows_llama_4_and_its_projector_and_nothing_else(
    llama4: Command, tmp_path: Path, architecture: str, exit_code: int
) -> None:
    writer = GGUFWriter(tmp_path / "one.gguf", architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = llama4("inspect", "one.gguf")
    assert result.exit_code == exit_code
    assert ("is not a Llama 4 model" in result.stderr) is bool(exit_code)
    checked = llama4("inspect", "one.gguf", "--check")
    # One tensor is no whole text model.
    assert checked.exit_code == (0 if architecture == "clip" else 1)
    assert ("problem" in checked.stdout) is (architecture == "llama4")


def test_a_directory_with_one_gguf_names_it(llama4: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    alone = tmp_path / "models" / "scout.gguf"
    alone.symlink_to(model)
    for words in (["inspect"], ["inspect", "--check"], ["run"], ["bench"]):
        said = the_error(llama4(*words, tmp_path / "models", *(["hi"] * (words == ["run"]))))
        assert f"found one GGUF in it, scout.gguf. Give that file: {alone}" in said


def test_inspect_check_is_for_a_gguf(llama4: Command, scout_checkpoint: Path) -> None:
    result = llama4("inspect", scout_checkpoint, "--check")
    assert result.exit_code == 2
    assert "--check reads a GGUF" in result.stderr


def test_a_hundred_thousand_missing_parts_are_two_lines(
    llama4: Command, model: Path, tmp_path: Path
) -> None:
    """The parts, and that the file says otherwise of itself; in JSON and as a view."""
    path = tmp_path / "x-00001-of-99999.gguf"
    path.write_bytes(model.read_bytes())
    result = llama4("inspect", path, "--check")
    assert result.exit_code == 1
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem")]
    assert len(problems) == 2
    assert f"99,998 parts are missing, the first is {tmp_path}/x-00002" in problems[0]
    record = json.loads(llama4("inspect", path, "--check", "--json").stdout)
    assert len(record["damage"]) == 2


def test_a_name_that_is_not_utf8_is_shown_with_its_bytes(
    llama4: Command, model: Path, scout_checkpoint: Path, tmp_path: Path
) -> None:
    """Piped, as JSON, in an error, and of what is written; the name in the file is readable."""
    path = tmp_path / "\udcff.gguf"
    path.symlink_to(model)
    assert llama4("inspect", path).stdout.startswith(f"{tmp_path}/\\udcff.gguf\n")
    assert llama4("inspect", path, "--check").exit_code == 0
    record = json.loads(llama4("inspect", path, "--json").stdout)
    assert record["path"] == str(path)
    assert "\\udcfe.gguf" in the_error(llama4("inspect", tmp_path / "\udcfe.gguf"))
    source = tmp_path / "d\udcff"
    source.symlink_to(scout_checkpoint)
    copied = tmp_path / "c\udcff"
    shutil.copytree(scout_checkpoint, copied)
    written = tmp_path / "o\udcff.gguf"
    result = llama4("convert", copied, "-o", written, "--recipe", "bf16")
    assert (result.exit_code, "o\\udcff.gguf" in result.stdout) == (0, True)
    assert read_gguf(written).metadata["general.name"] == "C\ufffd"
    assert "d\\udcff" in llama4("inspect", source).stdout


# --- activation statistics


def statistics() -> Importance:
    sums = np.array([[2, 2, 4, 8], [0, 0, 0, 1]], np.float32)
    one = Activations(sums, np.array([2_000, 1]))
    return Importance({"blk.3.ffn_up_exps.weight": one}, "", ("wiki.txt",), 4, 512)


def test_statistics_are_shown_by_tensors_and_experts(llama4: Command, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(importance_bytes(statistics()))
    lines = llama4("inspect", path, "--check").stdout.splitlines()
    assert lines[0] == str(path)
    facts = dict(line.split(maxsplit=1) for line in lines[1:5])
    assert facts == {
        "read": "4 chunks of 512 tokens",
        "texts": "wiki.txt",
        "statistics": "of 1 tensors",
        "experts": "2 in 1 layers, 1 of them starved",
    }
    row = next(line.split() for line in lines if line.startswith("blk.3.ffn_up_exps "))
    # Mean squares of 1/1000, 1/1000, 1/500, 1/250, three zeros and 1.
    assert row[1:7] == ["2,000", "1.008", "0.126", "1", "62.50%", f"{evenness():.2%}"]
    assert lines[-3].split() == ["3", "1", "1,000", "2,000", "1", "(1)"]
    assert lines[-1].split(maxsplit=1) == ["ok", "all of it was read, and is whole"]
    record = json.loads(llama4("inspect", path, "--json").stdout)
    assert (record["kind"], record["tensors"][0]["n_tokens"]) == ("imatrix", 2000)
    assert record["layers"][0]["starved"] == [{"expert": 1, "tokens": 1}]


def evenness() -> float:
    shares = np.array([0.001, 0.001, 0.002, 0.004, 1]) / 1.008
    return float(-(shares * np.log2(shares)).sum() / 3)


def test_statistics_of_the_older_form_are_shown_too(llama4: Command, tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    name, values = b"blk.0.attn_q.weight", struct.pack("<4f", 2, 2, 4, 8)
    path.write_bytes(struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 2, 4) + values)
    row = next(
        line.split()
        for line in llama4("inspect", path).stdout.splitlines()
        if line.startswith("blk.0.attn_q ")
    )
    assert row == ["blk.0.attn_q", "1,024", "8", "2", "4", "100.00%", "87.50%", "25.00%"]
    path.write_bytes(path.read_bytes()[:-2])
    assert "has damaged activation statistics" in the_error(llama4("inspect", path))
