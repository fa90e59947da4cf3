"""FP8: an E4M3 code for each number, and scales in floats.

A number is its code's value times a scale, which is one for each output channel, for the whole
matrix or for each block of 128 by 128. compressed-tensors calls it ``float-quantized`` (Meta's
Maverick in FP8 has a scale for each channel, and each expert's matrices apart), transformers
``fbgemm_fp8`` and ``fp8``, where the scale of a block is named an inverse. ModelOpt has fused
experts, too, with a scale for all or for each.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...quant.encode import Floats, decode_codes
from ...untrusted import shown
from .form import (
    CODES,
    Block,
    Decoder,
    Form,
    ReadPart,
    Region,
    Weight,
    expect,
    mismatches,
    scales_of,
)

_MAX_BLOCK = 1 << 16
_BLOCK = re.compile(r"[0-9]{1,6}x[0-9]{1,6}")


@dataclass(frozen=True)
class _FP8(Form):
    """E4M3 codes in the shape of the numbers."""

    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        CODES: ("F8_E4M3",),
        "scales": ("BF16", "F16", "F32"),
    }
    label = "F8_E4M3"

    def check(self, weight: Weight) -> None:
        """Scales of a shape that the form has."""
        expect(weight, CODES, weight.shape)
        expect(weight, "scales", *self.scale_shapes(weight))

    @abstractmethod
    def scale_shapes(self, weight: Weight) -> list[tuple[int, ...]]:
        """The shapes that the scales may have."""

    def decoder(self, weight: Weight, region: Region, read: ReadPart) -> Decoder:
        """Read the scales of the region's lines: one for all, for its expert, or for each."""
        part = weight.parts["scales"]
        lines, experts = weight.lines, weight.shape[0] if weight.fused else 1
        if part.parameters == experts * lines:
            first, count = region.expert * lines + region.first, region.count
        else:
            first, count = region.expert if part.parameters > 1 else 0, 1
        scales = scales_of(part, read(part, first, count), first)
        return _Blocks(scales[:, np.newaxis], (region.count // count, weight.length), 0)


class ChannelFP8(_FP8):
    """A scale for each line."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_scale"}
    title = "FP8 (F8_E4M3) with a scale for each row"

    def scale_shapes(self, weight: Weight) -> list[tuple[int, ...]]:
        """One for each line."""
        return [(weight.shape[0], 1, weight.lines) if weight.fused else (weight.lines, 1)]


class TensorFP8(_FP8):
    """A scale for the whole of a linear layer."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_scale"}
    title = "FP8 (F8_E4M3) with a scale for each matrix"
    fused = False

    def scale_shapes(self, weight: Weight) -> list[tuple[int, ...]]:
        """One."""
        return [(), (1,)]


class LinearFP8(_FP8):
    """ModelOpt's FP8 of a linear layer."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_scale"}
    title = "FP8 (F8_E4M3) of ModelOpt"
    fused = False

    def scale_shapes(self, weight: Weight) -> list[tuple[int, ...]]:
        """One for all, or for each row."""
        return [(), (1,), (weight.lines,), (weight.lines, 1)]


class FusedFP8(_FP8):
    """ModelOpt's FP8 of fused experts: [expert, in, out]."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_weight_scale"}
    title = LinearFP8.title
    fused = True

    def scale_shapes(self, weight: Weight) -> list[tuple[int, ...]]:
        """One for all, for each expert, or for each output of each."""
        experts, lines = weight.shape[0], weight.lines
        each = [(experts,), (experts, 1), (experts, 1, 1)]
        return [(), (1,), *each, (experts, lines), (experts, 1, lines)]


@dataclass(frozen=True)
class BlockFP8(_FP8):
    """A scale for each block of `rows` by `columns`, of a linear layer."""

    rows: int
    columns: int

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_scale"}
    fused = False

    @property
    def title(self) -> str:
        """With the size of a block."""
        return f"FP8 (F8_E4M3) with a scale for each {self.rows} x {self.columns}"

    def scale_shapes(self, weight: Weight) -> list[tuple[int, ...]]:
        """The last blocks of a row and of a column may be cut short."""
        return [(-(-weight.lines // self.rows), -(-weight.length // self.columns))]

    def decoder(self, weight: Weight, region: Region, read: ReadPart) -> Decoder:
        """Read the scales of the blocks that the region's lines are in."""
        part = weight.parts["scales"]
        across = part.shape[1]
        first, last = region.first // self.rows, -(-region.last // self.rows)
        items = read(part, first * across, (last - first) * across)
        blocks = scales_of(part, items, first * across).reshape(last - first, across)
        return _Blocks(blocks, (self.rows, self.columns), region.first % self.rows)


class InverseTensorFP8(TensorFP8):
    """transformers' ``fp8`` without blocks."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_scale_inv"}


class InverseBlockFP8(BlockFP8):
    """transformers' ``fp8``, which multiplies by what it names the scale's inverse."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_scale_inv"}


@dataclass(frozen=True)
class _Blocks(Decoder):
    """A scale for each `block` of lines by numbers, `first` lines before the region's included."""

    scales: Floats
    block: tuple[int, int]
    first: int

    def decode(self, codes: Block, begin: int, end: int) -> Floats:
        lines = self.block[0]
        first, last = self.first + begin, self.first + end
        scales = self.scales[first // lines : -(-last // lines)]
        return decode_codes(codes, VALUES, scales, self.block, first % lines)


def float_quantized(weights: Mapping[str, Any]) -> tuple[Form | None, list[str]]:
    """The form of a group of compressed-tensors' ``float-quantized`` weights, and what fits none.

    A field that is absent is null.
    """
    strategy, block = weights.get("strategy"), weights.get("block_structure")
    expected = {
        "num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "group_size": None,
        "actorder": None, "block_structure": None,
    }  # fmt: skip
    sizes = block_sizes(block)
    if strategy == "block" and sizes is not None:
        del expected["block_structure"]
    elif strategy not in ("channel", "tensor"):
        expected["strategy"] = "channel"
    faults = mismatches(weights, expected)
    if faults:
        return None, faults
    if sizes is not None:
        return BlockFP8(*sizes), []
    return (ChannelFP8() if strategy == "channel" else TensorFP8()), []


def block_sizes(value: object) -> tuple[int, int] | None:
    """The rows and columns of a block that settings give, if they do, as a list or ``128x128``."""
    if isinstance(value, str) and _BLOCK.fullmatch(value):
        value = [int(size) for size in value.split("x")]
    if not isinstance(value, list) or len(value) != 2:
        return None
    rows, columns = value
    if not all(type(size) is int and 0 < size <= _MAX_BLOCK for size in value):
        return None
    return rows, columns


def parse_fbgemm(settings: Mapping[str, Any]) -> tuple[list[Form], list[str]]:
    """The form of transformers' ``fbgemm_fp8``, which has no setting that concerns weights."""
    return [ChannelFP8()], []


def parse_fine_grained(settings: Mapping[str, Any]) -> tuple[list[Form], list[str]]:
    """The form of transformers' ``fp8``, and what of the settings cannot be converted."""
    if "weight_block_size" not in settings:
        return [], ["quant_method 'fp8' without a weight_block_size"]
    block = settings["weight_block_size"]
    if block is None:
        return [InverseTensorFP8()], []
    sizes = block_sizes(block)
    if sizes is None:
        return [], [f"weight_block_size {shown(block)}"]
    return [InverseBlockFP8(*sizes)], []


def _values() -> Floats:
    """E4M3FN's 256 values: sign, 4 bits of exponent with bias 7, 3 of fraction, no infinity.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, table 1.
    """
    codes: npt.NDArray[np.int64] = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, fraction = (codes >> 3) & 0xF, (codes & 0x7) / 8
    normal = np.ldexp(1 + fraction, exponent - 7)
    values = sign * np.where(exponent > 0, normal, np.ldexp(fraction, -6))
    values[(codes & 0x7F) == 0x7F] = np.nan
    return values.astype(np.float32)


VALUES = _values()
