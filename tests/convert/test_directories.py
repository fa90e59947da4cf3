"""What people give instead of a checkpoint's directory: understood, or named with what to do."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

from llama4_edge import convert
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.checkpoint import INDEX_NAME, open_checkpoint
from llama4_edge.convert.directories import cached_repository
from llama4_edge.errors import CheckpointError, OutputError
from tests.fixtures import MakeCheckpoint
from tests.hub_server import HubServer

from .conftest import SMALL, read_header, shards_of, write_shard
from .on_hub import NAME

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 130131\n"


def assert_refused(path: Path, said: str) -> None:
    """By whatever reads a checkpoint."""
    with pytest.raises(CheckpointError, match=said):
        convert(path, dry_run=True)
    with pytest.raises(CheckpointError, match=said):
        blueprint(path)


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, "model-00001-of-00002.safetensors"])
def test_a_git_lfs_pointer_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text(POINTER)
    assert_refused(checkpoint, rf"{name} is a Git LFS pointer.*git lfs pull")


def test_a_byte_order_mark_is_skipped(checkpoint: Path) -> None:
    for name in ("config.json", INDEX_NAME):
        file = checkpoint / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert open_checkpoint(checkpoint).config["model_type"] == "llama4"


# Links ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_a_dangling_file_is_named_with_where_it_leads(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to("../../blobs/0123")
    assert_refused(checkpoint, rf"{name} is a symbolic link.*does not exist.*blobs/0123")


@pytest.mark.parametrize("with_index", [True, False])
def test_a_dangling_shard_is_named_with_where_it_leads(checkpoint: Path, with_index: bool) -> None:
    shard = shards_of(checkpoint)[1]
    shard.unlink()
    shard.symlink_to("../../blobs/4567")
    if not with_index:
        (checkpoint / INDEX_NAME).unlink()
    assert_refused(checkpoint, rf"1 of 2 missing, first {shard.name}, a link to ../../blobs/4567")


def test_a_dangling_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    assert_refused(tmp_path / "link", "link is a symbolic link to a directory.*found gone")


# huggingface_hub's cache ------------------------------------------------------------------------


@pytest.fixture
def cached(checkpoint: Path, tmp_path: Path) -> Path:
    """The root of a repository in a cache, with one snapshot."""
    root = tmp_path / "hub" / "models--some--model"
    (root / "snapshots").mkdir(parents=True)
    shutil.move(checkpoint, root / "snapshots" / "abc")
    return root


def test_the_root_of_a_cached_repository_is_its_only_snapshot(cached: Path) -> None:
    assert open_checkpoint(cached).path == cached / "snapshots" / "abc"
    assert cached_repository(open_checkpoint(cached).path) == "some/model"
    assert blueprint(cached).name == "some/model"
    assert Path(convert(cached, dry_run=True).output).name == "model-int4.gguf"


def test_the_root_of_a_cached_repository_is_its_main_branch_s_snapshot(cached: Path) -> None:
    shutil.copytree(cached / "snapshots" / "abc", cached / "snapshots" / "def")
    assert_refused(cached, r"several snapshots.*found abc, def.*Give one of them: \S+/abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("def\n")
    assert open_checkpoint(cached).path.name == "def"


def test_a_cached_repository_without_a_checkpoint_is_named(cached: Path) -> None:
    (cached / "snapshots" / "abc" / "config.json").unlink()
    assert_refused(cached, "no snapshot with a config.json.*hf download some/model")


def test_a_cache_and_its_snapshots_name_the_directory_below(cached: Path) -> None:
    assert_refused(cached / "snapshots", rf"Give {cached / 'snapshots' / 'abc'} instead")
    assert_refused(cached.parent, rf"Give {cached} instead")


def test_a_cached_file_whose_blob_is_gone_is_named(cached: Path) -> None:
    shard = shards_of(cached / "snapshots" / "abc")[0]
    shard.unlink()
    shard.symlink_to("../../blobs/gone")
    assert_refused(cached, "a link to ../../blobs/gone that leads nowhere")


# Above and below --------------------------------------------------------------------------------


def test_a_directory_above_the_checkpoint_names_it(checkpoint: Path) -> None:
    assert_refused(checkpoint.parent, rf"small in it has one\. Give {checkpoint} instead")


def test_a_directory_above_several_checkpoints_names_them(checkpoint: Path) -> None:
    for number in (500, 1000):
        shutil.copytree(checkpoint, checkpoint.parent / f"checkpoint-{number}")
    assert_refused(
        checkpoint.parent,
        "3 directories in it have one, found checkpoint-1000, checkpoint-500, s",
    )


def test_a_directory_in_the_checkpoint_names_the_one_above(checkpoint: Path) -> None:
    original = checkpoint / "original"
    original.mkdir()
    (original / "consolidated.00.pth").touch()
    assert_refused(original, rf"the directory above it has one.*Give {checkpoint} instead")


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, "model-00001-of-00002.safetensors"])
def test_a_file_of_the_checkpoint_names_its_directory(checkpoint: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name} is a file.*Give {checkpoint} instead"):
        convert(checkpoint / name, dry_run=True)


# Other forms of weights -------------------------------------------------------------------------

FORMS = {
    "adapter": (
        ["adapter_config.json", "adapter_model.safetensors"],
        r"holds an adapter, not a model, found adapter_config\.json, of some/base.*--merge-lora",
    ),
    "pickle": (
        ["pytorch_model.bin"],
        r"PyTorch's own format.*found pytorch_model\.bin.*save_pretrained",
    ),
    "pickled shards": (
        ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"],
        r"found pytorch_model-00001-of-00002\.bin",
    ),
    "a state dict": (["model.pth"], r"PyTorch's own format.*found model\.pth"),
    "Meta's layout": (["consolidated.00.pth", "params.json"], r"Meta's own layout.*meta-llama/"),
    "GGUF": (["model-q4_0.gguf"], r"holds a GGUF, which needs no conversion.*llama4 run \S+\.gguf"),
    "DCP": (["__0_0.distcp", ".metadata"], r"training run over several processes.*accelerate"),
    "DeepSpeed": (["global_step500", "zero_to_fp32.py"], r"global_step500.*zero_to_fp32\.py"),
    "FSDP": (["pytorch_model_fsdp_0"], r"pytorch_model_fsdp_0"),
}


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("form", list(FORMS))
def test_another_form_of_weights_is_told_with_the_next_command(
    checkpoint: Path, form: str, with_config: bool
) -> None:
    names, said = FORMS[form]
    for shard in (*shards_of(checkpoint), checkpoint / INDEX_NAME):
        shard.unlink()
    for name in names:
        (checkpoint / name).write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    # A trainer leaves these beside weights of any form.
    (checkpoint / "training_args.bin").touch()
    (checkpoint / "optimizer.pt").touch()
    if not with_config:
        (checkpoint / "config.json").unlink()
    assert_refused(checkpoint, said)


def test_a_trainer_s_files_are_no_weights(checkpoint: Path) -> None:
    for shard in (*shards_of(checkpoint), checkpoint / INDEX_NAME):
        shard.unlink()
    (checkpoint / "training_args.bin").touch()
    (checkpoint / "rng_state_0.pth").touch()
    assert_refused(checkpoint, r"holds no weights.*Download the \.safetensors files")


def test_safetensors_without_a_config_are_told(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert_refused(checkpoint, r"no config\.json, found safetensors.*Download config\.json")


@pytest.mark.parametrize(
    ("beginning", "said"),
    [
        (b"GGUF\3\0\0\0" + bytes(60), "found a GGUF"),
        (b"PK\3\4" + b"x" * 60, r"found a PyTorch file \(zip\)"),
        (b"<!DOCTYPE html>" + b"x" * 60, "found a web page"),
    ],
)
def test_a_shard_that_is_another_file_is_told(
    checkpoint: Path, beginning: bytes, said: str
) -> None:
    shards_of(checkpoint)[0].write_bytes(beginning)
    assert_refused(checkpoint, f"not a safetensors file, {said}")


@pytest.mark.parametrize("kind", ["pipe", "directory"])
@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_what_is_no_regular_file_is_not_read(checkpoint: Path, name: str, kind: str) -> None:
    (checkpoint / name).unlink()
    if kind == "pipe":
        os.mkfifo(checkpoint / name)
    else:
        (checkpoint / name).mkdir()
    assert_refused(checkpoint, rf"{name} (is not a regular file|cannot be read)")


@pytest.mark.parametrize("name", ["a" * 300, "nowhere/at/all/x", "a\0b"])
def test_a_path_that_cannot_be_is_one_error(name: str) -> None:
    assert_refused(Path(name), "does not exist|is not a model")


# On the hub, and the output ---------------------------------------------------------------------


def add_copy(checkpoint: Path, name: str, copy: str) -> None:
    """Store a tensor a second time, under another name."""
    (shard,) = shards_of(checkpoint)
    header, data = read_header(shard)
    begin, end = header[name]["data_offsets"]
    header[copy] = {**header[name], "data_offsets": [len(data), len(data) + end - begin]}
    write_shard(shard, header, data + data[begin:end])


def test_a_repository_without_an_index_is_read(
    hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    held = []
    for number in range(2):
        hub.add(NAME, checkpoint)
        convert(NAME, tmp_path / f"{number}.gguf")
        tensors = GGUFReader(tmp_path / f"{number}.gguf").tensors
        held.append({tensor.name: tensor.data.tobytes() for tensor in tensors})
        (checkpoint / INDEX_NAME).unlink(missing_ok=True)
    assert held[0] == held[1]


def test_a_repository_s_tied_output_is_compared_with_its_embedding(
    hub: HubServer, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    tied = tmp_path / "tied"
    shutil.copytree(make_checkpoint(replace(SMALL, tied=True, shards=1)), tied)
    add_copy(tied, "language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    hub.add(NAME, tied)
    report = convert(NAME, tmp_path / "tied.gguf")
    assert any("lm_head.weight was left out" in note for note in report.notes)
    assert report.parameters == convert(tied, dry_run=True).parameters


def test_a_repository_that_lacks_a_shard_is_refused_by_name(
    hub: HubServer, checkpoint: Path
) -> None:
    (checkpoint / INDEX_NAME).unlink()
    shards_of(checkpoint)[0].unlink()
    hub.add(NAME, checkpoint)
    with pytest.raises(CheckpointError, match=r"lacks shards, found 1 of 2 missing.*00001-of"):
        convert(NAME, dry_run=True)


def test_an_output_in_a_directory_that_is_missing_names_the_command(
    checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "not here" / "x.gguf"
    with pytest.raises(OutputError, match=rf"does not exist.*mkdir -p '{target.parent}'"):
        convert(checkpoint, target)
    assert not target.parent.exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a directory"):
        convert(checkpoint, tmp_path / "file" / "x.gguf")
