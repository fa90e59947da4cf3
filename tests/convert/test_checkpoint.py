from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llama4_edge.convert.checkpoint import open_checkpoint
from llama4_edge.convert.shard_header import read_shard
from llama4_edge.convert.shards import LocalShards
from llama4_edge.errors import CheckpointError

from .conftest import edit_header, edit_json, read_header, shards_of, write_shard

INDEX = "model.safetensors.index.json"


def assert_refused(path: Path, *, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(path)


def test_every_tensor_is_found_where_its_bytes_are(checkpoint: Path) -> None:
    tensors = open_checkpoint(checkpoint).tensors
    listed = json.loads((checkpoint / INDEX).read_text())["weight_map"]
    assert {name: tensor.file.name for name, tensor in tensors.items()} == listed
    for tensor in tensors.values():
        header, data = read_header(tensor.file)
        begin, end = header[tensor.name]["data_offsets"]
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            assert file.read(tensor.nbytes) == data[begin:end]


def test_a_shard_by_hand(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [4, 16]},
        "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    write_shard(tmp_path / "x.safetensors", header, bytes(16))
    start = (tmp_path / "x.safetensors").stat().st_size - 16
    first, second = read_shard(tmp_path / "x.safetensors", LocalShards())
    assert (first.name, first.shape, first.offset, first.nbytes) == ("a", (), start, 4)
    assert (second.name, second.shape, second.offset, second.nbytes) == ("b", (2, 3), start + 4, 12)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", match="nowhere does not exist")


def test_a_file_is_refused_with_its_directory_as_the_hint(checkpoint: Path) -> None:
    shard = shards_of(checkpoint)[0]
    assert_refused(shard, match=f"is a file.*Give {checkpoint} instead")


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, match=r"has no config\.json")


