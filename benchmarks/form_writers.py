"""Checkpoints in the forms that repositories have, with random codes and valid scales.

Promises names, shapes, dtypes and settings as the packages have them; `FORMS` has one of each kind.
The numbers are of no use. Written piece by piece, so that a slice may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from demo.checkpoint import Geometry, write_checkpoint
from llama4_edge.convert.forms.bitsandbytes import NF4
from llama4_edge.convert.shard_header import DTYPE_BYTES

Array = np.ndarray[Any, Any]
Fill = Callable[[np.random.Generator, int], Array]  # so many items

_PIECE = 16 << 20  # items


@dataclass(frozen=True)
class Part:
    """A tensor to be written: what its name has after the weight's, and what fills it."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    fill: Fill

    def pieces(self, rng: np.random.Generator) -> Iterator[bytes]:
        """Its data."""
        for begin in range(0, total := prod(self.shape), _PIECE):
            yield self.fill(rng, min(_PIECE, total - begin)).tobytes()


@dataclass(frozen=True)
class Form:
    """A form: the parts of a matrix of this shape, and the settings in config.json.

    A matrix is [out, in] of one expert, or where `fused` [expert, in, out]. One without `parts` has
    all tensors as numbers of `dtype`. `recipes` are those to convert it with.
    """

    parts: Callable[[tuple[int, ...]], list[Part]] | None
    settings: dict[str, Any] | None = None
    fused: bool = False
    dtype: str = "BF16"
    recipes: tuple[str, ...] = ("int4", "q8_0")


def _bits(dtype: type[np.generic], keep: int = -1, put: int = 0) -> Fill:
    """Random bits, of which some are kept and some are set."""

    def fill(rng: np.random.Generator, count: int) -> Array:
        size = np.dtype(dtype).itemsize
        items: Array = np.frombuffer(rng.bytes(count * size), dtype)
        if keep == -1:
            return items
        return np.asarray((items & dtype(keep)) | dtype(put), dtype)

    return fill


def _uniform(low: float, high: float) -> Fill:
    return lambda rng, count: rng.uniform(low, high, count).astype(np.float32)


def _fixed(data: Array) -> Fill:
    return lambda rng, count: data


_CODES = _bits(np.uint8)
_E4M3 = _bits(np.uint8, 0xF7)  # no NaN
_E4M3_SCALES = _bits(np.uint8, 0x0F, 0x30)  # 0.5 to 1.9
_E8M0_SCALES = _bits(np.uint8, 0x03, 0x74)  # 2^-11 to 2^-8
_BF16_SCALES = _bits(np.uint16, 0x007F, 0x3A80)  # 2^-10 to 2^-9
# 2^-7 to 2^-3
_FLOATS = {
    "BF16": _bits(np.uint16, 0x81FF, 0x3C00),
    "F16": _bits(np.uint16, 0x8FFF, 0x2000),
    "F32": _bits(np.uint32, 0x81FFFFFF, 0x3C000000),
}


def _plain(shape: tuple[int, ...]) -> list[Part]:
    return [Part(".weight", "BF16", shape, _FLOATS["BF16"])]


