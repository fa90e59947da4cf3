"""Parts that llama.cpp loads as one model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from llama4_edge import Model, convert, merge, split
from llama4_edge.errors import OutputError
from tests.fixtures import MakeCheckpoint

from .conftest import SMALL


def tensors(*paths: str) -> dict[str, tuple[str, bytes]]:
    return {
        tensor.name: (tensor.tensor_type.name, tensor.data.tobytes())
        for path in paths
        for tensor in GGUFReader(path).tensors
    }


def test_parts_hold_the_tensors_of_the_whole_in_order(checkpoint: Path, tmp_path: Path) -> None:
    whole = convert(checkpoint, tmp_path / "whole.gguf")
    parts = convert(checkpoint, tmp_path / "split.gguf", split_size=whole.bytes // 3)
    count = len(parts.outputs)
    assert count >= 3
    assert [Path(path).name for path in parts.outputs] == [
        f"split-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)
    ]
    assert parts.output == parts.outputs[0]
    assert parts.bytes == sum(Path(path).stat().st_size for path in parts.outputs)
    one, many = tensors(whole.output), tensors(*parts.outputs)
    assert list(one.items()) == list(many.items())
    for path in parts.outputs[:-1]:
        held = sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
        assert held <= whole.bytes // 3


def test_llama_cpp_loads_the_parts_as_one_model(checkpoint: Path, tmp_path: Path) -> None:
    whole = convert(checkpoint, tmp_path / "whole.gguf", recipe="bf16")
    parts = convert(checkpoint, tmp_path / "split.gguf", recipe="bf16", split_size=300_000)
    logits = []
    for path in (whole.output, parts.output):
        with Model(path, n_ctx=64, n_threads=1) as model:
            logits.append(model.logits(model.tokenize("Parts of one whole.")))
    assert np.array_equal(logits[0], logits[1])


def test_a_tensor_larger_than_a_part_has_one_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    whole = convert(checkpoint, tmp_path / "whole.gguf")
    parts = convert(checkpoint, tmp_path / "split.gguf", split_size=1)
    tensors = [[tensor.name for tensor in GGUFReader(path).tensors] for path in parts.outputs]
    assert tensors == [[tensor.name] for tensor in GGUFReader(whole.output).tensors]


def test_a_full_disk_is_no_matter_of_recipes_where_parts_are_written_as_they_stand(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    convert(checkpoint, whole)
    first, *_ = split(whole, parts, parts=2).outputs
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"too little free space.*a recipe with fewer bits"):
        convert(checkpoint, tmp_path / "other.gguf")
    refused = r"too little free space.*or choose another disk\.$"
    with pytest.raises(OutputError, match=refused):
        split(whole, tmp_path / "again.gguf", parts=2)
    with pytest.raises(OutputError, match=refused):
        merge(first, tmp_path / "again.gguf")


def test_what_fits_into_one_file_is_not_split(checkpoint: Path, tmp_path: Path) -> None:
    report = convert(checkpoint, tmp_path / "one.gguf", split_size=10**9)
    assert report.outputs == (str(tmp_path / "one.gguf"),)


def test_the_time_of_each_stage_is_told_by_role(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    # Experts that take twenty times as long as norms, whatever else the machine does.
    checkpoint = make_checkpoint(replace(SMALL, experts=16, expert_ffn=1024))
    roles = {
        role["role"]: role for role in convert(checkpoint, tmp_path / "o.gguf").as_dict()["roles"]
    }
    assert set(roles["expert"]["seconds"]) == {"reading", "transposing", "encoding", "writing"}
    assert all(value > 0 for value in roles["expert"]["seconds"].values())
    assert roles["expert"]["seconds"]["encoding"] > roles["norm"]["seconds"]["encoding"]
