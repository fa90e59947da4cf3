"""A vision tower becomes a projector file, in one job with the text model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import quantize

from demo.checkpoint import TEXT_ONLY, Vision
from llama4_edge import convert
from llama4_edge.convert.vision import VISION_TYPES
from llama4_edge.errors import (
    CheckpointError,
    DamagedTensorError,
    OutputError,
    RecipeError,
    SettingError,
    UnsupportedError,
)
from llama4_edge.progress import Progress
from tests.fixtures import MakeCheckpoint

from .conftest import (
    SMALL_WITH_TOWER,
    add_tensor,
    drop_tensor,
    edit_json,
    read_header,
    shard_with,
    shards_of,
)
from .test_resume import small_slabs  # noqa: F401

# No two axes alike.
UNLIKE = replace(
    SMALL_WITH_TOWER,
    vision=Vision(hidden=80, layers=3, heads=5, image_size=80, patch_size=10, projector=112),
)

# Ours, and the names in a checkpoint, by part of the tower (llama.cpp's tools/mtmd/clip-impl.h).
NAMES = {
    "v.class_embd": "vision_model.class_embedding",
    "v.position_embd.weight": "vision_model.positional_embedding_vlm",
    "v.patch_embd.weight": "vision_model.patch_embedding.linear.weight",
    "mm.model.mlp.1.weight": "vision_model.vision_adapter.mlp.fc1.weight",
    "mm.model.mlp.2.weight": "vision_model.vision_adapter.mlp.fc2.weight",
    "mm.model.fc.weight": "multi_modal_projector.linear_1.weight",
}
PARTS = {
    "v.pre_ln": "vision_model.layernorm_pre",
    "v.post_ln": "vision_model.layernorm_post",
    **{
        f"v.blk.{layer}.{ours}": f"vision_model.model.layers.{layer}.{theirs}"
        for layer in range(3)
        for ours, theirs in {
            "ln1": "input_layernorm",
            "ln2": "post_attention_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_out": "self_attn.o_proj",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        }.items()
    },
}
NAMES |= {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in PARTS.items()
    for kind in ("weight", "bias")
}


def stored_bf16(checkpoint: Path) -> dict[str, npt.NDArray[np.uint16]]:
    """Every tensor's bits as stored."""
    tensors = {}
    for shard in shards_of(checkpoint):
        header, data = read_header(shard)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[begin:end], np.uint16).reshape(entry["shape"])
    return tensors


def encoded(bits: npt.NDArray[np.uint16], type_name: str) -> bytes:
    floats = (bits.astype(np.uint32) << 16).view(np.float32)
    if type_name == "BF16":
        return bits.tobytes()
    kind = GGMLQuantizationType[type_name]
    blocks: npt.NDArray[np.uint8] = quantize(np.ascontiguousarray(floats), kind)
    return blocks.tobytes()


@pytest.mark.parametrize("vision_type", VISION_TYPES)
@pytest.mark.parametrize("geometry", [SMALL_WITH_TOWER, UNLIKE], ids=["alike", "unlike"])
def test_every_number_is_that_of_the_checkpoint(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, geometry: Any, vision_type: str
) -> None:
    checkpoint = make_checkpoint(geometry)
    report = convert(checkpoint, tmp_path / "p.gguf", text=False, vision_type=vision_type)
    stored = stored_bf16(checkpoint)
    made = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "p.gguf").tensors}
    assert made.keys() == NAMES.keys()
    for ours, theirs in NAMES.items():
        tensor, bits = made[ours], stored[theirs]
        assert tuple(int(size) for size in tensor.shape[::-1]) == bits.shape
        assert tensor.data.tobytes() == encoded(bits, tensor.tensor_type.name), ours
    types = {name: tensor.tensor_type.name for name, tensor in made.items()}
    fits = geometry is SMALL_WITH_TOWER or vision_type not in ("q8_0", "q4_0")
    wanted = vision_type.upper() if fits else "F16"
    assert {types[name] for name in ("v.blk.0.attn_q.weight", "mm.model.fc.weight")} == {wanted}
    # Rows of 80 and of 112: 5 matrices of a layer, and two of the adapter.
    assert len(report.fallbacks) == (0 if fits else 3 * 5 + 2)
    exact = ("v.class_embd", "v.position_embd.weight", "v.blk.1.ln2.weight", "v.blk.0.ffn_up.bias")
    assert {types[name] for name in exact} == {"F32"}
    assert types["v.patch_embd.weight"] == ("F16" if vision_type == "f16" else "F32")


