"""A recipe file is taken wherever a recipe's name is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama4_edge import convert, make_recipe, plan, read_recipe, write_recipe
from llama4_edge.convert import output, slabs
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.errors import OutputError, RecipeError
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeCheckpoint

from .conftest import SMALL
from .test_resume import interrupted

TYPES = [("blk.1.ffn_down_exps.weight", "f16"), ("ffn_up_exps", "q5_0"), ("attn_[kv]", "q4_1")]


def write(path: Path, types: list[tuple[str, str]] = TYPES, **settings: Any) -> Path:
    write_recipe(make_recipe("mine", types, "q8_0", **settings), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(SMALL)


def test_its_types_are_those_of_the_file_which_says_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(Path("types.json"), summary="for the test", notes={"by": "us"})
    report = convert(checkpoint, recipe=file, vision=False)
    assert report.output == f"{checkpoint.name}-mine.gguf"
    assert report.recipe == "mine"
    assert "types as types.json says: for the test" in report.notes
    written = read_gguf(report.output)
    types = {tensor.name: tensor.type for tensor in written.tensors}
    assert types["blk.1.ffn_down_exps.weight"] == "F16"
    assert types["blk.0.ffn_up_exps.weight"] == "Q5_0"
    assert types["blk.0.attn_v.weight"] == "Q4_1"
    assert types["blk.0.attn_output.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert written.metadata["llama4_edge.recipe"] == "mine"
    assert written.metadata["llama4_edge.recipe_file"] == file.read_text()
    again = Path("again.json")
    again.write_text(str(written.metadata["llama4_edge.recipe_file"]))
    convert(checkpoint, "again.gguf", recipe="again.json", vision=False)
    assert Path("again.gguf").read_bytes() == Path(report.output).read_bytes()


def test_from_a_gguf_the_file_is_that_of_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path / "types.json"))
    bf16 = convert(checkpoint, tmp_path / "bf16.gguf", recipe="bf16", vision=False).output
    ours = convert(bf16, tmp_path / "ours.gguf", recipe=recipe).output
    theirs = convert(checkpoint, tmp_path / "theirs.gguf", recipe=recipe, vision=False).output
    assert Path(ours).read_bytes() == Path(theirs).read_bytes()
    plain = convert(ours, tmp_path / "plain.gguf", recipe="bf16", requantize=True).output
    assert "llama4_edge.recipe_file" not in read_gguf(plain).metadata


def test_a_changed_file_is_noticed_by_a_conversion_that_goes_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs, "SLAB_BYTES", 40_000)
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 40_000)
    monkeypatch.setattr(output, "COMMIT_SECONDS", 0.0)
    file, target = write(tmp_path / "types.json"), tmp_path / "out.gguf"
    interrupted(checkpoint, target, recipe=str(file))
    write(file, [*TYPES, ("blk.1.attn_q.weight", "f16")])
    with pytest.raises(OutputError, match="changed since: recipe, types, config or tokenizer"):
        convert(checkpoint, target, recipe=file)
    write(file)
    report = convert(checkpoint, target, recipe=file)
    assert 0 < report.resumed_at < 1
    whole = convert(checkpoint, tmp_path / "whole.gguf", recipe=file)
    assert target.read_bytes() == Path(whole.output).read_bytes()


def test_a_recipe_file_is_not_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "types.json")
    before = file.read_bytes()
    with pytest.raises(OutputError, match=r"types\.json is a file that is read"):
        convert(checkpoint, file, recipe=file, force=True)
    assert file.read_bytes() == before


def test_one_of_another_model_is_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "types.json", [("blk.40.attn_q.weight", "q4_k")])
    with pytest.raises(RecipeError, match="recipe mine was made for another model"):
        convert(checkpoint, tmp_path / "out.gguf", recipe=file)
    assert [path.name for path in tmp_path.iterdir()] == ["types.json"]


def test_plan_and_a_blueprint_count_with_it(tmp_path: Path) -> None:
    file = write(tmp_path / "types.json", [("blk.47.attn_q.weight", "f16"), ("exps", "q3_k")])
    result = plan("scout", recipe=file, gpus="h100")
    assert result.recipe == str(file)
    weights = sum(device.memory.weights for device in result.devices)
    assert 45e9 < weights < 56e9
    assert blueprint("scout", recipe=file, layers=4).recipe == "mine"
