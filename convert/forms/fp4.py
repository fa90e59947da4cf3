"""FP4: E2M1 codes, two in a byte, with a scale for each group of a line.

Two ways of it are published. In NVFP4 a group has 16 numbers and its scale is E4M3; the whole
matrix has one more scale in float32, by which compressed-tensors divides and ModelOpt multiplies.
In MXFP4 a group has 32 numbers and its scale is a power of two (E8M0). MXFP8 is the same with
E4M3 codes. Names and orientations are compressed-tensors' or ModelOpt's: each has its classes.

A scale of zero is one where it is E4M3: it is what becomes of a tiny one, and engines multiply by
it as by any other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...errors import CheckpointError
from ...quant.encode import Bytes, Floats, decode_codes
from .codes import E2M1, E8M0, Pairs, Table, contiguous, pairs
from .form import (
    CODES,
    Block,
    Decoder,
    Form,
    ReadPart,
    Region,
    Weight,
    damaged,
    expect,
    mismatches,
    scales_of,
)
from .fp8 import VALUES as E4M3

_PAIRS = pairs(E2M1)
# ModelOpt's NVFP4 has one zero, without a sign.
_PAIRS_OF_ONE_ZERO = pairs(np.where(E2M1 == 0, np.float32(0), E2M1))
_SETTINGS = {"type": "float", "symmetric": True, "dynamic": False, "actorder": None}


@dataclass(frozen=True)
class _Groups(Form):
    """Codes in groups of `group` with a scale of one byte for each, packed the way groups run.

    That is along a line (``in``), or, fused, `across` them: along ``out``.
    """

    group: ClassVar[int]
    values: ClassVar[Table | Pairs]
    """What a byte of codes stands for: two of E2M1, or one of E4M3."""

    across: ClassVar[bool] = False

    @property
    def lines_per_item(self) -> int:
        """Two where the codes of two lines are in one byte."""
        return 2 if self.across and self.values.ndim == 2 else 1

    def check(self, weight: Weight) -> None:
        """A scale for each group, in the orientation of the codes.

        Raises:
            CheckpointError: see `Form.check`.
        """
        axis = 1 if weight.fused and not self.across else len(weight.shape) - 1
        codes, groups = list(weight.shape), list(weight.shape)
        # Where a byte holds two lines, gate and up are even, too.
        if self.values.ndim == 2 and codes[axis] % (2 * self.lines_per_item):
            raise CheckpointError(
                f"{weight.name} cannot be stored as {self.title}",
                found=f"{list(weight.shape)}: {codes[axis]} numbers along the packed axis",
                expected="an even number",
            )
        codes[axis] //= 2 if self.values.ndim == 2 else 1
        groups[axis] = -(-groups[axis] // self.group)
        expect(weight, CODES, tuple(codes))
        expect(weight, "scales", tuple(groups))

    def decoder(self, weight: Weight, region: Region, read: ReadPart) -> Decoder:
        """Read the region's scales."""
        table = self.table(weight, region.expert, read)
        scales = _group_scales(weight, region, read, table)
        if self.across:
            return _AcrossLines(table, scales, self.group, self.values, region.first)
        if weight.fused:
            scales = scales[:, region.first : region.last].T
        return _AlongLines(table, scales, self.group, self.values)

    @abstractmethod
    def table(self, weight: Weight, expert: int, read: ReadPart) -> Table:
        """What each byte of a scale stands for; NaN where none is allowed to be."""


def _group_scales(weight: Weight, region: Region, read: ReadPart, table: Table) -> Bytes:
    """The scales of the region's lines as stored, or all of its expert's; in two axes.

    Raises:
        DamagedTensorError: one is negative or NaN.
    """
    part = weight.parts["scales"]
    rows, columns = part.shape[-2:]
    begin, end = (0, rows) if weight.fused else (region.first, region.last)
    first = (region.expert * rows + begin) * columns
    scales: Bytes = read(part, first, (end - begin) * columns)
    bad = np.flatnonzero(~(table >= 0)[scales])
    if len(bad):
        at = int(bad[0])
        raise damaged(
            part,
            f"a scale that is not a positive number: {table[scales[at]]:g} in row "
            f"{(first + at) // columns}",
        )
    return scales.reshape(end - begin, columns)


def _numbers(table: Table, scales: Bytes) -> Floats:
    """What the bytes of scales stand for, contiguous."""
    # Every byte is a valid index; "clip" spares numpy the check.
    return np.take(table, contiguous(scales), mode="clip")


@dataclass(frozen=True)
class _AlongLines(Decoder):
    """`scales` are [lines, groups]."""

    table: Table
    scales: Bytes
    group: int
    values: Table | Pairs

    def decode(self, codes: Block, begin: int, end: int) -> Floats:
        scales = _numbers(self.table, self.scales[begin:end])
        return decode_codes(codes, self.values, scales, (1, self.group))