@pytest.mark.parametrize(
    ("directory", "repository"),
    [
        ("downloaded", "Llama-4-Scout-17B-16E-Instruct"),
        ("Llama-4-Scout-17B-16E", "Llama-4-Scout-17B-16E"),
        ("Llama-4-Maverick-17B-128E-Instruct-Original", "Llama-4-Maverick-17B-128E-Instruct"),
        (
            "models--meta-llama--Llama-4-Maverick-17B-128E-Instruct-FP8-Original/snapshots/0a1b",
            "Llama-4-Maverick-17B-128E-Instruct-FP8",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_metas_own_layout_is_refused_with_the_repository_to_use(
    tmp_path: Path, directory: str, repository: str, suffix: str
) -> None:
    (tmp_path / directory).mkdir(parents=True)
    (tmp_path / directory / f"consolidated.00.{suffix}").touch()
    assert_refused(
        tmp_path / directory,
        match=rf"found Meta's consolidated\.\*\.{suffix}.*: meta-llama/{repository}$",
    )


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    assert_refused(checkpoint, match=r"config\.json is (not JSON|damaged|nested)")


def test_a_config_that_is_no_text_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_bytes(b'{"a": "\xff"}')
    assert_refused(checkpoint, match=r"config\.json is not UTF-8")


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert_refused(tmp_path, match="holds no weights")


def test_an_index_that_names_an_absent_file_is_refused(checkpoint: Path) -> None:
    shards_of(checkpoint)[1].unlink()
    assert_refused(checkpoint, match="names missing files.*1 of 2 missing.*00002-of-00002")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", 7])
def test_an_index_that_points_elsewhere_is_refused(checkpoint: Path, name: object) -> None:
    edit_json(checkpoint / INDEX, lambda index: index["weight_map"].update(x=name))
    assert_refused(checkpoint, match="names an invalid file for x")


def test_an_index_without_a_map_is_refused(checkpoint: Path) -> None:
    (checkpoint / INDEX).write_text('{"weight_map": {}}')
    assert_refused(checkpoint, match="has no weight_map")


def test_a_tensor_the_shard_lacks_is_refused(checkpoint: Path) -> None:
    shard = shards_of(checkpoint)[0].name
    edit_json(checkpoint / INDEX, lambda index: index["weight_map"].update({"lost.weight": shard}))
    assert_refused(checkpoint, match=r"lacks lost\.weight")


def test_a_tensor_the_index_lacks_is_refused(checkpoint: Path) -> None:
    name = next(iter(read_header(shards_of(checkpoint)[0])[0]))
    edit_json(checkpoint / INDEX, lambda index: index["weight_map"].pop(name))
    assert_refused(checkpoint, match="holds .* found no entry in the index")


def test_a_tensor_in_two_shards_is_refused(checkpoint: Path) -> None:
    first, second = shards_of(checkpoint)
    header, data = read_header(first)
    name = next(iter(header))
    begin, end = header[name]["data_offsets"]
    other, other_data = read_header(second)
    other[name] = {**header[name], "data_offsets": [len(other_data), len(other_data) + end - begin]}
    write_shard(second, other, other_data + data[begin:end])
    assert_refused(checkpoint, match="is stored twice")


def test_a_tensor_twice_in_one_header_is_refused(checkpoint: Path) -> None:
    shard = shards_of(checkpoint)[0]
    header, data = read_header(shard)
    entry = json.dumps(next(iter(header.values())))
    write_shard(shard, f'{{"t": {entry}, "t": {entry}}}'.encode(), data)
    assert_refused(checkpoint, match="lists t twice")


@pytest.mark.parametrize("size", [0, 7, 8, 1000])
def test_a_shard_cut_in_its_header_is_refused(checkpoint: Path, size: int) -> None:
    os.truncate(shards_of(checkpoint)[0], size)
    assert_refused(checkpoint, match="is truncated, or not a safetensors file")


def test_a_shard_cut_in_its_data_is_refused(checkpoint: Path) -> None:
    shard = shards_of(checkpoint)[1]
    whole = shard.stat().st_size
    os.truncate(shard, whole - 1)
    assert_refused(
        checkpoint, match=f"is truncated, found {whole - 1} bytes, expected {whole} bytes"
    )


def test_a_shard_that_goes_on_after_its_data_is_refused(checkpoint: Path) -> None:
    with shards_of(checkpoint)[0].open("ab") as shard:
        shard.write(b"x")
    assert_refused(checkpoint, match="is longer than its header says")


@pytest.mark.parametrize("header", [b"", b"[]", b"{nope}", b"\xff\xfe"])
def test_a_header_that_is_no_object_is_refused(checkpoint: Path, header: bytes) -> None:
    write_shard(shards_of(checkpoint)[0], header, b"")
    assert_refused(checkpoint, match=r"has a damaged header|header .* is not JSON")


def test_a_header_that_lies_about_an_offset_is_refused(checkpoint: Path) -> None:
    def shift(header: dict[str, dict[str, list[int]]]) -> None:
        last = max(header.values(), key=lambda entry: entry["data_offsets"][1])
        last["data_offsets"] = [offset + 2 for offset in last["data_offsets"]]

    edit_header(shards_of(checkpoint)[0], shift)
    assert_refused(checkpoint, match="gives a wrong offset")


def test_a_header_that_lies_about_a_shape_is_refused(checkpoint: Path) -> None:
    def grow(header: dict[str, dict[str, list[int]]]) -> None:
        next(iter(header.values()))["shape"][0] += 1

    edit_header(shards_of(checkpoint)[0], grow)
    assert_refused(checkpoint, match="gives a wrong extent")


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", [-1, 4]), ("shape", None), ("shape", [True]), ("data_offsets", [0]), ("dtype", 3)],
)
def test_a_malformed_entry_is_refused(checkpoint: Path, field: str, value: object) -> None:
    edit_header(
        shards_of(checkpoint)[0], lambda header: next(iter(header.values())).update({field: value})
    )
    assert_refused(checkpoint, match="has a malformed entry for .*")


def test_an_unknown_dtype_is_refused(checkpoint: Path) -> None:
    edit_header(
        shards_of(checkpoint)[0], lambda header: next(iter(header.values())).update(dtype="F4")
    )
    assert_refused(checkpoint, match="unknown dtype, found F4")
