"""`llama4_edge.inspect`, on each kind of file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import llama4_edge
from llama4_edge.errors import CheckpointError, ModelFileError, SettingError
from llama4_edge.inspection import MAX_DAMAGE
from llama4_edge.progress import Progress
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.gguf_maker import tiny_model


def test_a_gguf_is_summed_up_and_not_checked_unasked(scout_int4: Path) -> None:
    inspection = llama4_edge.inspect(scout_int4)
    assert (inspection.summary.kind, inspection.summary.path) == ("gguf", str(scout_int4))
    assert inspection.summary.bytes == sum(one.bytes for one in inspection.summary.tensors)
    assert (inspection.damage, inspection.damaged) == (None, False)
    assert "damage" not in inspection.as_dict()


def test_a_checkpoint_has_the_tensors_of_the_gguf_it_becomes(
    scout_checkpoint: Path, scout_int4: Path
) -> None:
    checkpoint = llama4_edge.inspect(str(scout_checkpoint)).summary
    gguf = llama4_edge.inspect(scout_int4).summary
    assert checkpoint.kind == "checkpoint"
    names = {tensor.name for tensor in checkpoint.tensors}
    assert {tensor.name for tensor in gguf.tensors} - names == {"rope_freqs.weight"}


def test_a_check_reads_every_byte_and_finds_what_is_missing(
    scout_int4: Path, tmp_path: Path
) -> None:
    reports: list[Progress] = []
    whole = llama4_edge.inspect(scout_int4, check=True, progress=reports.append)
    assert (whole.damage, whole.damaged) == ((), False)
    assert reports[-1].bytes_done == reports[-1].bytes_total == whole.summary.bytes

    cut = tmp_path / "cut.gguf"
    shutil.copy(scout_int4, cut)
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size - 4096)
    with pytest.raises(ModelFileError, match="is truncated"):
        llama4_edge.inspect(cut)
    inspection = llama4_edge.inspect(cut, check=True)
    assert inspection.damaged
    assert json.loads(json.dumps(inspection.as_dict()))["damage"][0]["file"] == str(cut)


def test_a_thousand_damaged_tensors_are_a_hundred_lines_and_one(tmp_path: Path) -> None:
    path = tiny_model(layers=12).write(tmp_path / "tiny.gguf")
    header = read_gguf(path)
    with path.open("r+b") as file:
        file.truncate(header.data_offset)
    damage = llama4_edge.inspect(path, check=True).damage
    assert damage is not None
    assert len(header.tensors) == 160 and len(damage) == MAX_DAMAGE + 1
    assert all("bytes are missing" in fault.what for fault in damage[:-1])
    next_one = header.tensors[MAX_DAMAGE].name
    assert damage[-1].what == f"60 more faults of tensors, the next in {next_one}"
    assert (damage[-1].tensor, damage[-1].certain) == (None, True)


def test_what_cannot_be_inspected_is_named(scout_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="check reads a GGUF, found the directory"):
        llama4_edge.inspect(scout_checkpoint, check=True)
    shard = next(scout_checkpoint.glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=r"is one file of a checkpoint\. Give its directory"):
        llama4_edge.inspect(shard)
    with pytest.raises(ModelFileError):
        llama4_edge.inspect(tmp_path / "absent.gguf")
