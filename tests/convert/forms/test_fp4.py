"""NVFP4, MXFP4 and MXFP8 against compressed-tensors and ModelOpt: every number, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from llama4_edge.convert.forms import Form
from llama4_edge.convert.forms.fp4 import (
    FusedMXFP4,
    FusedMXFP8,
    FusedNVFP4,
    FusedWideNVFP4,
    LinearMXFP4,
    LinearMXFP8,
    LinearNVFP4,
    LinearWideNVFP4,
    PackedMXFP4,
    PackedNVFP4,
)
from llama4_edge.errors import CheckpointError, DamagedTensorError
from tests.writers import writer

from .decoding import decoded

ROWS, COLUMNS = 48, 128
Parts = Mapping[str, torch.Tensor]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes(*shape: int, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def e4m3(*shape: int, seed: int = 3) -> torch.Tensor:
    """Scales from 0 to the largest."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 0x7F, shape, dtype=torch.uint8, generator=generator)
    return raw.view(torch.float8_e4m3fn)


def unpacked(packed: torch.Tensor, axis: int, *, one_zero: bool = False) -> torch.Tensor:
    """What two codes in a byte stand for, the low one first along `axis`.

    With `one_zero` as ModelOpt's NVFP4 has it: without a sign.
    """
    both = torch.stack((packed & 15, packed >> 4), dim=axis + 1)
    numbers = E2M1[both.flatten(axis, axis + 1).long()]
    return numbers + 0.0 if one_zero else numbers


def spread(scales: torch.Tensor, group: int, axis: int) -> torch.Tensor:
    return scales.float().repeat_interleave(group, dim=axis)


