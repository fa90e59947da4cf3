"""Integers of compressed-tensors beside its own decompression: equal number by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize

from llama4_edge.convert.forms import CODES, Form, Region
from llama4_edge.convert.forms.packed import Bytewise, Packed
from llama4_edge.errors import CheckpointError, DamagedTensorError
from llama4_edge.quant.encode import f32_to_bf16
from llama4_edge.quant.types import Q8_0, TensorType

from .decoding import Stored, decoded
from .writing import compress, scheme_of

SHAPE = (48, 384)


def weights(shape: tuple[int, int] = SHAPE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = 10.0 ** torch.linspace(-2, 0, shape[0])[:, None]
    return torch.randn(shape, generator=generator) * rows * 0.5


def repacked(form: Form, parts: Mapping[str, torch.Tensor], step: int = 1 << 30) -> np.ndarray:
    """What gguf's own decoder makes of the blocks, [out, in]."""
    stored = Stored(form, SHAPE, parts)
    weight = stored.weight()
    kept = form.kept_as(weight)
    assert kept is not None
    codes = stored.data[weight.codes.name].reshape(SHAPE[0], -1)
    out = []
    for first in range(0, SHAPE[0], step):
        region = Region(0, first, min(first + step, SHAPE[0]))
        decoder = form.decoder(weight, region, stored.read)
        place = np.empty(region.count * kept.row_bytes(SHAPE[1]), np.uint8)
        lines = codes[region.first : region.last]
        decoder.repack(lines, 0, region.count, kept, place)
        out.append(place.reshape(region.count, -1))
    return gguf_numbers(np.concatenate(out), kept)


def gguf_numbers(blocks: np.ndarray, tensor_type: TensorType) -> np.ndarray:
    numbers: np.ndarray = dequantize(blocks, GGMLQuantizationType(tensor_type.ggml_id))
    return numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, 48, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_decoded_numbers_equal_the_package_s(
    bits: int, group: int | None, symmetric: bool, dtype: torch.dtype
) -> None:
    scheme = scheme_of(bits=bits, group=group, symmetric=symmetric)
    parts, theirs = compress(weights(), scheme, dtype)
    form = Packed(bits=bits, group=group, symmetric=symmetric)
    for step in (1 << 30, 13):
        ours = decoded(form, SHAPE, parts, step)
        if dtype is torch.bfloat16:
            expected = theirs.view(torch.int16).numpy().view(np.uint16)
            assert np.array_equal(f32_to_bf16(ours), expected)
        else:
            assert np.array_equal(ours.astype(theirs.numpy().dtype), theirs.numpy())


