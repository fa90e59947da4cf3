"""Recipes: which type each tensor of a Llama 4 model gets.

Most recipes are llama.cpp's own, byte for byte: what llama-quantize makes of the bf16 file that
convert_hf_to_gguf.py writes (`mixes`). Two are ours: ``int8`` and ``int4`` put the routed experts,
nine tenths of Scout, into 8 or 4 bits and keep what every token passes through in 8. Others come
from files (`recipe_file`).

Knows tensors by GGUF name and shape only; nothing here reads or writes a number.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from ..errors import RecipeError, did_you_mean
from ..ranges import value_text
from ..untrusted import brief
from .mixes import (
    LLAMA_CPP,
    NEED_IMPORTANCE,
    Counters,
    Mix,
    ModelFacts,
    TensorSpec,
    layer_of,
    same,
    trimmed,
)
from .roles import role_of
from .types import BF16, F16, F32, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0, TYPES, TensorType

_SHOWN = 5  # patterns that a note lists
_WHOLE_NAME = re.compile(r"(?:token_embd|output|blk\.\d+\.\w+)\.weight", re.ASCII)


@dataclass(frozen=True)
class Assignment:
    """The type a tensor gets. `wanted` is set when its shape could not take the recipe's type."""

    tensor: TensorSpec
    type: TensorType
    wanted: TensorType | None = None


@dataclass(frozen=True)
class TypeRule:
    """The type of the tensors that `pattern` means.

    That is one tensor where it is spelled like one, ``blk.3.ffn_down_exps.weight``; otherwise those
    in whose names the regular expression is found.
    """

    pattern: str
    type: TensorType

    @property
    def is_name(self) -> bool:
        """Whether the pattern is the name of one tensor."""
        return _WHOLE_NAME.fullmatch(self.pattern) is not None

    def compiled(self) -> re.Pattern[str]:
        """What is searched for in names.

        Raises:
            RecipeError: the pattern is not a regular expression.
        """
        try:
            with warnings.catch_warnings():  # of what some day may mean something else
                warnings.simplefilter("ignore")
                return re.compile(
                    rf"\A{re.escape(self.pattern)}\Z" if self.is_name else self.pattern
                )
        except (re.error, RecursionError, OverflowError) as error:
            raise RecipeError(
                "a pattern of types is not a regular expression",
                found=f"{value_text(self.pattern)} ({error})",
            ) from None


@dataclass(frozen=True)
class Recipe:
    """A named policy: what the first of the `rules` that means a tensor says, else the `mix`.

    `file_type` is llama.cpp's number for it (``llama_ftype``); None is that of the type which most
    numbers get. Without an importance matrix, one that `needs_importance` is only planned with. A
    recipe that can be written to a file has its `text`, and one that was read from a
    file its `path`.
    """

    name: str
    summary: str
    file_type: int | None
    mix: Mix
    rules: tuple[TypeRule, ...] = ()
    needs_importance: bool = False
    text: str | None = None
    path: Path | None = None

    def first_layers(self, count: int) -> Recipe:
        """The same for a model of which only the first `count` layers are there."""
        rules = (rule for rule in self.rules if not rule.is_name or layer_of(rule.pattern) < count)
        return replace(self, rules=tuple(rules))


def assign_types(
    recipe: Recipe,
    tensors: Sequence[TensorSpec],
    *,
    n_layer: int,
    n_expert: int,
    overrides: Sequence[tuple[str, TensorType]] = (),
    has_importance: bool = False,
) -> list[Assignment]:
    """Give each of `tensors` its type, in the order given.

    Args:
        recipe: the policy.
        tensors: the whole model's, since some rules count tensors.
        n_layer: layers of the model.
        n_expert: routed experts in a layer.
        overrides: (regex, type) pairs; the first whose regex is found in a tensor's name decides,
            as with llama-quantize's ``--tensor-type``. Norms, the router and 1-D tensors stay F32.
        has_importance: whether an importance matrix is given, on which some rules depend.

    Raises:
        RecipeError: a regex that is none, or that finds no tensor it may type; or the recipe names
            a tensor that there is not.
    """
    _check_names(recipe, tensors)
    rules = [(rule.compiled(), rule.type) for rule in recipe.rules]
    compiled = [(_compiled(pattern), tensor_type) for pattern, tensor_type in overrides]
    unused = {pattern.pattern for pattern, _ in compiled}
    model = ModelFacts(
        n_layer=n_layer,
        n_expert=n_expert,
        attention_values=sum(".attn_v.weight" in spec.name for spec in tensors),
        queries_per_key=_queries_per_key(tensors),
        tied=all(spec.name != "output.weight" for spec in tensors),
        has_importance=has_importance or recipe.needs_importance,
    )
    counters = Counters()
    assigned: dict[str, Assignment] = {}
    for spec in sorted(tensors, key=llama_cpp_order):
        if not is_typed(spec):
            assigned[spec.name] = Assignment(spec, F32)
            continue
        found = next((item for item in compiled if item[0].search(spec.name)), None)
        if found is not None:
            unused.discard(found[0].pattern)
        else:
            found = next((item for item in rules if item[0].search(spec.name)), None)
        wanted = recipe.mix(spec, model, counters) if found is None else found[1]
        assigned[spec.name] = _fit(spec, wanted)
    if unused:
        raise RecipeError(
            "types matches no tensor whose type can be chosen",
            found=", ".join(repr(pattern) for pattern in sorted(unused)),
            hint="`llama4 inspect SOURCE --tensors` lists the names; norms and routers stay F32.",
        )
    return [assigned[spec.name] for spec in tensors]


