"""bitsandbytes: NF4 and FP4, two codes in a byte, and integers of eight bits; of linear layers.

Four bits are codes of a table, the first of two in the high bits of its byte. A scale (``absmax``)
goes with each block of 64 numbers, or of another power of two, counted through the whole matrix: a
block may go on in the next row. Nested, the scales are codes of eight bits themselves, with a table
of their own, a scale for each 256 and an offset. What is no tensor is JSON in one, ``quant_state``.
Eight bits have a scale for each row (``SCB``), which is what 127 stands for.

Multiplies in float32 in the order in which bitsandbytes does, so that the numbers are its own. A
scale of zero is one here: it is that of a block of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar

import numpy as np

from ...errors import DamagedTensorError
from ...quant.encode import Bytes, Floats, decode_codes
from ...untrusted import Reader, shown
from ..shard_header import StoredTensor
from .codes import Pairs, Table, contiguous, pairs
from .form import CODES, Block, Decoder, Form, ReadPart, Region, Weight, damaged, expect, missing

_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_NESTED_BLOCK_SIZE = 256
_DTYPES = ("bfloat16", "float16", "float32")
_MAX_STATE = 4096  # bytes; it has some 200
_STATES = Reader(DamagedTensorError, limit=_MAX_STATE, hint="Download that shard again.")
_CLOSE = 1e-6  # tables of other releases differ in the last digit

_PART_SUFFIXES = {
    "absmax": ".absmax",
    "quant_map": ".quant_map",
    "nested_absmax": ".nested_absmax",
    "nested_quant_map": ".nested_quant_map",
}


@dataclass(frozen=True)
class _State:
    """What ``quant_state`` says that decoding needs; the last two of nested scales."""

    block_size: int
    nested_block_size: int = _NESTED_BLOCK_SIZE
    offset: float = 0.0


@dataclass(frozen=True)
class _FourBits(Form):
    """Codes of four bits, and a scale for each block."""

    kind: ClassVar[str]
    table: ClassVar[Table]

    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        CODES: ("U8",),
        "absmax": ("F32", "U8"),
        "quant_map": ("F32",),
        "nested_absmax": ("F32",),
        "nested_quant_map": ("F32",),
        "quant_state": ("U8",),
    }
    optional = frozenset({"nested_absmax", "nested_quant_map"})
    fused = False

    def check(self, weight: Weight) -> None:
        """As many codes as numbers, and a scale for each block of one of the sizes there are.

        Raises:
            CheckpointError: see `Form.check`.
        """
        count = weight.lines * weight.length
        half = weight.lines * (weight.length // 2)
        expect(weight, CODES, (half, 1), (half,))
        expect(weight, "quant_map", (16,))
        expect(weight, "absmax", *((-(-count // size),) for size in _BLOCK_SIZES))
        expect(weight, "quant_state", (min(weight.parts["quant_state"].parameters, _MAX_STATE),))
        if _nested(weight):
            blocks = weight.parts["absmax"].parameters
            for part in sorted(self.optional - weight.parts.keys()):
                raise missing(weight, part)
            expect(weight, "nested_absmax", (-(-blocks // _NESTED_BLOCK_SIZE),))
            expect(weight, "nested_quant_map", (256,))

    def decoder(self, weight: Weight, region: Region, read: ReadPart) -> Decoder:
        """Read ``quant_state`` and the scales of the region's blocks."""
        state = _read_state(weight, self.kind, read)
        quant_map = weight.parts["quant_map"]
        if not np.allclose(read(quant_map, 0, 16), self.table, rtol=0, atol=_CLOSE):
            raise damaged(quant_map, f"a table that is not that of {self.label}")
        size, length = state.block_size, weight.length
        first, last = region.first * length, region.last * length
        absmax = _read_absmax(weight, state, first // size, -(-last // size), read)
        # Blocks and rows both begin at multiples of `step`.
        step = gcd(size, length)
        blocks = np.arange(first, last, step) // size - first // size
        return _Blocks(
            pairs(self.table, high_first=True),
            absmax[blocks].reshape(region.count, length // step),
            step,
        )


@dataclass(frozen=True)
class _Blocks(Decoder):
    table: Pairs
    scales: Floats
    step: int

    def decode(self, codes: Block, begin: int, end: int) -> Floats:
        return decode_codes(codes, self.table, self.scales[begin:end], (1, self.step))


class NF4(_FourBits):
    """NF4: quantiles of a normal distribution (Dettmers et al., "QLoRA", 2023, appendix E)."""

    suffixes: ClassVar[Mapping[str, str]] = {
        CODES: "",
        **_PART_SUFFIXES,
        "quant_state": ".quant_state.bitsandbytes__nf4",
    }
    kind = "nf4"
    label = "NF4"
    title = "NF4 of bitsandbytes"
    table = np.array(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
            -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
            0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ],
        np.float32,
    )  # fmt: skip


class FP4(_FourBits):
    """FP4: a sign and the twelfths 0, 1/16, 8, 12, 4, 6, 2 and 3."""

    suffixes: ClassVar[Mapping[str, str]] = {
        CODES: "",
        **_PART_SUFFIXES,
        "quant_state": ".quant_state.bitsandbytes__fp4",
    }
    kind = "fp4"
    label = "FP4"
    title = "FP4 of bitsandbytes"
    table = np.array(
        [0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32
    ) / np.float32(12)


def _nested(weight: Weight) -> bool:
    return weight.parts["absmax"].dtype == "U8"


def _read_state(weight: Weight, kind: str, read: ReadPart) -> _State:
    """Read ``quant_state`` and hold it against the other parts.

    Raises:
        DamagedTensorError: it is not such JSON, or that of another matrix.
    """
    part, parts = weight.parts["quant_state"], weight.parts
    name = f"{part.name} in {part.file.name}"
    state = _STATES.as_record(_STATES.parse(read(part, 0, part.parameters).tobytes(), name), name)
    if state.text("quant_type") != kind:
        raise state.fault("quant_type", repr(kind))
    if state.text("dtype") not in _DTYPES:
        raise state.fault("dtype", " or ".join(_DTYPES))
    if state.get("shape") not in (None, list(weight.shape)):
        raise state.fault("shape", str(list(weight.shape)))
    blocks = parts["absmax"].parameters
    count = weight.lines * weight.length
    size = state.integer("blocksize")
    if size not in _BLOCK_SIZES or -(-count // size) != blocks:
        raise state.fault("blocksize", f"one that makes {blocks} blocks of {count:,} numbers")
    if not _nested(weight):
        return _State(size)
    nested_size = state.integer("nested_blocksize")
    if nested_size != _NESTED_BLOCK_SIZE:
        raise state.fault("nested_blocksize", str(_NESTED_BLOCK_SIZE))
    return _State(size, nested_size, state.number("nested_offset"))


def _read_absmax(weight: Weight, state: _State, first: int, last: int, read: ReadPart) -> Floats:
    """The scales of blocks `first` to `last`.

    Raises:
        DamagedTensorError: one is not finite, or, as far as it is stored, negative.
    """
    part, count = weight.parts["absmax"], last - first
    if not _nested(weight):
        return _magnitudes(part, read(part, first, count), first)
    table_part, scale_part = weight.parts["nested_quant_map"], weight.parts["nested_absmax"]
    table = read(table_part, 0, 256)
    if not (np.abs(table) <= 1).all():
        raise damaged(table_part, "a table with numbers that are not from -1 to 1")
    size = state.nested_block_size
    begin = first // size
    outer = _magnitudes(scale_part, read(scale_part, begin, -(-last // size) - begin), begin)
    codes: Bytes = read(part, first, count)
    scales: Floats = np.take(table, codes) * outer[np.arange(first, last) // size - begin]
    with np.errstate(over="ignore"):
        scales += np.float32(state.offset)
    return scales


def _magnitudes(part: StoredTensor, items: Block, first: int) -> Floats:
    """Scales that are largest magnitudes, which may be zero."""
    good = np.isfinite(items) & (items >= 0)
    if not good.all():
        bad = int(np.flatnonzero(~good)[0])
        raise damaged(part, f"{float(items[bad]):g} at {first + bad}: not a largest magnitude")
    return items


@dataclass(frozen=True)
class EightBits(Form):
    """Integers of eight bits, and for each row what 127 stands for."""

    suffixes: ClassVar[Mapping[str, str]] = {
        CODES: "",
        "scales": "SCB",
        "weight_format": "weight_format",
    }
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        CODES: ("I8",),
        "scales": ("F32",),
        "weight_format": ("U8",),
    }
    optional = frozenset({"weight_format"})
    fused = False
    label = "INT8"
    title = "INT8 of bitsandbytes"

    def part_name(self, weight: str, part: str) -> str:
        """Beside the weight, not after it: ``q_proj.weight`` and ``q_proj.SCB``."""
        return weight if part == CODES else weight.removesuffix("weight") + self.suffixes[part]

    def check(self, weight: Weight) -> None:
        """A scale for each row."""
        expect(weight, CODES, weight.shape)
        expect(weight, "scales", (weight.lines,))
        if "weight_format" in weight.parts:
            expect(weight, "weight_format", (), (1,))

    def decoder(self, weight: Weight, region: Region, read: ReadPart) -> Decoder:
        """Read the rows' scales."""
        order = weight.parts.get("weight_format")
        if order is not None and int(read(order, 0, 1)[0]) != 0:
            raise damaged(order, "numbers in the order of a GPU's kernel, not row after row")
        part = weight.parts["scales"]
        return _Rows(_magnitudes(part, read(part, region.first, region.count), region.first))


@dataclass(frozen=True)
class _Rows(Decoder):
    scales: Floats

    def decode(self, codes: Block, begin: int, end: int) -> Floats:
        numbers = contiguous(codes).astype(np.float32)
        numbers *= self.scales[begin:end, np.newaxis]
        numbers *= np.float32(1 / 127)
        return numbers


def parse(settings: Mapping[str, Any]) -> tuple[list[Form], list[str]]:
    """The form that bitsandbytes' settings name, and what of them cannot be converted."""
    if settings.get("load_in_8bit"):
        return [EightBits()], []
    if not settings.get("load_in_4bit"):
        return [], ["neither load_in_4bit nor load_in_8bit"]
    kind, storage = settings.get("bnb_4bit_quant_type"), settings.get("bnb_4bit_quant_storage")
    faults = []
    if kind not in ("nf4", "fp4"):
        faults.append(f"bnb_4bit_quant_type {shown(kind)}")
    if storage not in (None, "uint8"):
        faults.append(f"bnb_4bit_quant_storage {shown(storage)}")
    return [NF4() if kind == "nf4" else FP4()], faults