def test_the_metadata_are_those_that_llama_cpp_reads(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(UNLIKE)
    convert(checkpoint, tmp_path / "p.gguf", text=False)
    fields = GGUFReader(tmp_path / "p.gguf").fields
    read = {name: field.contents() for name, field in fields.items()}
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.file_type": 1,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "llama4",
        "clip.use_gelu": True,
        "clip.vision.projection_dim": 64,
        "clip.vision.image_size": 80,
        "clip.vision.patch_size": 10,
        "clip.vision.embedding_length": 80,
        "clip.vision.feed_forward_length": 320,
        "clip.vision.block_count": 3,
        "clip.vision.attention.head_count": 5,
        "clip.vision.image_mean": [0.5] * 3,
        "clip.vision.image_std": [0.5] * 3,
        "clip.vision.projector.scale_factor": 2,
    }
    assert {name: read[name] for name in expected} == expected
    assert read["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def test_the_projector_lies_beside_the_text_model_and_is_named_after_it(
    checkpoint_with_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def names(*arguments: Any, **settings: Any) -> tuple[str, ...]:
        return convert(checkpoint_with_tower, *arguments, dry_run=True, **settings).outputs

    assert names() == ("small-int4.gguf", "mmproj-small-f16.gguf")
    assert names("a/b-q8_0.gguf", recipe="q8_0") == ("a/b-q8_0.gguf", "a/mmproj-b-f16.gguf")
    assert names("b.gguf", vision_type="bf16") == ("b.gguf", "mmproj-b-bf16.gguf")
    assert names(vision=False) == ("small-int4.gguf",)
    assert names(text=False) == ("mmproj-small-f16.gguf",)
    assert names("x.gguf", text=False) == ("x.gguf",)
    assert names("into/", text=False, vision_type="q8_0") == ("into/mmproj-small-q8_0.gguf",)
    parts = names("s.gguf", split_size=100_000)
    assert parts[-1] == "mmproj-s-f16.gguf"
    assert parts[0] == f"s-00001-of-{len(parts) - 1:05d}.gguf"


def test_the_two_files_are_those_of_two_conversions(
    checkpoint_with_tower: Path, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    both = convert(checkpoint_with_tower, tmp_path / "o.gguf", progress=seen.append)
    text = convert(checkpoint_with_tower, tmp_path / "t.gguf", vision=False)
    vision = convert(checkpoint_with_tower, tmp_path / "v.gguf", text=False)
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "t.gguf").read_bytes()
    assert both.projector == str(tmp_path / "mmproj-o-f16.gguf")
    assert Path(both.projector).read_bytes() == (tmp_path / "v.gguf").read_bytes()
    assert both.bytes == text.bytes + vision.bytes
    assert both.parameters == text.parameters + vision.parameters
    # The recipe's, and the projector's own.
    assert both.bits_per_weight == text.bits_per_weight < 8
    assert 16 < vision.bits_per_weight < 24
    assert both.source_bytes == text.source_bytes + vision.source_bytes
    assert seen[-1].bytes_done == seen[-1].bytes_total == both.source_bytes
    assert (both.left_out, vision.left_out) == ((), ())
    assert len(text.left_out) == 58
    assert (vision.recipe, vision.output, vision.projector) == (
        "f16", str(tmp_path / "v.gguf"), str(tmp_path / "v.gguf"),
    )  # fmt: skip
    assert {role.role for role in vision.roles} == {"vision_tower", "projector"}


def test_a_dry_run_plans_both_to_the_byte(checkpoint_with_tower: Path, tmp_path: Path) -> None:
    planned = convert(checkpoint_with_tower, tmp_path / "o.gguf", dry_run=True)
    assert not list(tmp_path.glob("*.gguf"))
    done = convert(checkpoint_with_tower, tmp_path / "o.gguf")
    assert planned.bytes == done.bytes == sum(Path(it).stat().st_size for it in done.outputs)
    assert planned.outputs == done.outputs


def test_both_have_to_fit_on_the_disk(
    checkpoint_with_tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = convert(checkpoint_with_tower, tmp_path / "o.gguf", dry_run=True).bytes

    class Usage:
        free = needed - 1

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(OutputError, match="too little free space"):
        convert(checkpoint_with_tower, tmp_path / "o.gguf")
    assert not list(tmp_path.glob("*o*.gguf*"))


def test_an_existing_projector_is_not_replaced_unasked(
    checkpoint_with_tower: Path, tmp_path: Path
) -> None:
    projector = tmp_path / "mmproj-o-f16.gguf"
    projector.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"mmproj-o-f16.gguf exists.*vision=False"):
        convert(checkpoint_with_tower, tmp_path / "o.gguf")
    assert not (tmp_path / "o.gguf").exists()
    convert(checkpoint_with_tower, tmp_path / "o.gguf", vision=False)
    assert projector.read_bytes() == b"precious"
    convert(checkpoint_with_tower, tmp_path / "o.gguf", force=True)
    assert projector.read_bytes()[:4] == b"GGUF"


# Converts with small slabs and a journal written after each, and is killed at a share of the job.
CONVERT = """
import json, os, signal, sys, time
from pathlib import Path
from llama4_edge import convert
from llama4_edge.convert import output, slabs

slabs.SLAB_BYTES = slabs.ROW_SLAB_BYTES = 40_000
output.COMMIT_SECONDS = 0.0

share = float(sys.argv[3])
journal = Path(sys.argv[2] + ".partial.json")

def kill(step):
    if step.bytes_done >= share * step.bytes_total:
        # The disk may be slow, and what was written before not safe yet.
        while share > 0.5 and not json.loads(journal.read_text())["slabs_done"]:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

print(convert(sys.argv[1], sys.argv[2], threads=1, progress=kill).resumed_at)
"""


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_killed_anywhere_it_has_neither_name_and_ends_in_the_same_bytes(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, share: float
) -> None:
    source = make_checkpoint(SMALL_WITH_TOWER)
    whole = convert(source, tmp_path / "whole.gguf")
    command = [sys.executable, "-c", CONVERT, str(source), str(tmp_path / "o.gguf")]
    assert subprocess.run([*command, str(share)], check=False).returncode == -signal.SIGKILL
    made = ("o.gguf", "mmproj-o-f16.gguf")
    assert not any((tmp_path / name).exists() for name in made)
    assert all((tmp_path / f"{name}.partial").exists() for name in made)
    done = subprocess.run([*command, "9"], check=True, capture_output=True, text=True)
    # What was written last may not have been made safe.
    assert (share > 0.5) <= (float(done.stdout) > 0)
    for name, expected in zip(made, whole.outputs, strict=True):
        assert (tmp_path / name).read_bytes() == Path(expected).read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


def test_an_interrupted_conversion_of_both_is_not_taken_for_one_of_the_text_alone(
    checkpoint_with_tower: Path,
    tmp_path: Path,
    small_slabs: None,  # noqa: F811
) -> None:
    def stop(step: Progress) -> None:
        if step.bytes_done > step.bytes_total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint_with_tower, tmp_path / "o.gguf", progress=stop)
    with pytest.raises(OutputError, match="belongs to another conversion"):
        convert(checkpoint_with_tower, tmp_path / "o.gguf", vision=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 129}, "num_hidden_layers: 129 .llama.cpp: at most 128"),
        ({"intermediate_size": 100}, "intermediate_size: 100 .*here 256"),
        ({"hidden_act": "silu"}, "hidden_act: 'silu'"),
        ({"norm_eps": 1e-6}, "norm_eps: 1e-06"),
        ({"rope_theta": 5e5}, "rope_theta: 500000.0"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rope_parameters.rope_theta: 500000.0"),
        ({"num_channels": 1}, "num_channels: 1"),
        ({"num_attention_heads": 32}, "num_attention_heads: 32 .*multiple of 4"),
        ({"patch_size": 15}, "image_size: 56 .*2 patches of 15"),
        ({"pixel_shuffle_ratio": 0.4}, "pixel_shuffle_ratio: 0.4"),
        ({"projector_input_dim": 32}, "projector_input_dim: 32 .llama.cpp: 96"),
        ({"vision_output_dim": 32}, "vision_output_dim: 32 .llama.cpp: 96"),
        ({"multi_modal_projector_bias": True}, "multi_modal_projector_bias: True"),
    ],
)
def test_a_tower_that_llama_cpp_cannot_compute_is_refused_before_anything_is_written(
    checkpoint_with_tower: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    edit_json(
        checkpoint_with_tower / "config.json", lambda config: config["vision_config"].update(change)
    )
    for text in (True, False):
        with pytest.raises(UnsupportedError, match=f"{said}.*vision=False"):
            convert(checkpoint_with_tower, tmp_path / "o.gguf", text=text)
    assert not list(tmp_path.glob("*o*.gguf*"))
    convert(checkpoint_with_tower, tmp_path / "o.gguf", vision=False, dry_run=True)


def test_missing_unknown_and_misshapen_tensors_are_refused(
    checkpoint_with_tower: Path, tmp_path: Path
) -> None:
    name = "vision_model.model.layers.1.mlp.fc1.bias"
    drop_tensor(checkpoint_with_tower, name)
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing, found 57 tensors"):
        convert(checkpoint_with_tower, tmp_path / "o.gguf")
    add_tensor(checkpoint_with_tower, name, (7,))
    with pytest.raises(CheckpointError, match=rf"{name} .* another shape .*\[7\].*\[256\] .ffn"):
        convert(checkpoint_with_tower, tmp_path / "o.gguf")
    drop_tensor(checkpoint_with_tower, name)
    add_tensor(checkpoint_with_tower, name, (256,))
    add_tensor(checkpoint_with_tower, "vision_model.gate", (1,))
    with pytest.raises(CheckpointError, match=r"tensor vision_model.gate is not part of a vision"):
        convert(checkpoint_with_tower, tmp_path / "o.gguf")
    assert not list(tmp_path.glob("*o*.gguf*"))
    convert(checkpoint_with_tower, tmp_path / "o.gguf", vision=False, dry_run=True)


def test_numbers_that_f16_cannot_hold_are_refused_with_the_cure(
    checkpoint_with_tower: Path, tmp_path: Path
) -> None:
    name = "vision_model.vision_adapter.mlp.fc1.weight"
    shard, _ = shard_with(checkpoint_with_tower, name)
    header, data = read_header(shard)
    at = header[name]["data_offsets"][0]
    large = bytearray(data)
    large[at : at + 2] = np.uint16(0x4800).tobytes()  # 131072
    raw = shard.read_bytes()
    shard.write_bytes(raw[: len(raw) - len(data)] + large)
    with pytest.raises(DamagedTensorError, match=r"fc1.*F16.*bf16"):
        convert(checkpoint_with_tower, tmp_path / "o.gguf", text=False)
    convert(checkpoint_with_tower, tmp_path / "o.gguf", text=False, vision_type="bf16")


def test_settings_that_exclude_each_other_are_refused(
    checkpoint_with_tower: Path, tmp_path: Path
) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"text": False, "vision": False}, "nothing is to be converted"),
        ({"text": False, "recipe": "int8"}, "recipe is of no effect, found text=False"),
        ({"text": False, "split_size": 10}, "split_size is of no effect"),
        ({"text": False, "types": [("attn", "f16")]}, "types is of no effect"),
        ({"vision": False, "vision_type": "f16"}, "vision_type is of no effect"),
    ]
    for settings, said in refused:
        with pytest.raises(SettingError, match=said):
            convert(checkpoint_with_tower, tmp_path / "o.gguf", **settings)
    for name in ("q4_k", "", 3):
        with pytest.raises(RecipeError, match=r"unknown vision_type.*f16, bf16, q8_0, q4_0, f32"):
            convert(checkpoint_with_tower, tmp_path / "o.gguf", vision_type=name)  # type: ignore[arg-type]


