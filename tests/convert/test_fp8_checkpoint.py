"""An FP8 checkpoint, as published, becomes the bytes that its decoded numbers would become."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download

from demo.checkpoint import MAVERICK_LIKE
from llama4_edge import convert
from llama4_edge.convert import hub as hub_shards
from llama4_edge.convert import slabs
from llama4_edge.convert.checkpoint import open_checkpoint
from llama4_edge.convert.config import parse_config
from llama4_edge.convert.converter import inspect_checkpoint
from llama4_edge.convert.names import ExpertLayout, LayerExperts, rules_for
from llama4_edge.convert.text_model import read_text_model
from llama4_edge.errors import CheckpointError, DamagedTensorError, UnsupportedError
from llama4_edge.quant import DEFAULT_RECIPE
from tests.fixtures import MakeCheckpoint
from tests.hub_server import running_hub

from .conftest import drop_tensor, edit_header, edit_json, read_header, shards_of, write_shard
from .forms.test_fp8 import PUBLISHED
from .test_config import MAVERICK

Tensors = dict[str, torch.Tensor]

# Maverick's pattern and its number of experts, each of them small.
SMALL_MAVERICK = replace(
    MAVERICK_LIKE, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=96, dense_ffn=64
)
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
EXPERTS = ".feed_forward.experts."


def read_all(checkpoint: Path) -> Tensors:
    """Every tensor of a bf16 checkpoint."""
    tensors = {}
    for shard in shards_of(checkpoint):
        header, data = read_header(shard)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            words = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.bfloat16)
            tensors[name] = words.reshape(entry["shape"])
    return tensors


def write_all(checkpoint: Path, tensors: Tensors, shards: int) -> None:
    """Replace the weights of a checkpoint, dealt out over `shards` files one tensor at a time."""
    for old in shards_of(checkpoint):
        old.unlink()
    weight_map = {}
    for number in range(shards):
        header: dict[str, Any] = {}
        data = bytearray()
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        for key in list(tensors)[number::shards]:
            raw = tensors[key].contiguous().view(torch.uint8).numpy().tobytes()
            header[key] = {
                "dtype": DTYPES[tensors[key].dtype],
                "shape": list(tensors[key].shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
            weight_map[key] = name
        write_shard(checkpoint / name, header, bytes(data))
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def apart(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """An expert tensor [expert, in, out] as each expert's matrices [out, in], by their names."""
    before = name.partition(EXPERTS)[0] + EXPERTS
    for expert, matrix in enumerate(tensor):
        turned = matrix.T.contiguous()
        if name.endswith("gate_up_proj"):
            gate, up = turned.chunk(2)
            yield f"{before}{expert}.gate_proj.weight", gate
            yield f"{before}{expert}.up_proj.weight", up
        else:
            yield f"{before}{expert}.down_proj.weight", turned


