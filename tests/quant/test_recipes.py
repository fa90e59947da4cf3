from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

from llama4_edge.errors import RecipeError
from llama4_edge.quant import RECIPES, TensorSpec, assign_types, recipe_named, type_named
from llama4_edge.quant.recipes import Assignment, file_type_of, keeping, llama_cpp_order
from llama4_edge.quant.types import TYPES

LAYER = {
    "attn_norm": (256,), "attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256),
    "attn_output": (256, 256), "ffn_norm": (256,), "ffn_gate_inp": (16, 256),
    "ffn_gate_exps": (16, 512, 256), "ffn_up_exps": (16, 512, 256), "ffn_down_exps": (16, 256, 512),
    "ffn_gate_shexp": (512, 256), "ffn_up_shexp": (512, 256), "ffn_down_shexp": (256, 512),
}  # fmt: skip


def model(layers: int = 8, *, tied: bool = False, row: int = 256) -> list[TensorSpec]:
    ends = [TensorSpec("token_embd.weight", (1024, row)), TensorSpec("output_norm.weight", (row,))]
    if not tied:
        ends.append(TensorSpec("output.weight", (1024, row)))
    return ends + [
        TensorSpec(f"blk.{layer}.{name}.weight", shape)
        for layer in range(layers)
        for name, shape in LAYER.items()
    ]


def types(
    recipe: str,
    tensors: list[TensorSpec],
    n_expert: int = 16,
    overrides: Iterable[tuple[str, str]] = (),
) -> dict[str, str]:
    layers = sum(".attn_norm." in spec.name for spec in tensors)
    assigned = assign_types(
        RECIPES[recipe],
        tensors,
        n_layer=layers,
        n_expert=n_expert,
        overrides=[(regex, type_named(name)) for regex, name in overrides],
    )
    assert [item.tensor for item in assigned] == tensors
    return {item.tensor.name: item.type.name for item in assigned}


@pytest.mark.parametrize("recipe", RECIPES)
def test_norms_and_routers_stay_in_f32(recipe: str) -> None:
    found = types(recipe, model())
    kept = {name for name, type_name in found.items() if type_name == "F32"}
    assert kept == {name for name in found if "_norm" in name or "gate_inp" in name}


def by_part(recipe: str) -> dict[str, str]:
    """The type of each part that has one, the same in all layers; a dense layer is there too."""
    dense = [TensorSpec(f"blk.0.ffn_{part}.weight", (512, 512)) for part in ("gate", "down")]
    found = types(recipe, [*model(), *dense])
    parts: dict[str, set[str]] = {}
    for name, kind in found.items():
        part = re.sub(r"blk\.\d+\.|\.weight", "", name)
        if kind != "F32":
            parts.setdefault(part, set()).add(kind)
    return {part: kind for part, (kind,) in parts.items()}


ENDS = ("token_embd", "output")
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
SHARED = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate", "ffn_down")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def test_int4_puts_experts_in_4_bits_shared_ones_in_6_and_the_rest_in_8() -> None:
    expected = dict.fromkeys((*ENDS, *ATTENTION), "Q8_0")
    assert by_part("int4") == {
        **expected, **dict.fromkeys(SHARED, "Q6_K"), **dict.fromkeys(EXPERTS, "Q4_K")
    }  # fmt: skip


def test_int3_puts_experts_in_3_bits_and_up_projections_in_2() -> None:
    expected = dict.fromkeys(ENDS, "Q6_K") | dict.fromkeys(ATTENTION, "Q8_0")
    expected |= dict.fromkeys(SHARED, "Q5_K") | dict.fromkeys(EXPERTS, "Q3_K")
    assert by_part("int3") == expected | {"ffn_up_exps": "Q2_K"}


def test_int8_puts_everything_in_8_bits() -> None:
    assert set(types("int8", model()).values()) == {"Q8_0", "F32"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # First and last eighth, and every third between: i < 2, i >= 14, (i - 2) % 3 == 2.
        (16, [0, 1, 4, 7, 10, 13, 14, 15]),
        (20, [0, 1, 4, 7, 10, 13, 16, 17, 18, 19]),
    ],
)
def test_q4_k_m_gives_more_bits_where_llama_cpp_does(layers: int, expected: list[int]) -> None:
    found = types("q4_k_m", model(layers))
    every = range(layers)
    values = [layer for layer in every if found[f"blk.{layer}.attn_v.weight"] == "Q6_K"]
    downs = [layer for layer in every if found[f"blk.{layer}.ffn_down_exps.weight"] == "Q6_K"]
    assert values == downs == expected
    assert found["output.weight"] == "Q6_K"
    assert found["token_embd.weight"] == "Q4_K"


def test_a_model_of_one_expert_has_its_down_projections_counted_one_by_one() -> None:
    found = types("q4_k_m", model(layers=4), n_expert=1)
    downs = [
        f"blk.{layer}.ffn_down_{kind}.weight" for layer in range(4) for kind in ("exps", "shexp")
    ]
    assert [found[name] for name in downs] == ["Q4_K"] * 2 + ["Q6_K"] * 6


