from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama4_edge.errors import OutputError, RecipeError, SettingError
from llama4_edge.quant import RECIPES, TensorSpec, as_recipe, assign_types, type_named
from llama4_edge.quant.recipe_file import make_recipe, read_recipe, write_recipe
from llama4_edge.quant.recipes import Recipe, file_type_of, recipe_notes

MODEL = [
    TensorSpec("token_embd.weight", (1024, 256)),
    TensorSpec("output.weight", (1024, 256)),
    *(
        TensorSpec(f"blk.{layer}.{name}.weight", shape)
        for layer in range(12)
        for name, shape in {
            "attn_norm": (256,), "attn_q": (256, 256), "attn_output": (256, 256),
            "ffn_gate_inp": (16, 256), "ffn_down_exps": (16, 256, 512),
        }.items()
    ),
]  # fmt: skip

TYPES = [
    ("blk.1.ffn_down_exps.weight", "q6_k"),
    ("output.weight", "f16"),
    (r"blk\.[13]\.ffn", "Q4_0"),
    ("ffn_(down|up)_exps", "q3_k"),
]


def typed(recipe: Recipe, **settings: Any) -> dict[str, str]:
    assigned = assign_types(recipe, MODEL, n_layer=12, n_expert=16, **settings)
    return {item.tensor.name: item.type.name for item in assigned}


def described(**changes: Any) -> dict[str, Any]:
    whole = {"version": 1, "name": "mine", "types": [["ffn", "q4_k"]], "default": "q8_0"}
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(described(**changes)))
    return path


def test_the_first_pattern_that_means_a_tensor_decides() -> None:
    found = typed(make_recipe("mine", TYPES, "q5_k"))
    assert found["blk.1.ffn_down_exps.weight"] == "Q6_K"
    assert found["blk.3.ffn_down_exps.weight"] == "Q4_0"
    assert found["blk.11.ffn_down_exps.weight"] == "Q3_K"
    assert found["blk.1.attn_q.weight"] == found["token_embd.weight"] == "Q5_K"
    assert found["blk.1.attn_norm.weight"] == found["blk.1.ffn_gate_inp.weight"] == "F32"


def test_what_is_spelled_like_a_tensor_is_that_one_alone() -> None:
    found = typed(make_recipe("mine", TYPES, "q5_k"))
    assert found["output.weight"] == "F16"
    assert found["blk.0.attn_output.weight"] == "Q5_K"
    as_regex = typed(make_recipe("mine", [("output.weigh", "f16")], "q5_k"))
    assert as_regex["blk.0.attn_output.weight"] == as_regex["output.weight"] == "F16"


def test_types_decide_before_a_recipe_file() -> None:
    overrides = [("ffn_down_exps", type_named("q2_k"))]
    found = typed(make_recipe("mine", TYPES, "q5_k"), overrides=overrides)
    assert found["blk.1.ffn_down_exps.weight"] == "Q2_K"


def test_what_is_written_is_read_again_and_written_in_the_same_bytes(tmp_path: Path) -> None:
    notes = {"budget": 48_000_000_000, "by": "für uns", "error": {"b": 0.25, "a": [1, None]}}
    recipe = make_recipe("mine", TYPES, "Q5_K", summary="48 GB", notes=notes)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_recipe(recipe, first)
    again = read_recipe(first)
    write_recipe(again, second)
    assert first.read_bytes() == second.read_bytes()
    assert again.path == first and (again.name, again.summary) == ("mine", "48 GB")
    assert typed(again) == typed(recipe)
    assert json.loads(first.read_text()) == {
        "version": 1, "name": "mine", "summary": "48 GB", "default": "q5_k", "notes": notes,
        "types": [[pattern, name.lower()] for pattern, name in TYPES],
    }  # fmt: skip
    assert '    ["output.weight", "f16"],\n' in first.read_text()


def test_the_notes_order_does_not_matter() -> None:
    one = make_recipe("mine", [], "q8_0", notes={"a": 1, "b": 2})
    other = make_recipe("mine", [], "q8_0", notes={"b": 2, "a": 1})
    assert one.text == other.text


