"""compressed-tensors' ``float-quantized``: a code of FP8 for each number, a scale for each line.

It is what meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8 has: ``X.weight`` [out, in] of E4M3
codes, and beside it ``X.weight_scale`` [out, 1]; a number is its code's value times its line's
scale. Each expert's three matrices are tensors of their own there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...quant.encode import Floats
from .form import CODES, Block, Decoder, Form, ReadPart, Region, Weight, expect, scales_of

# What config.json must say of a group's weights; a field that is absent is null there.
SETTINGS: dict[str, Any] = {
    "num_bits": 8,
    "type": "float",
    "strategy": "channel",
    "symmetric": True,
    "dynamic": False,
    "group_size": None,
    "block_structure": None,
    "actorder": None,
}


@dataclass(frozen=True)
class ChannelFP8(Form):
    """E4M3 with a scale for each line."""

    suffixes: ClassVar[Mapping[str, str]] = {CODES: "", "scales": "_scale"}
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        CODES: ("F8_E4M3",),
        "scales": ("BF16", "F32"),
    }

    @property
    def label(self) -> str:
        """The codes' dtype."""
        return "F8_E4M3"

    @property
    def title(self) -> str:
        """One setting, the only one."""
        return "FP8 (F8_E4M3) with a scale for each row"

    def check(self, weight: Weight) -> None:
        """A scale for each line."""
        expect(weight, CODES, weight.shape)
        fused = (weight.shape[0], 1, weight.lines)
        expect(weight, "scales", fused if weight.fused else (weight.lines, 1))

    def decoder(self, weight: Weight, region: Region, read: ReadPart) -> Decoder:
        """Read the region's scales."""
        part = weight.parts["scales"]
        first = region.expert * weight.lines + region.first
        return _Lines(scales_of(part, read(part, first, region.count), first))


@dataclass(frozen=True)
class _Lines(Decoder):
    scales: Floats

    def decode(self, codes: Block, begin: int, end: int) -> Floats:
        floats = values_of(codes)
        with np.errstate(over="ignore"):
            floats *= self.scales[begin:end, np.newaxis]
        return floats


def values_of(codes: npt.NDArray[np.uint8]) -> Floats:
    """What E4M3 codes stand for; a new array of their shape.

    Raises:
        ValueError: one is NaN.
    """
    if int((codes & 0x7F).max(initial=0)) == 0x7F:
        raise ValueError("NaN")
    # Every code is a valid index; "clip" only spares numpy the check.
    return np.take(VALUES, codes, mode="clip")


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