def test_a_checkpoint_without_a_tower_becomes_a_text_model_alone(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(TEXT_ONLY)
    report = convert(checkpoint, tmp_path / "o.gguf", dry_run=True)
    assert (len(report.outputs), report.projector, report.notes) == (1, None, ())
    with pytest.raises(CheckpointError, match="has no vision tower, found a text model alone"):
        convert(checkpoint, tmp_path / "o.gguf", text=False)


def test_how_pixels_are_scaled_is_the_processor_s(
    checkpoint_with_tower: Path, tmp_path: Path
) -> None:
    path = checkpoint_with_tower / "preprocessor_config.json"

    def scale() -> Any:
        convert(checkpoint_with_tower, tmp_path / "o.gguf", text=False, force=True)
        fields = GGUFReader(tmp_path / "o.gguf").fields
        return fields["clip.vision.image_mean"].contents(), fields[
            "clip.vision.image_std"
        ].contents()

    assert scale() == ([0.5] * 3, [0.5] * 3)
    settings = {"image_mean": [0.25, 0.5, 0.75], "image_std": [1, 0.5, 0.25]}
    path.write_text(json.dumps(settings | {"size": {"height": 56, "width": 56}}))
    assert scale() == (settings["image_mean"], settings["image_std"])
    # transformers 5 keeps them inside of the processor's.
    inner = checkpoint_with_tower / "processor_config.json"
    inner.write_text(json.dumps({"image_processor": {"image_mean": [0.125] * 3}}))
    assert scale() == ([0.125] * 3, settings["image_std"])
    for wrong in ({"image_std": [0, 1, 1]}, {"image_mean": [1, 2]}, {"size": {"height": 336}}):
        path.write_text(json.dumps(wrong))
        inner.unlink(missing_ok=True)
        with pytest.raises(
            CheckpointError, match=rf"preprocessor_config.json .*{next(iter(wrong))}"
        ):
            convert(checkpoint_with_tower, tmp_path / "o.gguf", text=False, force=True)


def test_two_spellings_of_one_tensor_are_refused(
    checkpoint_with_tower: Path, tmp_path: Path
) -> None:
    add_tensor(checkpoint_with_tower, "model.vision_model.class_embedding", (64,))
    with pytest.raises(CheckpointError, match="are the same tensor of the model"):
        convert(checkpoint_with_tower, tmp_path / "o.gguf")