@pytest.mark.parametrize("name", ["mine.json", "./q8_0", "mine"])
def test_a_recipe_is_meant_by_its_name_or_its_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / name)
    assert as_recipe(name).name == "mine"
    assert as_recipe(Path(name)).name == "mine"
    recipe = read_recipe(name)
    assert as_recipe(recipe) is recipe


def test_a_recipe_s_name_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "q8_0")
    assert as_recipe("Q8_0") is RECIPES["q8_0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tpyes": []}, "has an unknown entry, found 'tpyes'"),
        ({"version": 2}, "is a recipe file of another version, found 2, expected 1"),
        ({"version": ...}, "has no version"),
        ({"version": True}, "has an invalid version, found True"),
        ({"name": ...}, "has no name"),
        ({"name": "a/b"}, "name cannot be a recipe's, found 'a/b'"),
        ({"name": "INT4"}, "name is that of another recipe, found INT4"),
        ({"summary": "a\nb"}, "summary cannot be shown"),
        ({"summary": "\x1b[2J"}, "summary cannot be shown"),
        ({"default": "q4_9"}, "default has an unknown tensor type, found 'q4_9', expected one of"),
        ({"default": ...}, "has no default"),
        ({"default": 4}, "has an invalid default, found 4, expected a string"),
        ({"types": {"ffn": "q4_k"}}, "has an invalid types, found an object of 1 entries"),
        ({"types": [["ffn", "q4_k", "x"]]}, r"types\[0\] is not a pair, found a list of 3"),
        ({"types": [["ffn", "q4_k"], "ffn"]}, r"types\[1\] is not a pair, found 'ffn'"),
        ({"types": [["ffn", 4]]}, r"types\[0\] is not a pair"),
        ({"types": [["ffn", "iq5_s"]]}, r"types\[0\] has an unknown tensor type, found 'iq5_s'"),
        ({"types": [["ffn(", "q4_k"]]}, r"types\[0\] is not a regular expression"),
        ({"types": [["", "q4_k"]]}, r"types\[0\] is not a pattern .* 1 to 1000 letters"),
        ({"types": [["x" * 1001, "q4_k"]]}, r"types\[0\] is not a pattern .* 1 to 1000 letters"),
        ({"types": [["(f+)+$", "q4_k"]]}, r"found '\(f\+\)\+\$', expected \*, \+ and \{\} behind"),
        ({"types": [["(f|ff){9}x", "q4_k"]]}, "behind a single letter or class"),
        ({"types": [[".*.*.*.*.*x", "q4_k"]]}, r"expected less of \*, \+, \{\}, \? and \|"),
        ({"types": [["f?" * 25 + "f" * 25, "q4_k"]]}, r"expected less of \*, \+, \{\}, \? and \|"),
        ({"types": [["(f|ff)" * 25, "q4_k"]]}, r"expected less of \*, \+, \{\}, \? and \|"),
        ({"types": [[".*.*.*a", "q4_k"]] * 40}, "types have too many patterns that must be tried"),
        ({"types": [[r"(f)\1", "q4_k"]]}, "expected no references to groups"),
        ({"types": [["(?=f)", "q4_k"]]}, "expected no references to groups"),
        ({"notes": 3}, "has an invalid notes, found 3, expected an object"),
    ],
)
def test_a_file_that_is_none_is_refused_by_what_is_wrong(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "mine.json", **changes)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert caught.value.problem.startswith(str(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"[]", "is damaged, found a list of 0, expected a JSON object"),
        (b'{"version": 1, "version": 1}', "is not JSON, found two entries 'version'"),
        (b"\xff", "is not UTF-8 text"),
        (b"[" * 100_000, "is nested too deeply"),
        (b" " * ((4 << 20) + 1), "is too large"),
        (json.dumps(described(notes={"x": "y"})).replace('"y"', "1e999").encode(), "notes cannot"),
        (json.dumps(described()).replace("mine", "\\ud800").encode(), "is not Unicode"),
    ],
)
def test_damaged_files_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nothing")])
def test_what_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    make(path)
    with pytest.raises(RecipeError, match=r"is not a regular file|symbolic link|cannot be read"):
        read_recipe(path)
    with pytest.raises(RecipeError, match="does not exist"):
        as_recipe(str(tmp_path / "other.json"))