def _packed(bits: int, group: int | None) -> Callable[[tuple[int, ...]], list[Part]]:
    def parts(shape: tuple[int, ...]) -> list[Part]:
        rows, length = shape
        groups = 1 if group is None else length // group
        return [
            Part(".weight_packed", "I32", (rows, length * bits // 32), _bits(np.int32)),
            Part(".weight_scale", "BF16", (rows, groups), _BF16_SCALES),
            Part(".weight_shape", "I64", (2,), _fixed(np.array(shape))),
        ]

    return parts


def _channel_fp8(shape: tuple[int, ...]) -> list[Part]:
    return [
        Part(".weight", "F8_E4M3", shape, _E4M3),
        Part(".weight_scale", "BF16", (shape[0], 1), _BF16_SCALES),
    ]


def _nvfp4(shape: tuple[int, ...]) -> list[Part]:
    rows, length = shape
    return [
        Part(".weight_packed", "U8", (rows, length // 2), _CODES),
        Part(".weight_scale", "F8_E4M3", (rows, length // 16), _E4M3_SCALES),
        Part(".weight_global_scale", "F32", (1,), _uniform(100, 200)),
    ]


def _mxfp4(shape: tuple[int, ...]) -> list[Part]:
    rows, length = shape
    return [
        Part(".weight_packed", "U8", (rows, length // 2), _CODES),
        Part(".weight_scale", "U8", (rows, length // 32), _E8M0_SCALES),
    ]


def _nested_nf4(shape: tuple[int, ...]) -> list[Part]:
    blocks = prod(shape) // 64
    state = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape),
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05,
    }  # fmt: skip
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
    table = np.linspace(-1, 1, 256, dtype=np.float32)
    return [
        Part(".weight", "U8", (prod(shape) // 2, 1), _CODES),
        Part(".weight.absmax", "U8", (blocks,), _CODES),
        Part(".weight.quant_map", "F32", (16,), _fixed(NF4.table)),
        Part(".weight.nested_absmax", "F32", (-(-blocks // 256),), _uniform(0.01, 0.04)),
        Part(".weight.nested_quant_map", "F32", (256,), _fixed(table)),
        Part(".weight.quant_state.bitsandbytes__nf4", "U8", raw.shape, _fixed(raw)),
    ]


def _fused_fp8(shape: tuple[int, ...]) -> list[Part]:
    return [
        Part("", "F8_E4M3", shape, _E4M3),
        Part("_weight_scale", "F32", (), _uniform(1e-3, 2e-3)),
    ]


def _fused_nvfp4(shape: tuple[int, ...]) -> list[Part]:
    experts, length, outputs = shape
    return [
        Part("", "U8", (experts, length // 2, outputs), _CODES),
        Part("_weight_scale", "F8_E4M3", (experts, length // 16, outputs), _E4M3_SCALES),
        Part("_weight_scale_2", "F32", (), _uniform(5e-3, 1e-2)),
    ]


def _compressed(layout: str, **weights: object) -> dict[str, Any]:
    group = {"symmetric": True, "dynamic": False, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ["re:.*self_attn.*", "re:.*lm_head", "re:.*router"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": group}},
    }


def _modelopt(algorithm: str) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm}


_KEPT = ("keep", "int4", "q8_0")
FORMS: dict[str, Form] = {
    "bf16": Form(None),
    "f16": Form(None, dtype="F16"),
    "f32": Form(None, dtype="F32"),
    "bf16-one-by-one": Form(_plain),
    "w4a16": Form(
        _packed(4, 128),
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=128),
        recipes=_KEPT,
    ),
    "w8a16": Form(
        _packed(8, None),
        _compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
        recipes=_KEPT,
    ),
    "fp8": Form(
        _channel_fp8,
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    ),
    "nvfp4": Form(
        _nvfp4,
        _compressed(
            "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16
        ),
    ),
    "mxfp4": Form(
        _mxfp4,
        _compressed(
            "mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32
        ),
    ),
    "nf4": Form(
        _nested_nf4,
        {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        },
    ),
    "modelopt-fp8": Form(_fused_fp8, _modelopt("FP8"), fused=True),
    "modelopt-nvfp4": Form(_fused_nvfp4, _modelopt("NVFP4"), fused=True),
}  # fmt: skip


def write_form(checkpoint: Path, name: str, geometry: Geometry, tokenizer: Path | None) -> None:
    """Write a checkpoint into the directory `checkpoint`, its experts in the form called `name`.

    What is not of an expert is bf16, but of plain f16 and f32.
    """
    form = FORMS[name]
    write_checkpoint(checkpoint, geometry, tokenizer=tokenizer, holes=True)
    rng = np.random.default_rng(0)
    for shard in sorted(checkpoint.glob("*.safetensors")):
        _rewrite(shard, form, rng)
    (checkpoint / "model.safetensors.index.json").unlink(missing_ok=True)
    if form.settings is not None:
        config = json.loads((checkpoint / "config.json").read_text())
        config["quantization_config"] = form.settings
        (checkpoint / "config.json").write_text(json.dumps(config))


def _rewrite(shard: Path, form: Form, rng: np.random.Generator) -> None:
    """Give a shard's tensors random numbers, and the experts' the form's parts."""
    with shard.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    tensors: list[tuple[str, Part]] = []
    for name, entry in header.items():
        shape = tuple(entry["shape"])
        if form.parts is None or ".experts." not in name:
            tensors.append((name, Part("", form.dtype, shape, _FLOATS[form.dtype])))
            continue
        for called, matrix in [(name, shape)] if form.fused else _apart(name, shape):
            tensors += [(called + part.suffix, part) for part in form.parts(matrix)]
    entries: dict[str, Any] = {}
    end = 0
    for name, part in tensors:
        begin, end = end, end + prod(part.shape) * DTYPE_BYTES[part.dtype]
        entries[name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [begin, end]}
    raw = json.dumps(entries).encode()
    with shard.open("wb") as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        for _, part in tensors:
            out.writelines(part.pieces(rng))


def _apart(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each expert's matrices [out, in] by what stands before their parts' suffixes."""
    before, _, kind = name.partition(".experts.")
    count, length, outputs = shape
    kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    for expert in range(count):
        for one in kinds:
            yield f"{before}.experts.{expert}.{one}", (outputs // len(kinds), length)
