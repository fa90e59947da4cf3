"""compressed-tensors' integers, ``pack-quantized`` (w4a16, w8a16) and ``int-quantized`` (w8a8).

A number is (code - zero point) · scale, with a scale for each group of a line's numbers, or for the
whole line. Packed, ``X.weight_packed`` I32 [out, ⌈in · bits / 32⌉] holds 8 or 4 codes an item, the
first in the lowest bits, each plus 2^(bits - 1); ``X.weight_zero_point``, where there is one, the
groups' zero points the same way, but packed along ``out``; ``X.weight_shape`` is [out, in]. With
activation order ``X.weight_g_idx`` says which group each number is of. Else, ``X.weight`` is I8.

A block of Q4_0 or Q8_0 is such a group of 32 with its scale in f16; in Q4_1 it has a minimum too.
So these hold the very numbers where a group is whole blocks, in order, and f16 holds the scale.

Source: pack_to_int32 in compressed-tensors' compressors/pack_quantized/helpers.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...errors import CheckpointError
from ...quant.encode import Bytes, Floats, Halves, repack
from ...quant.types import Q4_0, Q4_1, Q4_K, Q8_0, TensorType
from ...untrusted import shown
from ..fields import MAX_WIDTH
from .codes import look_up_pairs, pairs
from .form import (
    CODES,
    Block,
    Decoder,
    Form,
    ReadPart,
    Region,
    Rounded,
    Weight,
    damaged,
    expect,
    mismatches,
    scales_of,
)

_BLOCK = 32
_SCALES, _ZEROS, _SHAPE, _ORDER = "scales", "zero points", "shape", "order of groups"
_FLOATS = ("BF16", "F16", "F32")

_PAIRS = pairs(np.arange(-8, 8, dtype=np.float32))  # of codes that store 0 as 8


@dataclass(frozen=True)
class Integers(Form):
    """Integers of `bits` in groups of `group` numbers, None for a whole line."""

    bits: int
    group: int | None
    symmetric: bool

    optional: ClassVar[frozenset[str]] = frozenset({_ZEROS, _ORDER})
    kept_by_default: ClassVar[bool] = True
    offset: ClassVar[int] = 0
    """What a code of 8 bits stores 0 as."""

    @property
    def label(self) -> str:
        """As in INT4."""
        return f"INT{self.bits}"

    @property
    def title(self) -> str:
        """With all settings."""
        kind = "symmetric" if self.symmetric else "asymmetric"
        group = "a scale for each row" if self.group is None else f"groups of {self.group}"
        return f"integers of {self.bits} bits with {group}, {kind} ({self.format})"

    @property
    @abstractmethod
    def format(self) -> str:
        """What compressed-tensors calls it."""

    def groups(self, weight: Weight) -> int:
        """Scales of a line."""
        return 1 if self.group is None else -(-weight.length // self.group)

    def kept_as(self, weight: Weight) -> TensorType | None:
        """A type of 32 numbers a block, where groups are whole blocks."""
        aligned = self.group is None or self.group % _BLOCK == 0 or self.group >= weight.length
        if not aligned or weight.length % _BLOCK:
            return None
        if self.bits == 8:
            return Q8_0 if self.symmetric else None
        return Q4_0 if self.symmetric else Q4_1

    def encoded_as(self, weight: Weight) -> TensorType:
        """A type of about as many bits."""
        return Q8_0 if self.bits == 8 else Q4_K

    def in_order(self, weight: Weight, read: ReadPart) -> bool:
        """Whether groups follow each other."""
        order = self._order(weight, read)
        expected = np.arange(weight.length) // (self.group or weight.length)
        return order is None or bool((order == expected).all())

    def _order(self, weight: Weight, read: ReadPart) -> npt.NDArray[np.int32] | None:
        """The group of each number of a line, None where they follow each other."""
        part = weight.parts.get(_ORDER)
        if part is None:
            return None
        order = read(part, 0, weight.length)
        if (order == -1).all():  # what it is before it is known
            return None
        wrong = np.flatnonzero((order < 0) | (order >= self.groups(weight)))
        if len(wrong):
            value = shown(int(order[wrong[0]]))
            raise damaged(part, f"group {value} for number {wrong[0]} of each row")
        return order

    def _scales(self, weight: Weight, region: Region, read: ReadPart) -> Floats:
        """[lines, groups]"""
        part, groups = weight.parts[_SCALES], self.groups(weight)
        first = region.first * groups
        scales = scales_of(part, read(part, first, region.count * groups), first)
        return scales.reshape(region.count, groups)

    def decoder(self, weight: Weight, region: Region, read: ReadPart) -> Decoder:
        """Read the region's scales and zero points."""
        self.check_values(weight, read)
        return _Lines(
            bits=self.bits,
            length=weight.length,
            group=self.group or weight.length,
            scales=self._scales(weight, region, read),
            zeros=self.zeros(weight, region, read),
            order=self._order(weight, read),
            offset=self.offset,
        )

    def check_values(self, weight: Weight, read: ReadPart) -> None:
        """Hold parts' values against the weight's shape."""

    @abstractmethod
    def zeros(self, weight: Weight, region: Region, read: ReadPart) -> npt.NDArray[np.int16] | None:
        """The zero points of the region's lines, [lines, groups], as codes minus the offset."""

    def check_zeros(self, weight: Weight, *shapes: tuple[int, ...]) -> None:
        """Hold the zero points against the settings."""
        part = weight.parts.get(_ZEROS)
        if part is not None and not self.symmetric:
            expect(weight, _ZEROS, *shapes)
        elif (part is None) != self.symmetric:
            name = f"{weight.name}{self.suffixes[_ZEROS]}"
            raise CheckpointError(
                f"tensor {name} is {'missing' if part is None else 'not expected'}",
                found=f"symmetric {str(self.symmetric).lower()} in config.json",
                expected="zero points for what is asymmetric, and for nothing else",
                hint="The shards and config.json must be of the same model, and all of it.",
            )