def test_classes_and_escapes_may_hold_any_letters() -> None:
    recipe = make_recipe(
        "mine", [(r"blk\.[0-9+*{(]\.\w+_exps\.", "q4_0"), (r"\+\*\)\*", "f16")], "f32"
    )
    assert typed(recipe)["blk.9.ffn_down_exps.weight"] == "Q4_0"
    assert typed(recipe)["blk.10.ffn_down_exps.weight"] == "F32"


def test_a_recipe_of_another_model_is_refused_by_what_it_names() -> None:
    names = [(f"blk.{layer}.ffn_down_exps.weight", "q4_k") for layer in (11, 12, 13)]
    with pytest.raises(RecipeError) as caught:
        typed(make_recipe("mine", names, "q8_0"))
    assert str(caught.value).startswith(
        "recipe mine was made for another model, found blk.12.ffn_down_exps.weight and 1 more, of"
    )
    with pytest.raises(RecipeError, match=r"cannot be chosen, found blk.3.ffn_gate_inp.weight"):
        typed(make_recipe("mine", [("blk.3.ffn_gate_inp.weight", "q4_k")], "q8_0"))
    cut = make_recipe("mine", names, "q8_0").first_layers(12)
    assert typed(cut)["blk.11.ffn_down_exps.weight"] == "Q4_K"


def test_a_pattern_that_is_found_nowhere_is_noted(tmp_path: Path) -> None:
    recipe = make_recipe("mine", [("ffn_up", "q4_k"), ("attn_norm", "q4_k")], "q8_0")
    assert recipe_notes(recipe, MODEL) == ["found in no tensor, of recipe mine: ffn_up, attn_norm"]
    assert recipe_notes(RECIPES["int4"], MODEL) == []


def test_a_pattern_that_decides_nothing_is_noted() -> None:
    name = "blk.3.ffn_down_exps.weight"
    types = [("_exps", "q3_k"), ("ffn_down_exps", "q4_k"), (name, "q6_k"), ("attn_q", "q4_k")]
    recipe = make_recipe("mine", types, "q8_0")
    assert typed(recipe)[name] == "Q3_K"
    assert recipe_notes(recipe, MODEL) == [
        f"found only in tensors that earlier patterns decide, of recipe mine: ffn_down_exps, {name}"
    ]


def test_a_file_s_type_is_that_of_most_numbers() -> None:
    recipe = make_recipe("mine", [("ffn", "iq4_xs")], "q8_0")
    assigned = assign_types(recipe, MODEL, n_layer=12, n_expert=16)
    assert file_type_of(recipe, assigned) == 30
    assert file_type_of(RECIPES["q4_k_m"], assigned) == 15


def test_a_recipe_that_counts_tensors_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="recipe q4_k_m cannot be written to a file"):
        write_recipe(RECIPES["q4_k_m"], tmp_path / "out.json")
    with pytest.raises(OutputError, match="cannot be written, found No such file or directory"):
        write_recipe(make_recipe("mine", [], "q8_0"), tmp_path / "nowhere" / "out.json")
    with pytest.raises(SettingError, match="recipe is of the wrong type"):
        write_recipe("int4", tmp_path / "out.json")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_no_file_but_a_recipe_is_replaced(tmp_path: Path) -> None:
    recipe = make_recipe("mine", [], "q8_0")
    path, model = tmp_path / "mine.json", tmp_path / "model.gguf"
    write_recipe(recipe, path)
    write_recipe(make_recipe("other", [], "q4_k"), path)
    assert read_recipe(path).name == "other"
    model.write_bytes(b"GGUF and years of work")
    for taken in (model, tmp_path):
        with pytest.raises(OutputError, match=r"exists, and is not a recipe file\. Give another"):
            write_recipe(recipe, taken)
    assert model.read_bytes() == b"GGUF and years of work"


def test_patterns_without_end_are_refused(tmp_path: Path) -> None:
    names = [(f"blk.{layer}.ffn", "q4_k") for layer in range(5000)]
    with pytest.raises(RecipeError, match="too many patterns, found 5,000, expected at most 4,096"):
        make_recipe("mine", names, "q8_0")
    assert len(make_recipe("mine", names[:4096], "q8_0").rules) == 4096
