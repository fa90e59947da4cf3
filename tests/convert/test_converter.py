"""The whole conversion, and each way of refusing one with nothing left behind."""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

import llama4_edge
from llama4_edge import convert
from llama4_edge.convert import slabs
from llama4_edge.convert.converter import inspect_checkpoint
from llama4_edge.convert.part_layout import Part
from llama4_edge.convert.target import check_target
from llama4_edge.errors import (
    CheckpointError,
    Llama4EdgeError,
    OutputError,
    RecipeError,
    SettingError,
)
from llama4_edge.progress import Progress
from llama4_edge.quant import DEFAULT_RECIPE
from tests.fixtures import MakeCheckpoint

from .conftest import (
    SMALL,
    add_tensor,
    drop_tensor,
    edit_text_config,
    read_header,
    shard_with,
    shards_of,
    write_shard,
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_runs_write_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name, threads in (("a", 1), ("b", 3)):
        convert(checkpoint, tmp_path / f"{name}.gguf", threads=threads)
    assert sha256(tmp_path / "a.gguf") == sha256(tmp_path / "b.gguf")


def test_two_processes_write_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    """Python's hashes differ between processes, so an order that rests on them would show."""
    script = "import sys, llama4_edge; llama4_edge.convert(sys.argv[1], sys.argv[2])"
    for name in ("a", "b"):
        command = [sys.executable, "-c", script, str(checkpoint), str(tmp_path / f"{name}.gguf")]
        subprocess.run(command, check=True)
    assert sha256(tmp_path / "a.gguf") == sha256(tmp_path / "b.gguf")


def test_one_shard_or_many_give_the_same_tensors(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    files = []
    for shards in (1, 4):
        source = make_checkpoint(replace(SMALL, shards=shards))
        files.append(tmp_path / f"{shards}.gguf")
        convert(source, files[-1], recipe="bf16")
    one, many = ({t.name: t.data.tobytes() for t in GGUFReader(file).tensors} for file in files)
    assert one == many


def test_slabs_smaller_than_an_expert_change_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(checkpoint, tmp_path / "whole.gguf")
    monkeypatch.setattr(slabs, "SLAB_BYTES", 1000)
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 1000)
    convert(checkpoint, tmp_path / "sliced.gguf")
    assert sha256(tmp_path / "whole.gguf") == sha256(tmp_path / "sliced.gguf")


def test_the_report_adds_up_to_the_file(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    report = convert(checkpoint, output)
    tensors = GGUFReader(output).tensors
    assert report.bytes == output.stat().st_size
    assert report.parameters == sum(int(tensor.n_elements) for tensor in tensors)
    assert sum(role.bytes for role in report.roles) == sum(int(it.n_bytes) for it in tensors)
    assert {role.role for role in report.roles} == {
        "expert", "shared_expert", "attention", "router", "embedding", "output", "norm", "rope",
    }  # fmt: skip
    assert report.recipe == DEFAULT_RECIPE
    bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors)
    assert report.bits_per_weight == bits / report.parameters
    assert report.left_out == ()
    assert (report.output, report.outputs, report.projector) == (str(output), (str(output),), None)


def test_a_dry_run_reports_the_same_and_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    planned = convert(checkpoint, output, dry_run=True)
    assert not output.exists()
    done = convert(checkpoint, output)
    expected = replace(done, seconds=0.0, stage_seconds={}, dry_run=True)
    assert replace(planned, seconds=0.0, stage_seconds={}) == expected


def test_progress_covers_every_byte_once(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = convert(checkpoint, tmp_path / "out.gguf", progress=seen.append)
    assert [step.bytes_done for step in seen] == sorted(step.bytes_done for step in seen)
    assert seen[-1].bytes_done == seen[-1].bytes_total == report.source_bytes


def test_the_default_name_says_model_and_recipe(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert convert(checkpoint, recipe="q8_0").output == "small-q8_0.gguf"
    assert (tmp_path / "small-q8_0.gguf").is_file()
    (tmp_path / "into").mkdir()
    assert convert(checkpoint, "into").output == "into/small-int4.gguf"


def test_overrides_decide_before_the_recipe(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    types = [(r"blk\.0\.attn_q", "f16"), ("attn", "q5_0")]
    convert(checkpoint, output, recipe="q8_0", types=types)
    found = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(output).tensors}
    assert found["blk.0.attn_q.weight"] == "F16"
    assert found["blk.1.attn_q.weight"] == found["blk.0.attn_k.weight"] == "Q5_0"
    assert found["blk.0.attn_norm.weight"] == "F32"
    assert found["blk.0.ffn_up_exps.weight"] == "Q8_0"


def test_weights_in_float32_are_rounded_to_nearest_even_bf16(
    checkpoint: Path, tmp_path: Path
) -> None:
    """As convert_hf_to_gguf.py would: 1 + 2^-8 lies between two bf16 numbers, and goes to even."""
    shard, name = shard_with(checkpoint, "layers.0.self_attn.q_proj.weight")
    header, data = read_header(shard)
    begin, end = header[name]["data_offsets"]
    wide = np.full((end - begin) // 2, 1 + 2**-8, np.float32)
    wide[0], wide[1] = 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20
    header[name].update(dtype="F32", data_offsets=[begin, begin + wide.nbytes])
    for other, entry in header.items():
        if other != name and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [
                at + wide.nbytes - (end - begin) for at in entry["data_offsets"]
            ]
    write_shard(shard, header, data[:begin] + wide.tobytes() + data[end:])
    convert(checkpoint, tmp_path / "out.gguf", recipe="bf16")
    tensor = next(t for t in GGUFReader(tmp_path / "out.gguf").tensors if "0.attn_q." in t.name)
    halves = tensor.data.view(np.uint16).reshape(-1)
    assert halves[0] == 0x3F82
    assert halves[1] == 0x3F81
    assert set(halves[2:]) == {0x3F80}


def test_inspecting_a_checkpoint_uses_the_gguf_names(checkpoint: Path) -> None:
    summary = inspect_checkpoint(checkpoint)
    names = {tensor.name: tensor for tensor in summary.tensors}
    assert names["blk.0.ffn_gate_exps.weight"].type == "BF16"
    assert names["blk.0.ffn_gate_exps.weight"].shape == (4, 64, 64)
    assert summary.bits_per_weight == summary.expert_bits_per_weight == 16
    assert summary.parameters * 2 == sum(len(read_header(it)[1]) for it in shards_of(checkpoint))


# What is refused ----------------------------------------------------------------------------------


def assert_refused(
    error: type[Llama4EdgeError],
    source: Path,
    output: Path,
    *,
    match: str,
    recipe: str = "int4",
    types: tuple[tuple[str, str], ...] = (),
    force: bool = False,
) -> None:
    before = sorted(output.parent.iterdir())
    with pytest.raises(error, match=match):
        convert(source, output, recipe=recipe, types=types, force=force)
    assert sorted(output.parent.iterdir()) == before


def test_a_missing_tensor_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    name = "language_model.model.layers.3.feed_forward.router.weight"
    drop_tensor(checkpoint, name)
    assert_refused(CheckpointError, checkpoint, tmp_path / "o.gguf", match=f"{name} is missing")


def test_an_extra_tensor_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    name = "language_model.model.layers.4.input_layernorm.weight"
    add_tensor(checkpoint, name, (64,))
    assert_refused(CheckpointError, checkpoint, tmp_path / "o.gguf", match=f"{name} is not part of")


def test_a_truncated_shard_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    shard = shards_of(checkpoint)[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert_refused(CheckpointError, checkpoint, tmp_path / "o.gguf", match="is truncated")


def test_a_config_llama_cpp_cannot_represent_leaves_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    edit_text_config(checkpoint, attention_chunk_size=4096)
    assert_refused(
        llama4_edge.UnsupportedError, checkpoint, tmp_path / "o.gguf", match="attention_chunk_size"
    )


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
@pytest.mark.parametrize(
    "ending", ["q_proj.weight", "experts.down_proj", "router.weight", "norm.weight"]
)
@pytest.mark.parametrize("recipe", ["bf16", "int4"])
def test_a_weight_that_is_no_number_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, bits: int, ending: str, recipe: str
) -> None:
    shard, name = shard_with(checkpoint, ending)
    header, data = read_header(shard)
    begin, end = header[name]["data_offsets"]
    at = begin + (end - begin) // 2 // 2 * 2
    write_shard(shard, header, data[:at] + bits.to_bytes(2, "little") + data[at + 2 :])
    assert_refused(
        CheckpointError,
        checkpoint,
        tmp_path / "o.gguf",
        recipe=recipe,
        match=f"{name} in {shard.name} cannot be converted, found NaN or infinity",
    )


def test_a_weight_too_large_for_its_type_is_refused(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shard, name = shard_with(checkpoint, "experts.down_proj")
    header, data = read_header(shard)
    begin = header[name]["data_offsets"][0]
    write_shard(shard, header, data[:begin] + b"\x00\x7f" + data[begin + 2 :])
    assert_refused(
        CheckpointError, checkpoint, tmp_path / "o.gguf", recipe="q8_0", match="too large for Q8_0"
    )


def test_an_existing_target_needs_force(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.gguf"
    output.write_bytes(b"precious")
    assert_refused(OutputError, checkpoint, output, match=r"o\.gguf exists.*--force")
    assert output.read_bytes() == b"precious"
    convert(checkpoint, output, force=True)
    assert output.read_bytes()[:4] == b"GGUF"


def test_a_failed_conversion_keeps_the_file_it_was_to_replace(
    checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.gguf"
    output.write_bytes(b"precious")
    shard, name = shard_with(checkpoint, "q_proj.weight")
    header, data = read_header(shard)
    begin = header[name]["data_offsets"][0]
    write_shard(shard, header, data[:begin] + b"\x80\x7f" + data[begin + 2 :])
    with pytest.raises(CheckpointError, match="NaN"):
        convert(checkpoint, output, force=True)
    assert output.read_bytes() == b"precious"
    assert not (tmp_path / "o.gguf.partial").exists()


def test_a_directory_that_is_not_there_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="deep does not exist"):
        convert(checkpoint, tmp_path / "deep" / "o.gguf")


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    parts = [Part(tmp_path / "o.gguf", b"", 1 << 60)]
    with pytest.raises(
        OutputError, match=r"too little free space.*found .* free, expected 1048576.0 TiB"
    ):
        check_target(parts, source=tmp_path, force=False, sources=None, encodes=True)


def test_two_conversions_of_one_target_do_not_mix(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "o.gguf.partial.json").write_text("{}")
    with (tmp_path / "o.gguf.partial").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert_refused(
            OutputError, checkpoint, tmp_path / "o.gguf", match="another conversion is writing"
        )


def test_a_revision_of_a_directory_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a local directory, and has no revisions"):
        convert(checkpoint, tmp_path / "o.gguf", revision="main")


@pytest.mark.parametrize(
    ("recipe", "types", "said"),
    [
        ("int5", (), "unknown recipe, found 'int5', expected one of int4, int3, int8"),
        ("int4", (("attn", "q9"),), "unknown tensor type, found 'q9'"),
        ("int4", (("[", "q8_0"),), "is not a regular expression"),
        ("int4", (("attn_nrom", "q8_0"),), "matches no tensor whose type can be chosen"),
        ("int4", (("_norm", "q8_0"),), "matches no tensor whose type can be chosen"),
    ],
)
def test_bad_recipes_leave_nothing(
    checkpoint: Path, tmp_path: Path, recipe: str, types: tuple[tuple[str, str], ...], said: str
) -> None:
    assert_refused(
        RecipeError, checkpoint, tmp_path / "o.gguf", recipe=recipe, types=types, match=said
    )


def test_a_write_that_fails_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """The kernel refuses to let the file grow, as it does on a full disk."""
    script = (
        "import sys, llama4_edge\n"
        "try: llama4_edge.convert(sys.argv[1], sys.argv[2])\n"
        "except llama4_edge.OutputError as error: print(error)\n"
    )
    output = tmp_path / "o.gguf"
    done = subprocess.run(
        [sys.executable, "-c", script, str(checkpoint), str(output)],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"writing {output}.partial failed, found File too large. ")
    assert not list(tmp_path.glob("o.gguf*"))


def test_a_preset_is_answered_with_its_repository() -> None:
    with pytest.raises(CheckpointError) as caught:
        convert("scout")
    assert caught.value.hint == (
        "Convert its repository: meta-llama/Llama-4-Scout-17B-16E-Instruct"
    )
    with pytest.raises(CheckpointError, match=r"Did you mean maverick\?"):
        convert("mavrick")


def test_unknown_recipes_and_types_are_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean int4\?"):
        convert("anything", recipe="in4")
    with pytest.raises(RecipeError, match=r"Did you mean q4_k"):
        convert("anything", types=[("x", "q4k")])


@pytest.mark.parametrize(("name", "value"), [("split_size", 0), ("split_size", -1), ("threads", 0)])
def test_a_number_below_one_is_refused_before_the_source_is_looked_at(
    name: str, value: int
) -> None:
    with pytest.raises(SettingError, match=f"{name} is outside its range, found {value}, expected"):
        convert("anything", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_a_regular_file_is_not_replaced(
    checkpoint: Path, tmp_path: Path, force: bool
) -> None:
    pipe = tmp_path / "o.gguf"
    os.mkfifo(pipe)
    assert_refused(OutputError, checkpoint, pipe, match="is not a regular file", force=force)
    assert pipe.is_fifo()


def test_a_file_of_the_checkpoint_is_not_replaced_under_any_name(
    checkpoint: Path, tmp_path: Path
) -> None:
    shard, _ = shard_with(checkpoint, "q_proj.weight")
    before = shard.read_bytes()
    linked = tmp_path / "linked.gguf"
    linked.symlink_to(shard)
    for target in (shard, linked, checkpoint / "config.json"):
        assert_refused(OutputError, checkpoint, target, match="file of the checkpoint", force=True)
    assert shard.read_bytes() == before


def test_a_link_is_written_through(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "o.gguf"
    link.symlink_to(tmp_path / "disk/real.gguf")
    report = convert(checkpoint, link)
    assert link.is_symlink()
    assert report.output == str(tmp_path / "disk/real.gguf")
    assert link.stat().st_size == report.bytes


def test_a_link_that_leads_to_itself_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    link = tmp_path / "o.gguf"
    link.symlink_to(link.name)
    assert_refused(OutputError, checkpoint, link, match="cannot be written through", force=True)
    assert link.is_symlink()


def test_the_name_of_a_part_that_is_a_link_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    report = convert(checkpoint, tmp_path / "o.gguf", split_size=2**15, dry_run=True)
    link = Path(report.outputs[0])
    link.symlink_to("elsewhere")
    with pytest.raises(OutputError, match="cannot be written through"):
        convert(checkpoint, tmp_path / "o.gguf", split_size=2**15, force=True)
    assert link.is_symlink()


def test_a_pipe_that_a_link_leads_to_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    link = tmp_path / "o.gguf"
    link.symlink_to("pipe")
    assert_refused(OutputError, checkpoint, link, match="o.gguf is not a regular file", force=True)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_what_no_file_can_be_called_is_refused(checkpoint: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be the name of a file"):
        convert(checkpoint, name)


@pytest.mark.parametrize("name", ["force", "dry_run", "keep_source"])
def test_a_word_is_not_taken_for_true(checkpoint: Path, name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} is of the wrong type, found 'no'"):
        convert(checkpoint, **{name: "no"})  # type: ignore[arg-type]


def test_a_name_with_a_slash_at_its_end_is_a_directory(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing does not exist\. Make it first: mkdir"):
        convert(checkpoint, f"{tmp_path}/missing/")


def test_two_sets_of_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(shards_of(checkpoint)[0], checkpoint / "model.safetensors")
    assert_refused(
        CheckpointError, checkpoint, tmp_path / "o.gguf", match="holds two sets of weights"
    )


def test_a_shard_that_is_replaced_while_it_is_read_leaves_no_file(
    checkpoint: Path, tmp_path: Path
) -> None:
    shard = shards_of(checkpoint)[-1]
    touched = False

    def overwrite(_: Progress) -> None:
        nonlocal touched
        if not touched:
            # The same numbers at another time, as a copy that is still running would write them.
            shard.write_bytes(shard.read_bytes())
            touched = True

    with pytest.raises(CheckpointError, match="changed while it was converted"):
        convert(checkpoint, tmp_path / "o.gguf", progress=overwrite)
    assert list(tmp_path.glob("o.gguf*")) == []
