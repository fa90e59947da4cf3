"""Whatever a recipe file holds, it is a recipe that can be written and applied, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge.errors import RecipeError
from llama4_edge.quant import TensorSpec, assign_types
from llama4_edge.quant.recipe_file import make_recipe, read_recipe
from tests.fuzzing import damaged_json, efforts, fuzz

SOUND = {
    "version": 1,
    "name": "mine",
    "summary": "48 GB",
    "types": [["blk.0.ffn_down_exps.weight", "q6_k"], [r"blk\.[0-3]\.ffn_.*_exps", "q4_k"]],
    "default": "q8_0",
    "notes": {"budget": 48, "by": ["us"]},
}
MODEL = [
    TensorSpec(f"blk.{layer}.{name}.weight", (4, 256, 256))
    for layer in range(4)
    for name in ("attn_q", "ffn_down_exps", "ffn_gate_inp")
]
# Long enough that a search which tries every way to match would not end.
LONG = [TensorSpec(f"blk.0.{'f' * 46}_exps.weight", (256, 256))]


@efforts
def test_a_damaged_file_is_refused_or_means_what_it_is_written_as(
    effort: settings, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.json"

    def check(value: Any) -> None:
        path.write_text(json.dumps(value), encoding="utf-8")
        try:
            recipe = read_recipe(path)
        except RecipeError as error:
            assert str(path) in error.problem
            return
        assert recipe.text is not None
        path.write_text(recipe.text, encoding="utf-8")
        again = read_recipe(path)
        assert (again.text, again.rules, again.name) == (recipe.text, recipe.rules, recipe.name)
        try:
            assign_types(recipe, [*MODEL, *LONG], n_layer=4, n_expert=4)
        except RecipeError as error:
            assert "another model" in error.problem or "cannot be chosen" in error.problem

    fuzz(check, damaged_json(SOUND), effort)


@efforts
def test_no_pattern_takes_long_to_search_for(effort: settings) -> None:
    def check(pattern: str) -> None:
        try:
            recipe = make_recipe("mine", [(pattern, "q4_0")], "q8_0")
        except RecipeError:
            return
        assign_types(recipe, [] if recipe.rules[0].is_name else LONG, n_layer=1, n_expert=1)

    parts = st.sampled_from([*"f.()|*+?^$Y", "[fY]", r"\w", "(?:", "{2,9}", "{3}"])
    fuzz(check, st.lists(parts, max_size=14).map("".join), effort)


@pytest.mark.parametrize(
    "pattern", ["f*f*f*Y", "[f]+[f]+[f]+$Y", "(f|ff|fff)?f*f*Y", "(f|ff)" * 18 + "Y"]
)
def test_the_slowest_patterns_that_are_taken_end(pattern: str) -> None:
    recipe = make_recipe("mine", [(pattern, "q4_0")], "q8_0")
    found = assign_types(recipe, LONG, n_layer=1, n_expert=1)
    assert [one.type.name for one in found] == ["Q8_0"]