def equal(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    """To the bit."""
    return np.array_equal(ours.view(np.uint32), theirs.float().contiguous().numpy().view(np.uint32))


def test_nvfp4_of_compressed_tensors_is_divided_by_its_global_scale() -> None:
    quantization = writer("compressed_tensors.quantization")
    dequantize = writer("compressed_tensors.quantization.lifecycle.forward").dequantize
    args = quantization.QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True
    )
    packed, scales = codes(ROWS, COLUMNS // 2), e4m3(ROWS, COLUMNS // 16)
    outer = torch.tensor([1234.567])
    theirs = dequantize(
        unpacked(packed, 1), scales.float(), args=args, global_scale=outer, dtype=torch.float32
    )
    parts = {"codes": packed, "scales": scales, "outer scale": outer}
    for step in (7, ROWS):
        assert equal(decoded(PackedNVFP4(), (ROWS, COLUMNS), parts, step), theirs)


def test_nvfp4_of_modelopt_is_multiplied_by_its_second_scale() -> None:
    modelopt = writer("modelopt.torch.quantization.qtensor.nvfp4_tensor")
    weight = random(ROWS, COLUMNS)
    weight[3] = 0
    stored, scales, outer = modelopt.NVFP4QTensor.quantize(weight, 16)
    theirs = stored.dequantize(
        dtype=torch.float32, scale=scales, double_scale=outer, block_sizes={-1: 16}
    )
    parts = {"codes": stored._quantized_data, "scales": scales, "outer scale": outer}
    for step in (7, ROWS):
        assert equal(decoded(LinearNVFP4(), (ROWS, COLUMNS), parts, step), theirs)


@pytest.mark.parametrize("outer", [torch.tensor(0.003), torch.tensor([0.003, 0.7, 1e-9])])
def test_fused_nvfp4_is_packed_along_the_inputs_of_each_output(outer: torch.Tensor) -> None:
    experts, inputs, outputs = 3, 64, 96
    packed = codes(experts, inputs // 2, outputs)
    scales = e4m3(experts, inputs // 16, outputs)
    each = (spread(scales, 16, 1) * outer.reshape(-1, 1, 1)) * unpacked(packed, 1, one_zero=True)
    parts = {"codes": packed, "scales": scales, "outer scale": outer}
    for step in (10, outputs):
        ours = decoded(FusedNVFP4(), (experts, inputs, outputs), parts, step)
        assert equal(ours, each.transpose(1, 2))


def test_mxfp4_is_what_both_packages_write() -> None:
    decompress_mx_scale = writer("compressed_tensors.compressors.mx_utils").decompress_mx_scale
    modelopt = writer("modelopt.torch.quantization.qtensor.mxfp4_tensor")
    weight = random(ROWS, COLUMNS)
    stored, scales = modelopt.MXFP4QTensor.quantize(weight, 32)
    theirs = stored.dequantize(dtype=torch.float32, scale=scales, block_sizes={-1: 32})
    parts = {"codes": stored._quantized_data, "scales": scales.reshape(ROWS, -1)}
    assert equal(decoded(LinearMXFP4(), (ROWS, COLUMNS), parts, 7), theirs)

    exponents = torch.arange(60, 60 + ROWS * 4, dtype=torch.uint8).reshape(ROWS, 4)
    packed = codes(ROWS, COLUMNS // 2)
    theirs = unpacked(packed, 1) * spread(decompress_mx_scale(exponents), 32, 1)
    parts = {"codes": packed, "scales": exponents}
    assert equal(decoded(PackedMXFP4(), (ROWS, COLUMNS), parts), theirs)


def test_mxfp8_is_what_modelopt_writes() -> None:
    modelopt = writer("modelopt.torch.quantization.qtensor.mxfp8_tensor")
    stored, scales = modelopt.MXFP8QTensor.quantize(random(ROWS, COLUMNS))
    theirs = stored.dequantize(dtype=torch.float32, scale=scales)
    parts = {"codes": stored._quantized_data, "scales": scales}
    assert equal(decoded(LinearMXFP8(), (ROWS, COLUMNS), parts, 7), theirs)


@pytest.mark.parametrize("step", [10, 96])
@pytest.mark.parametrize("form", [FusedMXFP4(), FusedMXFP8(), FusedWideNVFP4()], ids=type)
def test_groups_of_fused_experts_may_run_along_the_outputs(form: Any, step: int) -> None:
    """As ModelOpt has them where it does not transpose experts before it quantizes them."""
    experts, inputs, outputs = 2, 64, 96
    parts: dict[str, torch.Tensor] = {}
    if isinstance(form, FusedMXFP8):
        raw = codes(experts, inputs, outputs)
        raw[(raw & 0x7F) == 0x7F] = 0
        parts["codes"] = raw.view(torch.float8_e4m3fn)
        numbers = parts["codes"].float()
    else:
        parts["codes"] = codes(experts, inputs, outputs // 2)
        numbers = unpacked(parts["codes"], 2, one_zero=isinstance(form, FusedWideNVFP4))
    if isinstance(form, FusedWideNVFP4):
        parts |= {"scales": e4m3(experts, inputs, outputs // 32), "outer scale": torch.tensor(0.3)}
        scales = parts["scales"].float() * 0.3
    else:
        parts["scales"] = codes(experts, inputs, outputs // 32) % 200
        scales = torch.exp2(parts["scales"].double() - 127).float()
    theirs = (numbers * spread(scales, 32, 2)).transpose(1, 2)
    assert equal(decoded(form, (experts, inputs, outputs), parts, step), theirs)


def test_wide_groups_of_a_linear_layer_have_32_numbers() -> None:
    parts = {
        "codes": codes(ROWS, COLUMNS // 2),
        "scales": e4m3(ROWS, COLUMNS // 32),
        "outer scale": torch.tensor(0.3),
    }
    scales = parts["scales"].float() * 0.3
    theirs = unpacked(parts["codes"], 1, one_zero=True) * spread(scales, 32, 1)
    assert equal(decoded(LinearWideNVFP4(), (ROWS, COLUMNS), parts), theirs)


def nvfp4(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = {
        "codes": codes(ROWS, COLUMNS // 2),
        "scales": e4m3(ROWS, COLUMNS // 16),
        "outer scale": torch.tensor([2.0]),
    }
    return {**parts, **{name.replace("_", " "): value for name, value in changes.items()}}


def test_scales_whose_quotient_is_infinite_give_what_is_no_number_without_a_warning() -> None:
    """Zero times infinity is NaN, which is refused where it is encoded."""
    parts = nvfp4(outer_scale=torch.tensor([1e-38]), scales=torch.full((ROWS, COLUMNS // 16), 448))
    parts["scales"] = parts["scales"].to(torch.float8_e4m3fn)
    parts["codes"] = torch.zeros_like(parts["codes"])
    assert np.isnan(decoded(PackedNVFP4(), (ROWS, COLUMNS), parts)).all()


@pytest.mark.parametrize("outer", [0.0, -1.0, float("nan"), float("inf")])
def test_an_outer_scale_that_is_no_positive_number_is_refused(outer: float) -> None:
    parts = nvfp4(outer_scale=torch.tensor([outer]))
    with pytest.raises(DamagedTensorError, match=r"weight_global_scale .*not a positive number"):
        decoded(PackedNVFP4(), (ROWS, COLUMNS), parts)


@pytest.mark.parametrize("code", [0x7F, 0xFF, 0x81])
def test_a_groups_scale_that_is_nan_or_negative_is_refused_by_row(code: int) -> None:
    scales = e4m3(ROWS, COLUMNS // 16)
    scales.view(torch.uint8)[40, 5] = code
    with pytest.raises(DamagedTensorError, match=r"weight_scale .*not a positive .* in row 40"):
        decoded(PackedNVFP4(), (ROWS, COLUMNS), nvfp4(scales=scales), 7)


def test_a_scale_that_is_no_power_of_two_is_refused() -> None:
    exponents = torch.full((ROWS, 4), 127, dtype=torch.uint8)
    exponents[9, 1] = 255
    parts = {"codes": codes(ROWS, COLUMNS // 2), "scales": exponents}
    with pytest.raises(DamagedTensorError, match="in row 9"):
        decoded(PackedMXFP4(), (ROWS, COLUMNS), parts)


def test_a_group_whose_scale_is_zero_is_zero() -> None:
    """It is what ModelOpt wrote for a group of tiny numbers."""
    scales = e4m3(ROWS, COLUMNS // 16)
    scales.view(torch.uint8)[40, 5] = 0
    ours = decoded(PackedNVFP4(), (ROWS, COLUMNS), nvfp4(scales=scales))
    assert not ours[40, 80:96].any()
    assert ours[40, 64:80].any()


MISSHAPEN: dict[str, tuple[Form, Parts]] = {
    "too few groups": (PackedNVFP4(), nvfp4(scales=e4m3(ROWS, COLUMNS // 32))),
    "an outer scale for each row": (PackedNVFP4(), nvfp4(outer_scale=torch.ones(ROWS))),
    "scales in bf16": (PackedNVFP4(), nvfp4(scales=torch.ones(ROWS, 8, dtype=torch.bfloat16))),
    "codes of another matrix": (PackedNVFP4(), nvfp4(codes=codes(ROWS, COLUMNS))),
}


@pytest.mark.parametrize("kind", list(MISSHAPEN))
def test_parts_that_do_not_fit_are_refused(kind: str) -> None:
    form, parts = MISSHAPEN[kind]
    with pytest.raises(CheckpointError, match=r"cannot be the .* of"):
        decoded(form, (ROWS, COLUMNS), parts)