@dataclass(frozen=True)
class _AcrossLines(Decoder):
    """`scales` are [in, groups] of all lines, of which the region's begin with `first`."""

    table: Table
    scales: Bytes
    group: int
    values: Table | Pairs
    first: int

    def decode(self, codes: Block, begin: int, end: int) -> Floats:
        first, last = self.first + begin, self.first + end
        groups = self.scales[:, first // self.group : -(-last // self.group)]
        scales = _numbers(self.table, groups.T)
        return decode_codes(
            codes, self.values, scales, (self.group, 1), first % self.group, across=True
        )


class _NVFP4(_Groups):
    """E2M1 in groups of 16, E4M3 scales, and one float32 for the whole (or for each expert)."""

    group = 16
    values = _PAIRS
    divided: ClassVar[bool]
    """Whether the scale of the whole divides."""

    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        CODES: ("U8",),
        "scales": ("F8_E4M3",),
        "outer scale": ("F32",),
    }
    label = "NVFP4"

    def check(self, weight: Weight) -> None:
        """Also the outer scale."""
        super().check(weight)
        ones: list[tuple[int, ...]] = [(), (1,)]
        if weight.fused:
            experts = weight.shape[0]
            ones += [(experts,), (experts, 1), (experts, 1, 1)]
        expect(weight, "outer scale", *ones)

    def table(self, weight: Weight, expert: int, read: ReadPart) -> Table:
        """E4M3 and the scale of the whole in one, rounded to float32 as both packages do."""
        part = weight.parts["outer scale"]
        index = expert if part.parameters > 1 else 0
        outer = scales_of(part, read(part, index, 1), index)[0]
        with np.errstate(over="ignore"):
            table: Table = E4M3 / outer if self.divided else E4M3 * outer
        return table


class PackedNVFP4(_NVFP4):
    """compressed-tensors' ``nvfp4-pack-quantized``: [out, in / 2], low four bits first."""

    suffixes: ClassVar[Mapping[str, str]] = {
        CODES: "_packed",
        "scales": "_scale",
        "outer scale": "_global_scale",
    }
    divided = True
    fused = False
    title = "NVFP4 (E2M1, an E4M3 scale for each 16, divided by an outer one)"


class LinearNVFP4(_NVFP4):
    """ModelOpt's NVFP4 of a linear layer: [out, in / 2], low four bits first."""

    suffixes: ClassVar[Mapping[str, str]] = {
        CODES: "",
        "scales": "_scale",
        "outer scale": "_scale_2",
    }
    values = _PAIRS_OF_ONE_ZERO
    divided = False
    fused = False
    title = "NVFP4 (E2M1, an E4M3 scale for each 16, times an outer one)"


class FusedNVFP4(_NVFP4):
    """ModelOpt's NVFP4 of fused experts: [expert, in / 2, out]."""

    suffixes: ClassVar[Mapping[str, str]] = {
        CODES: "",
        "scales": "_weight_scale",
        "outer scale": "_weight_scale_2",
    }
    values = _PAIRS_OF_ONE_ZERO
    divided = False
    fused = True
    title = LinearNVFP4.title


class LinearWideNVFP4(LinearNVFP4):
    """ModelOpt's ``W4A8_NVFP4_FP8`` of a linear layer: groups of 32."""

    group = 32
    title = "NVFP4 (E2M1, an E4M3 scale for each 32, times an outer one)"


class FusedWideNVFP4(FusedNVFP4):
    """The same of fused experts: [expert, in, out / 2]."""

    group = 32
    across = True
    title = LinearWideNVFP4.title


class _MX(_Groups):
    """Groups of 32, and E8M0 scales."""

    group = 32

    def table(self, weight: Weight, expert: int, read: ReadPart) -> Table:
        """Powers of two."""
        return E8M0


class PackedMXFP4(_MX):
    """compressed-tensors' ``mxfp4-pack-quantized``: [out, in / 2], low four bits first."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "_packed", "scales": "_scale"}
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {CODES: ("U8",), "scales": ("U8",)}
    values = _PAIRS
    fused = False
    label = "MXFP4"
    title = "MXFP4 (E2M1, a power of two for each 32)"


class LinearMXFP4(PackedMXFP4):
    """ModelOpt's MXFP4 of a linear layer."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_scale"}


class FusedMXFP4(LinearMXFP4):
    """ModelOpt's MXFP4 of fused experts: [expert, in, out / 2]."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_weight_scale"}
    fused = True
    across = True


class LinearMXFP8(_MX):
    """MXFP8 of a linear layer, compressed-tensors' and ModelOpt's: E4M3 codes [out, in]."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_scale"}
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {CODES: ("F8_E4M3",), "scales": ("U8",)}
    values = E4M3
    fused = False
    label = "MXFP8"
    title = "MXFP8 (E4M3, a power of two for each 32)"


class FusedMXFP8(LinearMXFP8):
    """ModelOpt's MXFP8 of fused experts: [expert, in, out], groups along ``out``."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_weight_scale"}
    fused = True
    across = True


def nvfp4(weights: Mapping[str, Any]) -> tuple[Form | None, list[str]]:
    """The form of a group of compressed-tensors' ``nvfp4-pack-quantized``, and what fits none."""
    expected = {**_SETTINGS, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}
    faults = mismatches(weights, expected)
    return (None, faults) if faults else (PackedNVFP4(), [])


def mxfp4(weights: Mapping[str, Any]) -> tuple[Form | None, list[str]]:
    """The same of ``mxfp4-pack-quantized``."""
    expected = {**_SETTINGS, "num_bits": 4, "strategy": "group", "group_size": 32}
    faults = mismatches(weights, expected)
    return (None, faults) if faults else (PackedMXFP4(), [])


def mxfp8(weights: Mapping[str, Any]) -> tuple[Form | None, list[str]]:
    """The same of ``mxfp8-quantized``."""
    expected = {**_SETTINGS, "num_bits": 8, "strategy": "group", "group_size": 32}
    faults = mismatches(weights, expected)
    return (None, faults) if faults else (LinearMXFP8(), [])
