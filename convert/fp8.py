"""The FP8 of Llama 4's published FP8 repository: what it is called, and how it becomes numbers.

The layout is compressed-tensors' ``float-quantized`` with a scale for each output channel, which is
what meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8 has: a matrix ``X.weight`` [out, in] of E4M3
codes, and beside it ``X.weight_scale`` [out, 1]; a number is its code's value times its row's
scale. Each expert's three matrices are tensors of their own there. Any other way of quantizing is
refused. Knows nothing of files or of GGUF.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..quant.encode import Bytes, Floats, Halves, f32_to_bf16
from ..untrusted import brief, shown

DTYPE = "F8_E4M3"
SCALE_DTYPES = ("BF16", "F32")

# What config.json must say of each group's weights; a field that is absent is null there.
_WEIGHTS = {
    "num_bits": 8,
    "type": "float",
    "strategy": "channel",
    "symmetric": True,
    "dynamic": False,
    "group_size": None,
    "block_structure": None,
    "actorder": None,
}

_SHOWN = 12  # settings that an error lists


def scale_name(weight: str) -> str:
    """The name of the tensor with the scales of the tensor named `weight`."""
    return weight + "_scale"


def quantization_error(settings: object) -> UnsupportedError | None:
    """Why weights with this ``quantization_config`` of config.json cannot be decoded, if so.

    The error names every setting that differs from the layout described above.
    """
    faults = list(_faults(settings)) if isinstance(settings, Mapping) else ["no settings"]
    if not faults:
        return None
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return UnsupportedError(
        "the checkpoint is quantized in a way that cannot be converted",
        found="; ".join(faults[:_SHOWN]) + more,
        expected="bf16 weights, or compressed-tensors' FP8 with a scale for each channel",
        hint="Use the repository without a quantization in its name.",
    )


def _faults(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, wanted in (("quant_method", "compressed-tensors"), ("format", "float-quantized")):
        if settings.get(name) != wanted:
            yield f"{name} {shown(settings.get(name))}"
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        yield f"sparsity_config {shown(sparsity)}"
    if settings.get("transform_config"):
        yield "a transform_config"
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        yield f"config_groups {shown(groups)}"
        return
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            yield f"{brief(name)}: no weights"
            continue
        if group.get("format") not in (None, "float-quantized"):
            yield f"{brief(name)}: format {shown(group['format'])}"
        for field, expected in _WEIGHTS.items():
            if weights.get(field) != expected:
                yield f"{brief(name)}: weights.{field} {shown(weights.get(field))}"


def scales_of(data: bytes, dtype: str) -> Floats:
    """The scales in `data`, one for each row, stored as one of `SCALE_DTYPES`; exact.

    Raises:
        ValueError: one is negative, infinite or not a number.
    """
    if dtype == "BF16":
        halves = np.frombuffer(data, "<u2")
        scales: Floats = (halves.astype(np.uint32) << 16).view(np.float32)
    else:
        scales = np.frombuffer(data, "<f4").astype(np.float32)
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ValueError("a scale that is not a positive number")
    return scales


def decode_rows(codes: Bytes, scales: Floats) -> Halves:
    """The numbers of `codes` [rows, columns] with `scales` [rows], rounded to bf16.

    The product is taken in float32 and rounded once to nearest even, which is what transformers
    and compressed-tensors compute when they dequantize to bf16.

    Returns:
        bf16 as raw 16-bit words, [rows, columns]; infinite where a product is too large.

    Raises:
        ValueError: a code is NaN.
    """
    if int((codes & 0x7F).max(initial=0)) == 0x7F:
        raise ValueError("NaN")
    # Every code is a valid index; "clip" only spares numpy the check.
    floats = np.take(VALUES, codes, mode="clip")
    with np.errstate(over="ignore"):
        floats *= scales[:, np.newaxis]
    return f32_to_bf16(floats)


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
