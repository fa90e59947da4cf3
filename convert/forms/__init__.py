"""How published checkpoints store a matrix, other than as its numbers: one file a form.

`forms_of` reads what config.json says (its ``quantization_config``); `find_weight` finds the stored
tensors of one matrix; a `Form` says how they become numbers. From there a conversion goes on as
with bf16: `..slabs` cuts a weight's codes, `..pipeline` reads them and has a decoder made for each
slab, whose lines are decoded on all cores, rounded to bf16 and encoded.

**To add a form**, write a file here with

1. a subclass of `form.Form` (a frozen dataclass where it has settings). Its tables `suffixes` and
   `dtypes` name the stored tensors that make up a weight: what each has after the weight's own name
   (``experts.3.up_proj.weight`` + ``_scale``; fused ``experts.gate_up_proj`` + ``_weight_scale``),
   and which dtypes it may have. `CODES` is the large one, read in slabs; parts that not every
   weight has are `optional`. Two orientations with different suffixes are two forms. Only weights
   whose codes have one of the dtypes are the form's: layers left in bf16 pass through.
2. `check`, which holds each part's shape against the weight's: `expect(weight, part, shape, …)`. It
   also says whether the form takes fused weights ([expert, in, out], `weight.fused`).
3. `decoder`, called by the reading thread for each slab: it reads from the other parts what the
   slab's `Region` needs (``read(part, first item, count)``, which may lie in another shard), checks
   it (`scales_of`, else raise `damaged`), and returns a `form.Decoder`. Codes must be read in whole
   lines: a part of 1/8 of the lines, say, is read from ``region.first // 8`` on.
4. that decoder's `decode(codes, begin, end)`, called by many threads at once: codes
   [lines, items of a line] in, float32 [lines, numbers] out, exact. Where codes are packed, they
   are so along a line in either orientation; an item is what the part's dtype says (`VIEWS`). Of a
   fused weight `codes` is a transposed view.
5. where a type of ggml's holds the very numbers: `kept_as`, and the decoder's `repack` and
   `rounded`; recipe ``keep`` asks for them, and is the default if `kept_by_default` says so. Where
   none does, ``keep`` takes `encoded_as`.

Then enter it: a format of compressed-tensors' in `compressed_tensors.FORMATS`, another
``quant_method`` in `METHODS`, with a function from the settings to forms and a list of what does
not fit. Stored tensors of no use go into `..unused`. Tests: ``tests/convert/forms/`` for the
decoder, against the package that writes the form, and ``tests/reference/`` for whole checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import UnsupportedError
from ...untrusted import shown
from . import bitsandbytes, compressed_tensors, fp8, modelopt
from .form import (
    CODES,
    VIEWS,
    Block,
    Decoder,
    Form,
    ReadPart,
    Region,
    Rounded,
    Weight,
    find_in_any,
    find_weight,
    part_reader,
)

__all__ = [
    "CODES",
    "VIEWS",
    "Block",
    "Decoder",
    "Form",
    "ReadPart",
    "Region",
    "Rounded",
    "Weight",
    "find_in_any",
    "find_weight",
    "forms_of",
    "part_reader",
    "quantization_error",
]

# quant_method to a function from the settings to the forms they name, and what does not fit.
METHODS: dict[str, Callable[[Mapping[str, Any]], tuple[list[Form], list[str]]]] = {
    "compressed-tensors": compressed_tensors.parse,
    "modelopt": modelopt.parse,
    "bitsandbytes": bitsandbytes.parse,
    "fbgemm_fp8": fp8.parse_fbgemm,
    "fp8": fp8.parse_fine_grained,
}

# quant_method, or compressed-tensors' format, to what it is, of those that are not read.
_OTHER_LAYOUTS = {
    "gptq": "GPTQ packs along the other axis and permutes",
    "awq": "AWQ interleaves its codes",
    "auto-round": "auto-round has GPTQ's or AWQ's layout",
    "intel/auto-round": "auto-round has GPTQ's or AWQ's layout",
    "mlx": "MLX has a bias for each group of codes beside its scale",
    "marlin-24": "2:4 sparse weights are stored without their zeros",
    "sparse-24-bitmask": "2:4 sparse weights are stored without their zeros",
    "sparse-bitmask": "sparse weights are stored without their zeros",
}

_SHOWN = 12  # settings that an error lists


def forms_of(settings: object) -> tuple[Form, ...]:
    """The forms that weights may have with this ``quantization_config``.

    Raises:
        UnsupportedError: weights so quantized cannot be decoded; it names every setting that says
            so.
    """
    if not isinstance(settings, Mapping):
        raise _unsupported(["no settings"])
    method = settings.get("quant_method")
    if method is None and "load_in_4bit" in settings:
        method = "bitsandbytes"  # which older releases of transformers did not say
    parse = METHODS.get(method) if isinstance(method, str) else None
    if parse is None:
        is_mlx = method is None and {"bits", "group_size"} <= settings.keys()
        raise _unsupported([f"quant_method {shown(method)}"], "mlx" if is_mlx else method)
    forms, faults = parse(settings)
    if faults:
        raise _unsupported(faults, settings.get("format"))
    return tuple(forms)


def quantization_error(settings: object) -> UnsupportedError | None:
    """Why weights with this ``quantization_config`` of config.json cannot be decoded, if so."""
    try:
        forms_of(settings)
    except UnsupportedError as error:
        return error
    return None


def _unsupported(faults: list[str], layout: object = None) -> UnsupportedError:
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    known = _OTHER_LAYOUTS.get(layout) if isinstance(layout, str) else None
    return UnsupportedError(
        "the checkpoint is quantized in a way that cannot be converted",
        found="; ".join(faults[:_SHOWN]) + more + (f": {known}" if known else ""),
        expected="bf16 weights, integers or floats of 4 or 8 bits by compressed-tensors, FP8 or "
        "NVFP4 by ModelOpt, or NF4 by bitsandbytes",
        hint="Use the repository without a quantization in its name.",
    )