def _compiled(pattern: str) -> re.Pattern[str]:
    """An override's regex, which is one even where it is spelled like a name."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            "a pattern of types is not a regular expression", found=f"{error.pattern!r} ({error})"
        ) from None


def _check_names(recipe: Recipe, tensors: Sequence[TensorSpec]) -> None:
    """Refuse a recipe that was made for another model.

    Raises:
        RecipeError: it names a tensor that there is not, or one whose type is not chosen.
    """
    names = [rule.pattern for rule in recipe.rules if rule.is_name]
    specs = {spec.name: spec for spec in tensors}
    absent = [name for name in names if name not in specs]
    if absent:
        more = f" and {len(absent) - 1:,} more" if len(absent) > 1 else ""
        raise RecipeError(
            f"recipe {recipe.name} was made for another model",
            found=f"{absent[0]}{more}, of which this one has none",
            expected="names of its tensors, or regular expressions",
            hint="`llama4 inspect SOURCE --tensors` lists the names.",
        )
    fixed = [name for name in names if not is_typed(specs[name])]
    if fixed:
        raise RecipeError(
            f"recipe {recipe.name} gives a type to a tensor whose type cannot be chosen",
            found=fixed[0],
            hint="Leave it out: norms and routers stay F32.",
        )


def recipe_notes(recipe: Recipe, tensors: Sequence[TensorSpec]) -> list[str]:
    """What is to be said about a recipe of somebody's, and the tensors that it was applied to."""
    left = {spec.name for spec in tensors if is_typed(spec)}
    names, unused, late = sorted(left), [], []
    for rule in recipe.rules:
        search = rule.compiled().search
        found = {name for name in names if search(name)}
        if not found:
            unused.append(rule.pattern)
        elif not found & left:
            late.append(rule.pattern)
        left -= found
    notes = [f"types as {recipe.path} says: {recipe.summary}"] if recipe.path else []
    for patterns, reason in (
        (unused, "found in no tensor"),
        (late, "found only in tensors that earlier patterns decide"),
    ):
        if patterns:
            shown = ", ".join(map(brief, patterns[:_SHOWN]))
            more = ", …" if len(patterns) > _SHOWN else ""
            notes.append(f"{reason}, of recipe {recipe.name}: {shown}{more}")
    return notes


def file_type_of(recipe: Recipe, assignments: Sequence[Assignment]) -> int:
    """llama.cpp's number for a file with these types: the recipe's, or that of most numbers."""
    if recipe.file_type is not None:
        return recipe.file_type
    sizes: Counter[str] = Counter()
    for assigned in assignments:
        sizes[assigned.type.name] += prod(assigned.tensor.shape)
    return _FILE_TYPES[sizes.most_common(1)[0][0]]


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
            expected=f"one of {', '.join(RECIPES)}, or a recipe file",
            hint=did_you_mean(name, RECIPES) if isinstance(name, str) else None,
        )
    return recipe


def llama_cpp_order(spec: TensorSpec) -> tuple[int, str]:
    """Sort key of llama-quantize, which counts tensors by layer and then by name.

    Source: ``weight_name_comparer`` in llama.cpp's llama-model-loader.h.
    """
    return (layer_of(spec.name), spec.name)


def is_typed(spec: TensorSpec) -> bool:
    """Whether recipes choose the type of a tensor: not of vectors, norms and the router.

    llama.cpp never quantizes those.
    """
    return (
        len(trimmed(spec.shape)) >= 2
        and spec.name.endswith("weight")
        and role_of(spec.name) not in ("norm", "router")
    )


