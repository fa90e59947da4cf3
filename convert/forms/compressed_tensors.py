"""compressed-tensors' settings: ``quantization_config`` with groups of layers, each in a format.

LLM Compressor writes them, and so do RedHatAI's and Meta's quantized repositories. Each group has
its ``format``, or that of the whole; every format here is a form with a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...untrusted import brief, shown
from . import fp4, fp8, packed
from .form import Form

# A group's weights to its form, and what of them does not fit it.
GroupParser = Callable[[Mapping[str, Any]], tuple[Form | None, list[str]]]


def _naive(weights: Mapping[str, Any]) -> tuple[Form | None, list[str]]:
    """The two formats of 8 bits, before they had names of their own."""
    parse_group = fp8.float_quantized if weights.get("type") == "float" else packed.int_quantized
    return parse_group(weights)


FORMATS: dict[str, GroupParser] = {
    "float-quantized": fp8.float_quantized,
    "int-quantized": packed.int_quantized,
    "naive-quantized": _naive,
    "pack-quantized": packed.pack_quantized,
    "nvfp4-pack-quantized": fp4.nvfp4,
    "mxfp4-pack-quantized": fp4.mxfp4,
    "mxfp8-quantized": fp4.mxfp8,
}

# Formats whose meaning is known, and that cannot be converted; see `_faults`.
MIXED = "mixed-precision"


def parse(settings: Mapping[str, Any]) -> tuple[list[Form], list[str]]:
    """The forms that these settings name, and what of them cannot be converted.

    Two groups with equal settings are one form.
    """
    forms: list[Form] = []
    faults = list(_common_faults(settings))
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return [], [*faults, f"config_groups {shown(groups)}"]
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            faults.append(f"{brief(name)}: no weights")
            continue
        own = group.get("format") or settings.get("format")
        parser = FORMATS.get(own) if isinstance(own, str) else None
        if parser is None:
            if own != settings.get("format"):
                faults.append(f"{brief(name)}: format {shown(own)}")
            continue
        form, wrong = parser(weights)
        where = brief(name) if own == settings.get("format") else f"{brief(name)} of format {own}"
        faults += [f"{where}: {fault}" for fault in wrong]
        if form is not None and form not in forms:
            forms.append(form)
    return forms, faults


def _common_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    known = settings.get("format")
    if not (isinstance(known, str) and known in (*FORMATS, MIXED)):
        yield f"format {shown(known)}"
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        layout = sparsity.get("format") if isinstance(sparsity, Mapping) else sparsity
        yield f"sparsity_config of format {shown(layout)}, without the zeros of sparse weights"
    if settings.get("transform_config"):
        yield "a transform_config"