@pytest.mark.parametrize("group", [128, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_decode_as_the_package_s(group: int | None, symmetric: bool) -> None:
    scheme = scheme_of(bits=8, group=group, symmetric=symmetric, packed=False)
    parts, theirs = compress(weights(), scheme, torch.float32)
    form = Bytewise(bits=8, group=group, symmetric=symmetric)
    assert np.array_equal(decoded(form, SHAPE, parts, 13), theirs.numpy())


@pytest.mark.parametrize("step", [1 << 30, 13])
@pytest.mark.parametrize("group", [32, 64, 128, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_kept_blocks_hold_the_very_numbers(bits: int, group: int | None, step: int) -> None:
    parts, _ = compress(weights(), scheme_of(bits=bits, group=group), torch.bfloat16)
    form = Packed(bits=bits, group=group, symmetric=True)
    assert np.array_equal(repacked(form, parts, step), decoded(form, SHAPE, parts))


def test_kept_bytes_hold_the_very_numbers() -> None:
    parts, _ = compress(weights(), scheme_of(bits=8, group=None, packed=False), torch.bfloat16)
    form = Bytewise(bits=8, group=None, symmetric=True)
    assert form.kept_as(Stored(form, SHAPE, parts).weight()) is Q8_0
    assert np.array_equal(repacked(form, parts), decoded(form, SHAPE, parts))


def test_an_asymmetric_group_is_kept_where_f16_holds_its_minimum_and_counted_where_not() -> None:
    """A minimum is a zero point of 4 bits times 8 bits of scale; f16 has 11."""
    parts, _ = compress(weights(), scheme_of(bits=4, group=64, symmetric=False), torch.bfloat16)
    form = Packed(bits=4, group=64, symmetric=False)
    ours, theirs = repacked(form, parts), decoded(form, SHAPE, parts)
    groups = [one.reshape(SHAPE[0], -1, 64) for one in (ours, theirs)]
    wrong = (groups[0] != groups[1]).any(2)
    stored = Stored(form, SHAPE, parts)
    rounded = form.decoder(stored.weight(), Region(0, 0, SHAPE[0]), stored.read).rounded()
    assert 0 < wrong.sum() == rounded.count < wrong.size == rounded.groups
    # Half a step of f16's 11 bits, of a minimum of up to 15 scales.
    scales = parts["scales"].float().numpy()[:, :, None]
    assert (np.abs(groups[0] - groups[1]) <= 15 * 2.0**-11 * scales).all()


def test_scales_beyond_f16_are_rounded_to_its_nearest_and_counted() -> None:
    parts, _ = compress(weights(), scheme_of(bits=4, group=128), torch.bfloat16)
    scales = parts["scales"].clone()
    scales[3, 1] = 1.2578125 * 2.0**-20  # subnormal in f16, with four bits
    changed = {**parts, "scales": scales}
    form = Packed(bits=4, group=128, symmetric=True)
    ours, theirs = repacked(form, changed), decoded(form, SHAPE, changed)
    inside = np.zeros(SHAPE, bool)
    inside[3, 128:256] = True
    assert np.array_equal(ours[~inside], theirs[~inside])
    assert (np.abs(ours - theirs)[inside] <= 8 * 2.0**-25).all()
    stored = Stored(form, SHAPE, changed)
    decoder = form.decoder(stored.weight(), Region(0, 0, SHAPE[0]), stored.read)
    assert decoder.rounded().count == 1
    scales[3, 1] = 1e5
    with pytest.raises(ValueError, match="too large for Q4_0"):
        repacked(form, {**parts, "scales": scales})


def test_activation_order_takes_each_number_s_own_group() -> None:
    parts, _ = compress(weights(), scheme_of(bits=4, group=128), torch.float32)
    form = Packed(bits=4, group=128, symmetric=True)
    plain = decoded(form, SHAPE, parts)
    order = torch.randperm(384, generator=torch.Generator().manual_seed(1)).int() % 3
    ordered = {**parts, "order of groups": order}
    scales, groups = parts["scales"].numpy(), order.numpy()
    codes = plain / np.repeat(scales, 128, axis=1)
    expected = np.round(codes).astype(np.float32) * scales[:, groups]
    assert np.array_equal(decoded(form, SHAPE, ordered, 13), expected)
    stored = Stored(form, SHAPE, ordered)
    assert not form.in_order(stored.weight(), stored.read)
    for same in (torch.arange(384).int() // 128, torch.full((384,), -1, dtype=torch.int32)):
        stored = Stored(form, SHAPE, {**parts, "order of groups": same})
        assert form.in_order(stored.weight(), stored.read)
        assert np.array_equal(decoded(form, SHAPE, stored.parts), plain)
    with pytest.raises(DamagedTensorError, match="group 3 for number 5"):
        wrong = torch.zeros(384, dtype=torch.int32)
        wrong[5] = 3
        decoded(form, SHAPE, {**parts, "order of groups": wrong})


@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "name"),
    [
        (4, 128, True, "Q4_0"),
        (4, None, True, "Q4_0"),
        (4, 128, False, "Q4_1"),
        (8, 32, True, "Q8_0"),
        (8, 128, False, None),
        (4, 16, True, None),
        (4, 48, True, None),
    ],
)
def test_a_type_keeps_groups_of_whole_blocks(
    bits: int, group: int | None, symmetric: bool, name: str | None
) -> None:
    scheme = scheme_of(bits=bits, group=group, symmetric=symmetric)
    parts, _ = compress(weights(), scheme, torch.bfloat16)
    form = Packed(bits=bits, group=group, symmetric=symmetric)
    kept = form.kept_as(Stored(form, SHAPE, parts).weight())
    assert (None if kept is None else kept.name) == name


CHANGES: list[tuple[str, Any, str]] = [
    ("scales", lambda one: one[:, :2], r"cannot be the scales of.*found BF16 \[48, 2\].*\[48, 3\]"),
    ("scales", lambda one: one.to(torch.float64), r"found F64 \[48, 3\]"),
    (CODES, lambda one: one[:, :40], r"cannot be the codes of.*found I32 \[48, 40\]"),
    ("shape", lambda one: one[:1], r"cannot be the shape of.*found I64 \[1\]"),
    ("zero points", lambda one: torch.zeros(6, 3).int(), r"zero_point is not expected"),
    ("shape", lambda one: one.flip(0), r"\[384, 48\] where config.json means \[48, 384\]"),
    ("scales", lambda one: one * float("nan"), r"not a positive number: nan in row 0"),
    ("scales", lambda one: one * 0, r"not a positive number: 0.0 in row 0"),
]


@pytest.mark.parametrize(("part", "change", "said"), CHANGES)
def test_parts_that_do_not_fit_are_named(part: str, change: Any, said: str) -> None:
    parts, _ = compress(weights(), scheme_of(bits=4, group=128), torch.bfloat16)
    changed = {**parts, part: change(parts.get(part))}
    with pytest.raises((CheckpointError, DamagedTensorError), match=said):
        decoded(Packed(bits=4, group=128, symmetric=True), SHAPE, changed)


@pytest.mark.parametrize("missing", ["scales", "shape", "zero points"])
def test_a_missing_part_is_named(missing: str) -> None:
    scheme = scheme_of(bits=4, group=128, symmetric=False)
    parts, _ = compress(weights(), scheme, torch.bfloat16)
    form = Packed(bits=4, group=128, symmetric=False)
    left = {part: one for part, one in parts.items() if part != missing}
    suffix = form.suffixes[missing]
    with pytest.raises(CheckpointError, match=rf"up_proj\.weight{suffix} is missing"):
        decoded(form, SHAPE, left)
