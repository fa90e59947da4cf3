"""Recipes: which type each tensor of a Llama 4 model gets.

Five recipes are llama.cpp's own, byte for byte: what llama-quantize makes of the bf16 file that
convert_hf_to_gguf.py writes. Two are ours: ``int8`` and ``int4`` put the routed experts, nine
tenths of Scout, into 8 or 4 bits and keep what every token passes through in 8.

Knows tensors by GGUF name and shape only; nothing here reads or writes a number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import RecipeError, did_you_mean
from ..ranges import value_text
from .roles import role_of
from .types import (
    BF16,
    F16,
    F32,
    Q4_0,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_0,
    TYPES,
    TensorType,
)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be typed: its GGUF name and shape, rows along the last axis."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Assignment:
    """The type a tensor gets. `wanted` is set when its shape could not take the recipe's type."""

    tensor: TensorSpec
    type: TensorType
    wanted: TensorType | None = None


@dataclass(frozen=True)
class _Model:
    """What llama-quantize's rules ask of a model."""

    n_layer: int
    n_expert: int
    attention_values: int
    tied: bool


@dataclass
class _Counters:
    """Tensors met so far, of the kinds whose type depends on their position."""

    attention_values: int = 0
    ffn_down: int = 0


Mix = Callable[[TensorSpec, _Model, _Counters], TensorType]


@dataclass(frozen=True)
class Recipe:
    """A named policy. `file_type` is llama.cpp's number for it (``llama_ftype``)."""

    name: str
    summary: str
    file_type: int
    mix: Mix


def assign_types(
    recipe: Recipe,
    tensors: Sequence[TensorSpec],
    *,
    n_layer: int,
    n_expert: int,
    overrides: Sequence[tuple[str, TensorType]] = (),
) -> list[Assignment]:
    """Give each of `tensors` its type, in the order given.

    Args:
        recipe: the policy.
        tensors: the whole model's, since some rules count tensors.
        n_layer: layers of the model.
        n_expert: routed experts in a layer.
        overrides: (regex, type) pairs; the first whose regex is found in a tensor's name decides,
            as with llama-quantize's ``--tensor-type``. Norms, the router and 1-D tensors stay F32.

    Raises:
        RecipeError: a regex that is none, or that finds no tensor it may type.
    """
    compiled = _compile(overrides)
    unused = {pattern.pattern for pattern, _ in compiled}
    model = _Model(
        n_layer=n_layer,
        n_expert=n_expert,
        attention_values=sum(".attn_v.weight" in spec.name for spec in tensors),
        tied=all(spec.name != "output.weight" for spec in tensors),
    )
    counters = _Counters()
    assigned: dict[str, Assignment] = {}
    for spec in sorted(tensors, key=llama_cpp_order):
        if not is_typed(spec):
            assigned[spec.name] = Assignment(spec, F32)
            continue
        override = next((item for item in compiled if item[0].search(spec.name)), None)
        if override is not None:
            unused.discard(override[0].pattern)
            wanted = override[1]
        else:
            wanted = recipe.mix(spec, model, counters)
        assigned[spec.name] = _fit(spec, wanted)
    if unused:
        raise RecipeError(
            "types matches no tensor whose type can be chosen",
            found=", ".join(repr(pattern) for pattern in sorted(unused)),
            hint="`llama4 inspect SOURCE --tensors` lists the names; norms and routers stay F32.",
        )
    return [assigned[spec.name] for spec in tensors]


