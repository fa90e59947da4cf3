"""ModelOpt's settings, in config.json's ``quantization_config`` or ``hf_quant_config.json``.

One algorithm for all matrices (``quant_algo``), or ``MIXED_PRECISION`` with one for each layer. The
older file has the same in an object ``quantization``. Layers that are not quantized are stored as
their numbers, so that their names (``ignore``, ``exclude_modules``) need not be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...untrusted import brief, shown
from .form import Form
from .fp4 import (
    FusedMXFP4,
    FusedMXFP8,
    FusedNVFP4,
    FusedWideNVFP4,
    LinearMXFP4,
    LinearMXFP8,
    LinearNVFP4,
    LinearWideNVFP4,
)
from .fp8 import FusedFP8, LinearFP8

_FP8: tuple[Form, ...] = (LinearFP8(), FusedFP8())
_NVFP4: tuple[Form, ...] = (LinearNVFP4(), FusedNVFP4())
_MXFP4: tuple[Form, ...] = (LinearMXFP4(), FusedMXFP4())

# By the algorithm in small letters: ModelOpt writes some so.
ALGORITHMS: dict[str, tuple[Form, ...]] = {
    "fp8": _FP8,
    "fp8_per_channel_per_token": _FP8,
    "nvfp4": _NVFP4,
    "w4a16_nvfp4": _NVFP4,
    "w4a8_nvfp4_fp8": (LinearWideNVFP4(), FusedWideNVFP4()),
    "mxfp4": _MXFP4,
    "w4a8_mxfp4_fp8": _MXFP4,
    "mxfp8": (LinearMXFP8(), FusedMXFP8()),
}
_MIXED = "mixed_precision"


def parse(settings: Mapping[str, Any]) -> tuple[list[Form], list[str]]:
    """The forms that these settings name, and what of them cannot be converted."""
    inner = settings.get("quantization")
    if isinstance(inner, Mapping):
        settings = inner
    algorithm = settings.get("quant_algo")
    if not isinstance(algorithm, str) or algorithm.lower() != _MIXED:
        found = _forms(algorithm)
        return ([], [f"quant_algo {shown(algorithm)}"]) if found is None else (list(found), [])
    layers = settings.get("quantized_layers")
    if not isinstance(layers, Mapping) or not layers:
        return [], [f"quantized_layers {shown(layers)}"]
    forms: list[Form] = []
    faults = []
    for name, layer in layers.items():
        algorithm = layer.get("quant_algo") if isinstance(layer, Mapping) else layer
        found = _forms(algorithm)
        if found is None:
            faults.append(f"{brief(name)}: quant_algo {shown(algorithm)}")
        else:
            forms += [form for form in found if form not in forms]
    return forms, faults


def _forms(algorithm: object) -> tuple[Form, ...] | None:
    return ALGORITHMS.get(algorithm.lower()) if isinstance(algorithm, str) else None
