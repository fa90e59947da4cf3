"""A checkpoint whose experts compressed-tensors quantized, as LLM Compressor saves it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.convert.conftest import edit_json, shards_of

from .writing import PARTS, compress, numbers_in_order

IGNORED = ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model.*"]
NAMES = {part: name for name, part in PARTS.items() if name != "weight"}
TARGETS = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """At `path`; `decompressed` is the same in bf16, as the package decompresses it.

    `exact` has the numbers of the GGUF tensors of the quantized weights in float32, `text_bytes`
    what the text model takes in `path`.
    """

    path: Path
    decompressed: Path
    exact: dict[str, np.ndarray]
    text_bytes: int


def quantize_experts(
    plain: Path,
    directory: Path,
    scheme: dict[str, Any],
    *,
    second: tuple[str, dict[str, Any]] | None = None,
    leave: str | None = None,
    order: bool = False,
) -> QuantizedCheckpoint:
    """Quantize routed and shared experts; the rest stays bf16.

    Args:
        plain: the checkpoint.
        directory: where the new ones go, under the plain one's name.
        scheme: of the weights.
        second: a pattern of the names that have another scheme.
        leave: a pattern of the names that stay bf16.
        order: number groups at random, as with activation order.
    """
    paths = [directory / "quantized" / plain.name, directory / "decompressed" / plain.name]
    for path in paths:
        shutil.copytree(plain, path, ignore=shutil.ignore_patterns("*.safetensors*"))
    stored: dict[str, torch.Tensor] = {}
    bf16: dict[str, torch.Tensor] = {}
    found: dict[str, dict[int, np.ndarray]] = {}
    for name, weight in _linear(plain):
        stays = ".feed_forward." not in name or not re.search(r"experts?\.", name)
        if stays or (leave is not None and re.search(leave, name)):
            stored[name] = bf16[name] = weight
            continue
        chosen = second[1] if second is not None and re.search(second[0], name) else scheme
        parts, _ = compress(weight, chosen, torch.bfloat16)
        numbers = numbers_in_order(parts, chosen, weight.shape)
        if order:
            size = chosen["weights"]["group_size"]
            groups = weight.shape[1] // size
            shuffled = torch.randperm(weight.shape[1]) // size
            parts["order of groups"] = shuffled.int()
            numbers = numbers_in_order(parts, chosen, weight.shape)
            assert groups > 1
        base = name.removesuffix("weight")
        called = {**NAMES, "order of groups": "weight_g_idx"}
        if chosen["format"] == "int-quantized":
            called["codes"] = "weight"
        stored |= {base + called[part]: tensor for part, tensor in parts.items()}
        bf16[name] = numbers.to(torch.bfloat16)
        layer, expert, kind = _place(name)
        found.setdefault(f"blk.{layer}.{kind}.weight", {})[expert] = numbers.numpy()
    exact = {
        target: np.stack([one[expert] for expert in sorted(one)]) if "_exps" in target else one[0]
        for target, one in found.items()
    }
    for path, tensors in zip(paths, (stored, bf16), strict=True):
        _save(path, tensors)
    groups_of = {"group_0": scheme} | ({"group_1": second[1]} if second is not None else {})
    settings = {
        "quant_method": "compressed-tensors", "quantization_status": "compressed",
        "format": scheme["format"], "ignore": IGNORED, "config_groups": groups_of,
        "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {},
    }  # fmt: skip
    edit_json(paths[0] / "config.json", lambda one: one.update(quantization_config=settings))
    total = sum(tensor.nbytes for tensor in stored.values())
    return QuantizedCheckpoint(paths[0], paths[1], exact, total)


def _linear(plain: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors, of experts each matrix by itself, [out, in]."""
    for shard in shards_of(plain):
        for name, tensor in load_file(shard).items():
            before, found, kind = name.partition(".experts.")
            if not found:
                yield name, tensor
                continue
            for expert, matrix in enumerate(tensor):
                both = kind == "gate_up_proj"
                halves = matrix.T.chunk(2) if both else (matrix.T,)
                for part, half in zip(
                    ("gate_proj", "up_proj") if both else (kind,), halves, strict=True
                ):
                    yield f"{before}.experts.{expert}.{part}.weight", half.contiguous()


def _place(name: str) -> tuple[int, int, str]:
    match = re.search(r"layers\.(\d+)\.feed_forward\.(?:experts\.(\d+)|shared_expert)\.(\w+)", name)
    assert match is not None, name
    kind = TARGETS[match[3]] + ("_shexp" if match[2] is None else "_exps")
    return int(match[1]), int(match[2] or 0), kind


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Dealt out over three shards, so that many a scale lies in another than its codes."""
    names = list(tensors)
    weight_map = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        part = {name: tensors[name].contiguous() for name in names[number::3]}
        save_file(part, path / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (path / "model.safetensors.index.json").write_text("{}")
    edit_json(
        path / "model.safetensors.index.json", lambda index: index.update(weight_map=weight_map)
    )