def quantized(weight: torch.Tensor, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and the scale of each row, as compressed-tensors observes and quantizes."""
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / 448).to(scale_dtype)
    codes = (weight.float() / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, scale


def decoded(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (codes.to(torch.float32) * scale.to(torch.float32)).to(torch.bfloat16)


def write_fp8(
    plain: Path,
    directory: Path,
    *,
    scale_dtype: torch.dtype = torch.bfloat16,
    also: tuple[str, ...] = (),
    shards: int = 3,
) -> tuple[Path, Path]:
    """The FP8 form of the bf16 checkpoint `plain`, and a bf16 one of what it decodes to.

    Besides the experts, matrices whose names hold one of `also` are quantized.
    """
    # A GGUF is named after its source's directory.
    paths = directory / "fp8" / "model", directory / "bf16" / "model"
    for path in paths:
        shutil.copytree(plain, path)
    fp8: Tensors = {}
    bf16: Tensors = {}

    def quantize(name: str, weight: torch.Tensor) -> torch.Tensor:
        codes, scale = quantized(weight, scale_dtype)
        fp8[name], fp8[name + "_scale"] = codes, scale
        return decoded(codes, scale)

    for name, tensor in read_all(plain).items():
        if EXPERTS in name:
            rows = [quantize(part, weight) for part, weight in apart(name, tensor)]
            if name.endswith("gate_up_proj"):
                rows = [torch.cat(pair) for pair in zip(rows[::2], rows[1::2], strict=True)]
            bf16[name] = torch.stack([row.T for row in rows])
        elif any(part in name for part in also) and name.startswith("language_model."):
            bf16[name] = quantize(name, tensor)
        else:
            fp8[name] = bf16[name] = tensor
    write_all(paths[0], fp8, shards)
    write_all(paths[1], bf16, 2)
    edit_json(paths[0] / "config.json", lambda c: c.update(quantization_config=PUBLISHED))
    return paths


@pytest.fixture
def fp8_checkpoint(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A small one, to be damaged."""
    return write_fp8(make_checkpoint(SMALL_MAVERICK), tmp_path)[0]


def gguf_bytes(checkpoint: Path, recipe: str = DEFAULT_RECIPE) -> bytes:
    output = checkpoint.parent / "out.gguf"
    convert(checkpoint, output, force=True, recipe=recipe)
    return output.read_bytes()


def test_an_fp8_maverick_becomes_the_bytes_of_its_decoded_numbers(
    maverick_checkpoint: Path, tmp_path: Path
) -> None:
    fp8, bf16 = write_fp8(maverick_checkpoint, tmp_path)
    assert gguf_bytes(fp8, recipe="q8_0") == gguf_bytes(bf16, recipe="q8_0")


@pytest.mark.parametrize("recipe", ["bf16", "int4"])
def test_a_small_one_does_in_other_recipes(
    recipe: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    fp8, bf16 = write_fp8(make_checkpoint(SMALL_MAVERICK), tmp_path)
    assert gguf_bytes(fp8, recipe=recipe) == gguf_bytes(bf16, recipe=recipe)


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32])
def test_attention_and_shared_experts_may_be_fp8_too(
    scale_dtype: torch.dtype, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    fp8, bf16 = write_fp8(
        make_checkpoint(SMALL_MAVERICK),
        tmp_path,
        scale_dtype=scale_dtype,
        also=("self_attn.", "shared_expert.", "feed_forward.gate_proj"),
        shards=5,
    )
    assert gguf_bytes(fp8, recipe="int8") == gguf_bytes(bf16, recipe="int8")


def test_fp8_in_small_slabs_gives_the_same_bytes(
    fp8_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gguf_bytes(fp8_checkpoint, recipe="int8")
    # 36 rows of the gate projection's 96 at a time, with their scales.
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 36 * 64)
    assert gguf_bytes(fp8_checkpoint, recipe="int8") == whole


def test_scales_in_another_shard_come_from_the_hub_too(
    fp8_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dealt out over three shards, of which two are held, many a scale lies in the third."""
    name = "meta-llama/Llama-4-Small-FP8"
    with running_hub(monkeypatch, tmp_path / "home") as hub:
        monkeypatch.setattr(hub_shards, "_HEAD_BYTES", 4096)
        hub.add(name, fp8_checkpoint)
        local = snapshot_download(name, cache_dir=tmp_path / "elsewhere")
        convert(local, tmp_path / "local.gguf")
        hub.requests.clear()
        convert(name, tmp_path / "hub.gguf")
        whole = sum(path.stat().st_size for path in shards_of(fp8_checkpoint))
        # No shard is fetched twice for the sake of its scales.
        assert whole < hub.sent(r"\.safetensors") < 1.5 * whole
    assert (tmp_path / "hub.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


def test_the_experts_of_both_forms_are_one_target(
    make_checkpoint: MakeCheckpoint, fp8_checkpoint: Path
) -> None:
    fp8 = inspect_checkpoint(fp8_checkpoint)
    bf16 = inspect_checkpoint(make_checkpoint(SMALL_MAVERICK))
    assert {one.name: one.shape for one in fp8.tensors} == {
        one.name: one.shape for one in bf16.tensors
    }
    down = next(one for one in fp8.tensors if one.name == "blk.1.ffn_down_exps.weight")
    # A byte a number, and a bf16 scale for each of the 64 rows of each expert.
    assert (down.type, down.bytes) == ("F8_E4M3", 128 * (64 * 96 + 64 * 2))
    assert fp8.expert_bits_per_weight == pytest.approx(8 + 16 * (96 + 96 + 64) / (3 * 96 * 64))


def test_published_maverick_has_a_matrix_for_each_expert_and_the_same_targets() -> None:
    config = parse_config(MAVERICK)
    apart = LayerExperts(ExpertLayout.SEPARATE, ExpertLayout.SEPARATE)
    fp8 = list(rules_for(config, dict.fromkeys(range(48), apart)))
    bf16 = list(rules_for(config))
    names = [rule.name.format(layer=layer) for rule, layer in fp8]
    assert len(names) == len(set(names)) == len(bf16) + 24 * (3 * 128 - 2)
    assert "model.layers.47.feed_forward.experts.127.down_proj.weight" in names
    targets = [
        list(dict.fromkeys(to.format(layer=layer) for rule, layer in rules for to in rule.targets))
        for rules in (fp8, bf16)
    ]
    assert targets[0] == targets[1]


def test_scales_of_activations_are_left_out_and_named(fp8_checkpoint: Path) -> None:
    before = gguf_bytes(fp8_checkpoint)
    added = "language_model.model.layers.1.feed_forward.experts.0.up_proj.input_scale"
    tensors = {added: torch.ones(1)}
    shard = fp8_checkpoint / "model-00004-of-00004.safetensors"
    header = {added: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    write_shard(shard, header, tensors[added].numpy().tobytes())
    edit_json(
        fp8_checkpoint / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({added: shard.name}),
    )
    assert gguf_bytes(fp8_checkpoint) == before
    report = convert(fp8_checkpoint, dry_run=True)
    assert added in report.left_out
    assert not any(name.endswith("weight_scale") for name in report.left_out)
    assert any("F8_E4M3" in note for note in report.notes)


def expert(name: str) -> str:
    return f"language_model.model.layers.3.feed_forward.experts.127.{name}"


def test_a_missing_scale_is_named(fp8_checkpoint: Path) -> None:
    drop_tensor(fp8_checkpoint, expert("down_proj.weight_scale"))
    with pytest.raises(CheckpointError, match=r"experts\.127\.down_proj\.weight_scale is missing"):
        convert(fp8_checkpoint, dry_run=True)


def test_a_missing_expert_is_named(fp8_checkpoint: Path) -> None:
    drop_tensor(fp8_checkpoint, expert("up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"experts\.127\.up_proj\.weight is missing"):
        convert(fp8_checkpoint, dry_run=True)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"shape": [1, 64]}, r"found BF16 \[1, 64\], expected BF16 or F16 or F32 \[64, 1\]"),
        ({"dtype": "I16"}, r"found I16 \[64, 1\]"),
    ],
)
def test_scales_of_another_form_are_refused(
    changes: dict[str, Any], found: str, fp8_checkpoint: Path
) -> None:
    name = expert("down_proj.weight_scale")
    shard = next(one for one in shards_of(fp8_checkpoint) if name in read_header(one)[0])
    edit_header(shard, lambda header: header[name].update(changes))
    with pytest.raises(CheckpointError, match=f"cannot be the scales of.*{found}"):
        convert(fp8_checkpoint, dry_run=True)


def test_a_scale_of_a_weight_that_needs_none_is_refused(fp8_checkpoint: Path) -> None:
    opened = open_checkpoint(fp8_checkpoint)
    tensors = dict(opened.tensors)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    tensors[name + "_scale"] = replace(
        tensors[expert("down_proj.weight_scale")], name=name + "_scale"
    )
    with pytest.raises(CheckpointError, match=r"q_proj\.weight_scale is not part of"):
        read_text_model(replace(opened, tensors=tensors))


def test_fp8_without_its_settings_is_refused(fp8_checkpoint: Path) -> None:
    edit_json(fp8_checkpoint / "config.json", lambda config: config.pop("quantization_config"))
    with pytest.raises(CheckpointError, match=r"unsupported dtype, found F8_E4M3"):
        convert(fp8_checkpoint, dry_run=True)
    edit_json(
        fp8_checkpoint / "config.json",
        lambda config: config.update(quantization_config={"quant_method": "fp8"}),
    )
    with pytest.raises(UnsupportedError, match="quant_method 'fp8'"):
        convert(fp8_checkpoint, dry_run=True)


@pytest.mark.parametrize(
    ("ending", "value", "found"),
    [
        ("down_proj.weight", b"\x7f", "found NaN"),
        ("down_proj.weight", b"\xff", "found NaN"),
        ("down_proj.weight_scale", b"\xc0\x7f", "found a scale that is not a positive number"),
        ("down_proj.weight_scale", b"\x7f\x7f", "found NaN or infinity"),
    ],
)
def test_damage_names_its_tensor(
    ending: str, value: bytes, found: str, fp8_checkpoint: Path
) -> None:
    """The last of the scales is a number, but its products are too large for bf16."""
    name = expert(ending)
    shard = next(one for one in shards_of(fp8_checkpoint) if name in read_header(one)[0])
    header, data = read_header(shard)
    begin = header[name]["data_offsets"][0]
    write_shard(shard, header, data[:begin] + value + data[begin + len(value) :])
    with pytest.raises(DamagedTensorError, match=rf"experts\.127\.down_proj\.weight.*{found}"):
        gguf_bytes(fp8_checkpoint)


def test_decoding_agrees_with_the_expectation_itself() -> None:
    """The oracle above loses as much as FP8 does: 3 bits of fraction, half a step of 2^-4."""
    weight = torch.randn(8, 512, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    error = (decoded(*quantized(weight, torch.float32)).float() - weight.float()).abs()
    bound = weight.float().abs() * (2**-4 + 2**-8) + weight.float().abs().amax(1, True) / 448 / 2**9
    assert bool((error <= bound).all())
    assert float(np.mean(error.numpy())) > 0
