"""Merging an adapter while converting gives the bytes of converting what PEFT merged in float32."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import Llama4ForConditionalGeneration

from llama4_edge import convert
from tests.fixtures import MakeCheckpoint, MakeGGUF, MakeProjector
from tests.reference.test_adapters import DOWN, GATE_UP, SMALL, TEXT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig, PeftModel, get_peft_model

# Every kind of matrix, those of the vision tower among them.
EVERYTHING: dict[str, Any] = {
    "target_modules": r".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|lm_head"
    r"|embed_tokens|linear_1|fc1|fc2)",
    "target_parameters": [GATE_UP, DOWN, "feed_forward.router.weight"],
    "rank_pattern": {"q_proj": 7},
    "alpha_pattern": {"o_proj": 3.0},
}
WIDE = replace(SMALL, hidden=256, heads=4, head_dim=64, expert_ffn=224, dense_ffn=512)
RECIPES: dict[str, dict[str, Any]] = {
    "f32": {"recipe": "bf16", "types": [(".", "f32")], "vision_type": "f32"},
    "bf16": {"recipe": "bf16"},
    "int4": {"recipe": "int4"},
}


def loaded(checkpoint: Path) -> Any:
    return Llama4ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)


def train(checkpoint: Path, directory: Path, seed: int = 0, **settings: Any) -> Path:
    """An adapter of random numbers, as `save_pretrained` saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(
            loaded(checkpoint), LoraConfig(**{"r": 4, "lora_alpha": 8, **settings})
        )
        torch.manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data.normal_(0, 0.08)
        adapted.save_pretrained(str(directory))
    return directory


def merged_by_peft(checkpoint: Path, directory: Path, *adapters: Path) -> Path:
    """The checkpoint with the adapters merged in float32, and the files beside the weights."""
    model = loaded(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for adapter in adapters:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    model.save_pretrained(directory)
    for file in checkpoint.iterdir():
        if "safetensors" not in file.name and not (directory / file.name).exists():
            shutil.copy(file, directory)
    return directory


def tensors(file: Path) -> dict[str, bytes]:
    """Those of a GGUF and of the projector beside it."""
    files = [file, *file.parent.glob(f"mmproj-{file.stem}-*.gguf")]
    assert len(files) == 2
    return {tensor.name: tensor.data.tobytes() for it in files for tensor in GGUFReader(it).tensors}


@pytest.mark.parametrize("rank", [1, 16])
def test_every_matrix_is_what_peft_merges(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, rank: int
) -> None:
    checkpoint = make_checkpoint(WIDE if rank > 1 else SMALL)
    adapter = train(checkpoint, tmp_path / "adapter", r=rank, **EVERYTHING)
    merged = merged_by_peft(checkpoint, tmp_path / "merged", adapter)
    for name, settings in RECIPES.items():
        (tmp_path / name).mkdir()
        ours, theirs = tmp_path / name / "ours.gguf", tmp_path / name / "theirs.gguf"
        report = convert(checkpoint, ours, merge_lora=[adapter], **settings)
        convert(merged, theirs, **settings)
        assert tensors(ours) == tensors(theirs), name
        assert f"merged {adapter}: added to 59 tensors" in report.notes


def test_adapters_are_merged_one_after_the_other_each_with_its_scale(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(SMALL)
    first = train(checkpoint, tmp_path / "first", **EVERYTHING)
    second = train(checkpoint, tmp_path / "second", seed=1, target_modules=TEXT + "(q_proj|v_proj)")
    halved = shutil.copytree(second, tmp_path / "halved")
    settings = json.loads((halved / "adapter_config.json").read_text())
    (halved / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 4}))
    merged = merged_by_peft(checkpoint, tmp_path / "merged", first, halved)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    report = convert(checkpoint, ours, merge_lora=[first, (second, 0.5)], **RECIPES["f32"])
    convert(merged, theirs, **RECIPES["f32"])
    assert tensors(ours) == tensors(theirs)
    assert f"merged {second} times 0.5: added to 8 tensors" in report.notes


def test_saved_modules_stand_in_for_the_models(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(SMALL)
    adapter = train(
        checkpoint, tmp_path / "adapter",
        target_modules=TEXT + "q_proj", modules_to_save=["lm_head", "input_layernorm"],
    )  # fmt: skip
    merged = merged_by_peft(checkpoint, tmp_path / "merged", adapter)
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    report = convert(checkpoint, ours, merge_lora=[adapter], recipe="bf16")
    convert(merged, theirs, recipe="bf16")
    assert tensors(ours) == tensors(theirs)
    assert f"merged {adapter}: added to 4 tensors, replaced 11" in report.notes


@pytest.mark.parametrize("layout", ["one by one", "stacked"])
def test_it_does_not_matter_how_the_checkpoint_stores_its_experts(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, layout: str
) -> None:
    checkpoint = make_checkpoint(SMALL)
    adapter = train(
        checkpoint, tmp_path / "adapter", target_modules=[], target_parameters=[GATE_UP, DOWN]
    )
    other = shutil.copytree(checkpoint, tmp_path / "other")
    weights: dict[str, torch.Tensor] = {}
    for shard in other.glob("*.safetensors"):
        weights |= load_file(shard)
        shard.unlink()
    (other / "model.safetensors.index.json").unlink(missing_ok=True)
    for name in [name for name in weights if ".experts." in name]:
        fused = weights.pop(name)
        before, _, matrix = name.rpartition(".")
        parts = {matrix: fused}
        if matrix == "gate_up_proj":
            parts = dict(zip(("gate_proj", "up_proj"), fused.chunk(2, dim=-1), strict=True))
        for part, matrices in parts.items():
            linear = matrices.transpose(1, 2).contiguous()
            if layout == "stacked":
                weights[f"{before}.{part}.weight"] = linear
            else:
                weights |= {f"{before}.{e}.{part}.weight": one for e, one in enumerate(linear)}
    save_file({name: one.clone() for name, one in weights.items()}, other / "model.safetensors")
    for source, target in ((checkpoint, "fused.gguf"), (other, "other.gguf")):
        convert(source, tmp_path / target, merge_lora=[adapter], recipe="int8")
    assert tensors(tmp_path / "other.gguf") == tensors(tmp_path / "fused.gguf")


def test_a_gguf_in_bf16_becomes_what_its_checkpoint_does(
    make_checkpoint: MakeCheckpoint,
    make_gguf: MakeGGUF,
    make_projector: MakeProjector,
    tmp_path: Path,
) -> None:
    checkpoint = make_checkpoint(SMALL)
    added = train(checkpoint, tmp_path / "added", **EVERYTHING)
    saved = train(
        checkpoint, tmp_path / "saved", seed=1,
        target_modules=TEXT + "q_proj", modules_to_save=["experts", "router", "layernorm_post"],
    )  # fmt: skip
    both: dict[str, Any] = {"merge_lora": [added, (saved, 0.5)], "force": True}
    halves: list[tuple[Path, dict[str, Any], dict[str, Any]]] = [
        (make_gguf(checkpoint, "bf16"), {"recipe": "int4"}, {"vision": False}),
        (make_projector(checkpoint, "f32"), {"vision_type": "f16"}, {"text": False}),
    ]
    for source, settings, half in halves:
        expected, target = tmp_path / "expected.gguf", tmp_path / "ours.gguf"
        convert(checkpoint, expected, **settings, **half, **both)
        report = convert(source, target, **settings, **both)
        assert target.read_bytes() == expected.read_bytes()
        assert any(f"merged {saved} times 0.5: added to " in note for note in report.notes)