@dataclass(frozen=True)
class Packed(Integers):
    """Several codes an item."""

    format: ClassVar[str] = "pack-quantized"
    offset: ClassVar[int] = 128
    suffixes: ClassVar[Mapping[str, str]] = {
        CODES: "_packed",
        _SCALES: "_scale",
        _SHAPE: "_shape",
        _ZEROS: "_zero_point",
        _ORDER: "_g_idx",
    }
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        CODES: ("I32",),
        _SCALES: _FLOATS,
        _SHAPE: ("I64", "I32"),
        _ZEROS: ("I32",),
        _ORDER: ("I32", "I64"),
    }

    @property
    def _per_item(self) -> int:
        return 32 // self.bits

    def check(self, weight: Weight) -> None:
        """Each part against the weight's shape, group and bits."""
        groups = self.groups(weight)
        expect(weight, CODES, (weight.lines, -(-weight.length // self._per_item)))
        expect(weight, _SCALES, (weight.lines, groups), *([(weight.lines,)] * (groups == 1)))
        expect(weight, _SHAPE, (2,))
        if _ORDER in weight.parts:
            expect(weight, _ORDER, (weight.length,))
        self.check_zeros(weight, (-(-weight.lines // self._per_item), groups))

    def check_values(self, weight: Weight, read: ReadPart) -> None:
        """``weight_shape`` is another way to say what config.json does."""
        stored = [int(size) for size in read(weight.parts[_SHAPE], 0, 2)]
        if stored != list(weight.shape):
            raise damaged(
                weight.parts[_SHAPE], f"{stored} where config.json means {list(weight.shape)}"
            )

    def zeros(self, weight: Weight, region: Region, read: ReadPart) -> npt.NDArray[np.int16] | None:
        """Unpacked; of whole items of lines, those of the region."""
        if self.symmetric:
            return None
        groups, per = self.groups(weight), self._per_item
        first, last = region.first // per, -(-region.last // per)
        words = read(weight.parts[_ZEROS], first * groups, (last - first) * groups)
        shifts = np.arange(per, dtype=np.uint32)[:, np.newaxis] * self.bits
        words = words.view(np.uint32).reshape(-1, 1, groups)
        codes = (words >> shifts) & ((1 << self.bits) - 1)
        zeros = codes.reshape(-1, groups).astype(np.int16) - (1 << (self.bits - 1))
        begin = region.first - first * per
        return zeros[begin : begin + region.count]


@dataclass(frozen=True)
class Bytewise(Integers):
    """A code an item."""

    format: ClassVar[str] = "int-quantized"
    suffixes: ClassVar[Mapping[str, str]] = {
        CODES: "",
        _SCALES: "_scale",
        _ZEROS: "_zero_point",
        _ORDER: "_g_idx",
    }
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        CODES: ("I8",),
        _SCALES: _FLOATS,
        _ZEROS: ("I8",),
        _ORDER: ("I32", "I64"),
    }

    def check(self, weight: Weight) -> None:
        """Each part against the weight's shape and group."""
        groups = self.groups(weight)
        expect(weight, CODES, (weight.lines, weight.length))
        expect(weight, _SCALES, (weight.lines, groups), *([(weight.lines,)] * (groups == 1)))
        if _ORDER in weight.parts:
            expect(weight, _ORDER, (weight.length,))
        self.check_zeros(weight, (weight.lines, groups))

    def zeros(self, weight: Weight, region: Region, read: ReadPart) -> npt.NDArray[np.int16] | None:
        """As stored."""
        if self.symmetric:
            return None
        groups = self.groups(weight)
        zeros = read(weight.parts[_ZEROS], region.first * groups, region.count * groups)
        return zeros.reshape(region.count, groups).astype(np.int16)


@dataclass(frozen=True)
class _Lines(Decoder):
    """Lines of one region; `scales` and `zeros` are [lines, groups]."""

    bits: int
    length: int
    group: int
    scales: Floats
    zeros: npt.NDArray[np.int16] | None
    order: npt.NDArray[np.int32] | None
    offset: int

    def decode(self, codes: Block, begin: int, end: int) -> Floats:
        """A product of two exact numbers, rounded once."""
        numbers = self._codes(codes)
        scales = self.scales[begin:end]
        zeros = None if self.zeros is None else self.zeros[begin:end].astype(np.float32)
        if self.order is None and self.length % self.group == 0:
            grouped = numbers.reshape(len(numbers), -1, self.group)
            if zeros is not None:
                grouped -= zeros[:, :, np.newaxis]
            grouped *= scales[:, :, np.newaxis]
            return numbers
        order = np.arange(self.length) // self.group if self.order is None else self.order
        if zeros is not None:
            numbers -= zeros[:, order]
        numbers *= scales[:, order]
        return numbers

    def _codes(self, codes: Block) -> Floats:
        """Codes minus their offset, [lines, length]."""
        raw: Bytes = np.ascontiguousarray(codes).view(np.uint8)
        if self.bits == 4:
            numbers = look_up_pairs(raw, _PAIRS)
            return np.ascontiguousarray(numbers[:, : self.length])
        signed = (raw ^ np.uint8(self.offset)).view(np.int8)
        floats: Floats = signed[:, : self.length].astype(np.float32)
        return floats

    def repack(
        self, codes: Block, begin: int, end: int, tensor_type: TensorType, place: Bytes
    ) -> None:
        """The codes in the blocks' order; scales and minima are rounded to f16 if need be."""
        scales = _f16(self.scales[begin:end])
        if not np.isfinite(scales.view(np.float16)).all():
            raise ValueError(f"values too large for {tensor_type.name}")
        minima = None
        if self.zeros is not None:
            exact = -(self.zeros[begin:end].astype(np.float32) + 8) * self.scales[begin:end]
            minima = _f16(exact)
        raw = np.ascontiguousarray(codes).view(np.uint8)
        repack(raw, scales, minima, self.group, tensor_type, place, offset=self.offset)

    def rounded(self) -> Rounded:
        """Groups whose scale, or minimum, f16 does not hold."""
        wrong = _inexact(self.scales)
        if self.zeros is not None:
            with np.errstate(over="ignore"):
                minima = (self.zeros.astype(np.float32) + 8) * self.scales
            wrong |= _inexact(minima)
        return Rounded(int(wrong.sum()), wrong.size)


def _f16(floats: Floats) -> Halves:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(floats.astype(np.float16)).view(np.uint16)


def _inexact(floats: Floats) -> npt.NDArray[np.bool_]:
    """What f16 does not hold."""
    with np.errstate(over="ignore", invalid="ignore"):
        inexact: npt.NDArray[np.bool_] = floats.astype(np.float16).astype(np.float32) != floats
    return inexact


# What config.json must say of a group's weights; a field that is absent is null there.
_SETTINGS: dict[str, Any] = {"type": "int", "dynamic": False, "block_structure": None}

# "weight" and "static" order the calibration alone; with the others X.weight_g_idx is stored.
_ACTIVATION_ORDERS = (None, False, "weight", "static", "group", "dynamic")


def pack_quantized(weights: Mapping[str, Any]) -> tuple[Form | None, list[str]]:
    """The form of a group of ``pack-quantized`` weights, and what of it cannot be converted."""
    return _form(Packed, (4, 8), weights)


def int_quantized(weights: Mapping[str, Any]) -> tuple[Form | None, list[str]]:
    """The form of a group of ``int-quantized`` weights, and what of it cannot be converted."""
    return _form(Bytewise, (8,), weights)


def _form(
    form: type[Packed] | type[Bytewise], widths: tuple[int, ...], weights: Mapping[str, Any]
) -> tuple[Form | None, list[str]]:
    faults = mismatches(weights, _SETTINGS)
    bits, symmetric = weights.get("num_bits", 8), weights.get("symmetric", True)
    if type(bits) is not int or bits not in widths:
        faults.append(f"weights.num_bits {shown(bits)}")
    group, strategy = weights.get("group_size"), weights.get("strategy")
    group = None if group == -1 else group
    known = "channel" if group is None else "group"
    if (known == "group" and not _is_group(group)) or strategy not in (known, None):
        faults.append(f"weights.strategy {shown(strategy)}, group_size {shown(group)}")
    if type(symmetric) is not bool:
        faults.append(f"weights.symmetric {shown(symmetric)}")
    if weights.get("actorder") not in _ACTIVATION_ORDERS:
        faults.append(f"weights.actorder {shown(weights['actorder'])}")
    return (None, faults) if faults else (form(bits, group, symmetric), [])


def _is_group(size: object) -> bool:
    return type(size) is int and 1 <= size <= MAX_WIDTH