@pytest.mark.parametrize(
    ("recipe", "n_expert", "expected"),
    [
        ("q4_0", 8, {"attn_k": "Q8_0", "attn_output": "Q4_0", "attn_q": "Q4_0", "attn_v": "Q8_0"}),
        ("q4_0", 9, {"attn_k": "Q4_0", "attn_output": "Q4_0", "attn_q": "Q4_0", "attn_v": "Q4_0"}),
        (
            "q4_k_m",
            8,
            {"attn_k": "Q8_0", "attn_output": "Q5_K", "attn_q": "Q4_K", "attn_v": "Q8_0"},
        ),
        (
            "q4_k_m",
            9,
            {"attn_k": "Q4_K", "attn_output": "Q4_K", "attn_q": "Q4_K", "attn_v": "Q6_K"},
        ),
    ],
)
def test_eight_experts_have_attention_in_more_bits_as_mixtral_had(
    recipe: str, n_expert: int, expected: dict[str, str]
) -> None:
    found = types(recipe, model(), n_expert)
    assert {name: found[f"blk.0.{name}.weight"] for name in expected} == expected


def test_a_vector_stays_in_f32_however_many_ones_are_before_it() -> None:
    shapes = [(256,), (1, 256), (1, 1, 256), (2, 256), (1, 2, 256)]
    found = [
        types("q8_0", [TensorSpec("blk.0.ffn_up_exps.weight", shape)])["blk.0.ffn_up_exps.weight"]
        for shape in shapes
    ]
    assert found == ["F32", "F32", "F32", "Q8_0", "Q8_0"]


def test_file_types_are_llama_cpps() -> None:
    import llama_cpp

    ours = {"int3": "Q3_K_S", "int4": "Q4_K_S", "int8": "Q8_0", "keep": "BF16"}
    for name, recipe in RECIPES.items():
        number = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{ours.get(name, name.upper())}")
        assert recipe.file_type == number
    mostly = {"F32": "ALL_F32", "Q3_K": "MOSTLY_Q3_K_S", "Q4_K": "MOSTLY_Q4_K_S"}
    mostly |= {"Q5_K": "MOSTLY_Q5_K_S", "MXFP4": "MOSTLY_MXFP4_MOE"}
    for name, tensor_type in TYPES.items():
        kept = keeping({"output.weight": tensor_type})
        assigned = [Assignment(TensorSpec("output.weight", (2, 256)), tensor_type)]
        number = getattr(llama_cpp, f"LLAMA_FTYPE_{mostly.get(name, f'MOSTLY_{name}')}")
        assert file_type_of(kept, assigned) == number


@pytest.mark.parametrize("name", ["imt4", 4])
def test_an_unknown_recipe_is_refused_and_a_slip_of_the_fingers_answered(name: Any) -> None:
    with pytest.raises(RecipeError, match=f"unknown recipe, found {name!r}, expected") as caught:
        recipe_named(name)
    assert (caught.value.hint or "") == ("Did you mean int4?" if name == "imt4" else "")


def test_a_tied_embedding_counts_as_the_output() -> None:
    assert types("q4_k_m", model(tied=True))["token_embd.weight"] == "Q6_K"
    assert types("q4_0", model(tied=True))["token_embd.weight"] == "Q6_K"


def test_layers_are_counted_by_number_not_by_spelling() -> None:
    names = [TensorSpec(f"blk.{layer}.attn_v.weight", (128, 256)) for layer in (10, 9, 2)]
    assert [spec.name[4:6] for spec in sorted(names, key=llama_cpp_order)] == ["2.", "9.", "10"]


def test_what_rows_cannot_hold_falls_to_a_named_type() -> None:
    tensors = [TensorSpec("blk.0.ffn_up_exps.weight", (4, 64, row)) for row in (256, 96, 48)]
    found = [assign_types(RECIPES["int4"], [spec], n_layer=4, n_expert=4)[0] for spec in tensors]
    assert [(item.type.name, item.wanted and item.wanted.name) for item in found] == [
        ("Q4_K", None), ("Q5_0", "Q4_K"), ("F16", "Q4_K"),
    ]  # fmt: skip


def test_the_first_override_that_matches_decides() -> None:
    found = types("q8_0", model(), overrides=[("blk.0.attn", "q6_k"), ("attn", "f16")])
    assert found["blk.0.attn_q.weight"] == "Q6_K"
    assert found["blk.1.attn_q.weight"] == "F16"
    assert found["blk.0.attn_norm.weight"] == "F32"


def test_an_override_that_never_decides_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"found 'blk\\\\.0'"):
        types("q8_0", model(), overrides=[("blk", "q6_k"), (r"blk\.0", "f16")])


def test_recipes_are_found_in_any_case() -> None:
    assert recipe_named("INT4") is RECIPES["int4"]
    assert [recipe.name for recipe in RECIPES.values()] == list(RECIPES)