def _queries_per_key(tensors: Sequence[TensorSpec]) -> int:
    """How many of the first layer's heads share a key, as ``n_gqa`` says."""
    rows = {spec.name: spec.shape[-2] for spec in tensors if len(spec.shape) > 1}
    queries, keys = (rows.get(f"blk.0.attn_{part}.weight", 1) for part in "qk")
    return queries // keys


def check_importance(assignments: Sequence[Assignment], weighed: Container[str]) -> None:
    """Refuse types of so few bits that they need an importance matrix, where there is none.

    Args:
        assignments: the model's.
        weighed: the names of the tensors that an importance matrix is given for.

    Raises:
        RecipeError: a tensor that is not among them has such a type.
    """
    absent = [
        assigned
        for assigned in assignments
        if assigned.type.needs_importance and assigned.tensor.name not in weighed
    ]
    if absent:
        first, more = absent[0], len(absent) - 1
        raise RecipeError(
            f"{first.type.name.lower()} needs an importance matrix",
            found=f"none for {first.tensor.name}" + (f" and {more:,} more" if more else ""),
            expected="activation statistics of each tensor of that type",
            hint="Give the file that `llama4 calibrate` makes: imatrix=FILE",
        )


# Where a row is not a whole number of blocks, llama.cpp takes a type of nearly the same bits with
# blocks of 32, and F16 where even that does not fit. Source: tensor_type_fallback, llama-quant.cpp.
_FALLBACK = {
    "IQ1_S": "IQ4_NL",
    "IQ1_M": "IQ4_NL",
    "IQ2_XXS": "IQ4_NL",
    "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL",
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


def _by_role(
    others: TensorType, *, expert_up: TensorType | None = None, **types: TensorType
) -> Mix:
    """Ours: the types of some roles, and that of everything else."""

    def mix(spec: TensorSpec, model: ModelFacts, counters: Counters) -> TensorType:
        if expert_up is not None and ".ffn_up_exps." in spec.name:
            return expert_up
        return types.get(role_of(spec.name), others)

    return mix


def _as_llama_cpp(name: str, summary: str = "") -> Recipe:
    file_type, base, mix = LLAMA_CPP[name]
    bits = f"as llama-quantize's {name}: {base.bits_per_weight:.3g} bits for most"
    needs = name in NEED_IMPORTANCE
    summary = summary or (f"{bits}, with --imatrix" if needs else bits)
    return Recipe(name.lower(), summary, file_type, mix, needs_importance=needs)


DEFAULT_RECIPE = "int4"
KEEP = "keep"

# Of llama.cpp's, more bits first.
_BY_BITS = (
    *("Q8_0", "Q6_K", "Q5_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_1", "Q4_K_M", "Q4_K_S", "Q4_0"),
    *("IQ4_NL", "IQ4_XS", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS"),
    *("IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
)

# The file types are llama.cpp's LLAMA_FTYPE_MOSTLY_*; 14 (Q4_K_S) says "mostly Q4_K".
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            DEFAULT_RECIPE,
            "experts in 4 bits, shared ones in 6, all else in 8: the default",
            14,
            _by_role(Q8_0, expert=Q4_K, shared_expert=Q6_K, dense_ffn=Q6_K),
        ),
        Recipe(
            "int3",
            "experts in 3 bits, all else in 5 to 8: for 64 GB of memory",
            11,
            _by_role(
                Q6_K,
                expert=Q3_K,
                expert_up=Q2_K,
                shared_expert=Q5_K,
                dense_ffn=Q5_K,
                attention=Q8_0,
            ),
        ),
        Recipe("int8", "everything in 8 bits (Q8_0)", 7, same(Q8_0)),
        _as_llama_cpp("BF16", "as published, nothing lost"),
        _as_llama_cpp("F16", "half precision, as llama-quantize's F16"),
        *map(_as_llama_cpp, _BY_BITS),
        Recipe(
            KEEP,
            "the checkpoint's own numbers: the default for w4a16 and its like",
            32,
            same(BF16),
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
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ2_S": 28,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "MXFP4": 38,
}


def keeping(types: Mapping[str, TensorType]) -> Recipe:
    """``keep`` for a checkpoint whose tensors are kept in `types`, by GGUF name."""
    return replace(
        RECIPES[KEEP], file_type=None, mix=lambda spec, model, counters: types[spec.name]
    )