def recipe_named(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        RecipeError: there is none.
    """
    recipe = RECIPES.get(name.lower()) if isinstance(name, str) else None
    if recipe is None:
        raise RecipeError(
            "unknown recipe",
            found=value_text(name),
            expected=f"one of {', '.join(RECIPES)}",
            hint=did_you_mean(name, RECIPES) if isinstance(name, str) else None,
        )
    return recipe


def llama_cpp_order(spec: TensorSpec) -> tuple[int, str]:
    """Sort key of llama-quantize, which counts tensors by layer and then by name.

    Source: ``weight_name_comparer`` in llama.cpp's llama-model-loader.h.
    """
    return (_layer(spec.name), spec.name)


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


def is_typed(spec: TensorSpec) -> bool:
    """Whether recipes choose the type of a tensor: not of vectors, norms and the router.

    llama.cpp never quantizes those.
    """
    return (
        len(_trimmed(spec.shape)) >= 2
        and spec.name.endswith("weight")
        and role_of(spec.name) not in ("norm", "router")
    )


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading ones, which ggml does not count as dimensions."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _compile(
    overrides: Sequence[tuple[str, TensorType]],
) -> list[tuple[re.Pattern[str], TensorType]]:
    try:
        return [(re.compile(pattern), tensor_type) for pattern, tensor_type in overrides]
    except re.error as error:
        raise RecipeError(
            "a pattern of types is not a regular expression", found=f"{error.pattern!r} ({error})"
        ) from None


# Where a row is not a whole number of blocks, llama.cpp takes a type of nearly the same bits with
# blocks of 32, and F16 where even that does not fit. Source: tensor_type_fallback, llama-quant.cpp.
_FALLBACK = {
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def _fit(spec: TensorSpec, wanted: TensorType) -> Assignment:
    row = spec.shape[-1]
    if wanted.fits(row):
        return Assignment(spec, wanted)
    smaller = TYPES[_FALLBACK.get(wanted.name, wanted.name)]
    return Assignment(spec, smaller if smaller.fits(row) else F16, wanted)


# --- llama.cpp's mixes: llama_tensor_get_type_impl in llama-quant.cpp, as far as Llama 4 meets it.


def _same(tensor_type: TensorType) -> Mix:
    """Every tensor in `tensor_type`, as for F16, BF16 and Q8_0 files."""
    return lambda spec, model, counters: tensor_type


def _is_output(spec: TensorSpec, model: _Model) -> bool:
    """The output matrix, or the embedding that stands in for it."""
    return spec.name == "output.weight" or (model.tied and spec.name == "token_embd.weight")


def _output_type(spec: TensorSpec, base: TensorType) -> TensorType:
    return Q6_K if base.fits(spec.shape[-1]) else Q8_0


def _q4_0_mix(spec: TensorSpec, model: _Model, counters: _Counters) -> TensorType:
    if _is_output(spec, model):
        return _output_type(spec, Q4_0)
    if model.n_expert == 8 and (".attn_v." in spec.name or ".attn_k." in spec.name):
        return Q8_0
    return Q4_0


def _q4_k_m_mix(spec: TensorSpec, model: _Model, counters: _Counters) -> TensorType:
    if _is_output(spec, model):
        return _output_type(spec, Q4_K)
    if ".attn_v." in spec.name:
        index = counters.attention_values
        counters.attention_values += 1
        if model.n_expert == 8:
            return Q8_0
        return Q6_K if _more_bits(index, model.attention_values) else Q4_K
    if ".attn_k." in spec.name:
        return Q8_0 if model.n_expert == 8 else Q4_K
    if ".attn_output." in spec.name:
        return Q5_K if model.n_expert == 8 else Q4_K
    if "ffn_down" in spec.name:
        # A model of one expert is "not a mixture" there, and its tensors are counted instead.
        index = _layer(spec.name) if model.n_expert > 1 else counters.ffn_down
        counters.ffn_down += 1
        return Q6_K if _more_bits(index, model.n_layer) else Q4_K
    return Q4_K


def _more_bits(index: int, count: int) -> bool:
    """The first and last eighth, and every third in between (``use_more_bits``)."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _experts_in(tensor_type: TensorType) -> Mix:
    """Ours: routed experts in `tensor_type`, what every token passes through in 8 bits."""
    return lambda spec, model, counters: tensor_type if role_of(spec.name) == "expert" else Q8_0


DEFAULT_RECIPE = "int4"
KEEP = "keep"

# The file types are llama.cpp's LLAMA_FTYPE_MOSTLY_*; 14 (Q4_K_S) says "mostly Q4_K".
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            DEFAULT_RECIPE,
            "experts in 4 bits (Q4_K), everything else in 8: the default",
            14,
            _experts_in(Q4_K),
        ),
        Recipe("int8", "everything in 8 bits (Q8_0)", 7, _experts_in(Q8_0)),
        Recipe("bf16", "as published, nothing lost", 32, _same(BF16)),
        Recipe("f16", "half precision, as llama-quantize's F16", 1, _same(F16)),
        Recipe("q8_0", "as llama-quantize's Q8_0", 7, _same(Q8_0)),
        Recipe("q4_0", "as llama-quantize's Q4_0: fast to convert", 2, _q4_0_mix),
        Recipe("q4_k_m", "as llama-quantize's Q4_K_M", 15, _q4_k_m_mix),
        Recipe(
            KEEP,
            "the checkpoint's own numbers: the default for w4a16 and its like",
            32,
            _same(BF16),
        ),
    )
}

# llama.cpp's LLAMA_FTYPE_MOSTLY_* of a file in which most numbers are of a type.
_FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q4_K": 14,
    "BF16": 32,
    "MXFP4": 38,
}


def keeping(types: Mapping[str, TensorType], parameters: Mapping[str, int]) -> Recipe:
    """``keep`` for a checkpoint whose tensors are kept in `types`, by GGUF name."""
    sizes: Counter[str] = Counter()
    for name, tensor_type in types.items():
        sizes[tensor_type.name] += parameters[name]
    most = sizes.most_common(1)[0][0]
    kept = RECIPES[KEEP]
    file_type = _FILE_TYPES.get(most, kept.file_type)
    return replace(kept, file_type=file_type, mix=lambda spec, model, counters: types[spec.name])
