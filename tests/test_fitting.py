"""`llama4_edge.fit` and conversions that fit: budgets kept, recipes that repeat, reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llama4_edge
from demo.training import MODEL
from llama4_edge import Fit, Progress, fit
from llama4_edge.errors import ModelFileError, OutputError, RecipeError, SettingError
from llama4_edge.measure.choice import CANDIDATES
from llama4_edge.quant.importance import Activations, Importance
from llama4_edge.quant.importance_file import importance_bytes
from llama4_edge.runtime.files.gguf_file import read_gguf


def types_in(path: Path) -> dict[str, str]:
    return {one.name: one.type for one in read_gguf(path).tensors}


@pytest.fixture(scope="module")
def four_bits(scout_checkpoint: Path) -> Fit:
    return fit(scout_checkpoint, target_bpw=4.6)


def test_the_bits_are_met_and_nearly_used_up(four_bits: Fit) -> None:
    assert 4.5 < four_bits.bits_per_weight <= 4.6
    assert four_bits.gap == 0
    assert four_bits.cost == pytest.approx(sum(one.cost for one in four_bits.tensors))
    assert {one.type for one in four_bits.tensors} <= set(CANDIDATES)


def test_types_are_spent_where_errors_cost_most(four_bits: Fit) -> None:
    first, *_, last = four_bits.reasons
    assert [one.worth for one in four_bits.reasons] == sorted(
        (one.worth for one in four_bits.reasons), reverse=True
    )
    assert first.worth > 1 > last.worth
    assert first.bits_per_weight > last.bits_per_weight
    assert f"{first.worth:.2g} times the average" in first.why
    assert sum(one.bytes for one in four_bits.reasons) == sum(it.bytes for it in four_bits.tensors)


def test_a_recipe_file_gives_the_bytes_of_the_fit(
    scout_checkpoint: Path, four_bits: Fit, tmp_path: Path
) -> None:
    four_bits.save(tmp_path / "fit.json")
    recipe = tmp_path / "fit.json"
    report = llama4_edge.convert(scout_checkpoint, tmp_path / "a.gguf", recipe=recipe, vision=False)
    llama4_edge.convert(scout_checkpoint, tmp_path / "b.gguf", target_bpw=4.6, vision=False)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert report.bits_per_weight == pytest.approx(four_bits.bits_per_weight)
    assert (tmp_path / "a.gguf").stat().st_size == four_bits.bytes
    chosen = {one.name: one.type for one in four_bits.tensors}
    assert {name: type for name, type in types_in(tmp_path / "a.gguf").items() if name in chosen} \
        == chosen  # fmt: skip
    notes = json.loads(recipe.read_text())["notes"]
    assert notes["asked"] == "4.6 bits a weight" and notes["imatrix"] is None
    assert notes["expected_kl"] == pytest.approx(four_bits.cost, rel=1e-5)


def test_the_same_inputs_give_the_same_recipe(scout_checkpoint: Path, four_bits: Fit) -> None:
    again = fit(scout_checkpoint, target_bpw=4.6, threads=1)
    assert again.recipe.text == four_bits.recipe.text
    assert again.tensors == four_bits.tensors and again.reasons == four_bits.reasons
    assert (again.bytes, again.cost) == (four_bits.bytes, four_bits.cost)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_size_is_kept_with_header_and_recipe(
    scout_checkpoint: Path, scout_bf16: Path, tmp_path: Path, share: float
) -> None:
    size = int(scout_bf16.stat().st_size * share)
    found = fit(scout_checkpoint, target_size=size)
    llama4_edge.convert(scout_checkpoint, tmp_path / "x.gguf", recipe=found.recipe, vision=False)
    assert size * 0.97 < (tmp_path / "x.gguf").stat().st_size == found.bytes <= size


def test_sizes_in_words_are_those_of_files(scout_checkpoint: Path, scout_bf16: Path) -> None:
    size = scout_bf16.stat().st_size // 2
    words = fit(scout_checkpoint, target_size=f"{size / 1e6:.3f}MB")
    assert words.asked.endswith("MB") and words.bytes <= size
    for text in ("", "45", "GB", "-1GB", "45 gigabytes", "0GB", "1e3GB"):
        with pytest.raises(SettingError, match="target_size is outside its range"):
            fit(scout_checkpoint, target_size=text)


@pytest.mark.parametrize("source", ["scout_checkpoint", "scout_bf16"])
def test_a_target_that_exists_is_refused_before_anything_is_measured(
    source: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path: Path = request.getfixturevalue(source)
    steps: list[Progress] = []

    def refused(target: Path) -> str:
        with pytest.raises(OutputError) as caught:
            llama4_edge.convert(path, target, target_bpw=4.6, progress=steps.append)
        return str(caught.value)

    (tmp_path / "a.gguf").write_bytes(b"precious")
    assert "a.gguf exists" in refused(tmp_path / "a.gguf")
    (tmp_path / f"{path.stem.removesuffix('-bf16')}-fit-4.6-bits-a-weight.gguf").touch()
    assert "fit-4.6-bits-a-weight.gguf exists" in refused(tmp_path)
    assert "absent does not exist" in refused(tmp_path / "absent" / "a.gguf")
    (tmp_path / "b.gguf.partial").touch()
    assert "is not an interrupted conversion's" in refused(tmp_path / "b.gguf")
    if source == "scout_checkpoint":
        (tmp_path / "mmproj-c-f16.gguf").touch()
        assert "mmproj-c-f16.gguf exists" in refused(tmp_path / "c.gguf")
    assert steps == [] and (tmp_path / "a.gguf").read_bytes() == b"precious"
    fits: list[Fit] = []
    llama4_edge.convert(path, tmp_path / "a.gguf", target_bpw=4.6, force=True, on_fit=fits.append)
    assert (tmp_path / "a.gguf").stat().st_size == fits[0].bytes


def test_a_pair_that_was_stopped_between_its_two_names_gets_the_other(
    scout_checkpoint: Path, tmp_path: Path
) -> None:
    target, rename = tmp_path / "o.gguf", Path.replace

    def die(self: Path, to: Path) -> Path:
        if self.name == "o.gguf.partial":
            raise KeyboardInterrupt
        return rename(self, to)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", die)
        llama4_edge.convert(scout_checkpoint, target, target_bpw=4.6)
    assert (tmp_path / "mmproj-o-f16.gguf").exists() and not target.exists()
    assert llama4_edge.convert(scout_checkpoint, target, target_bpw=4.6).resumed_at == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["mmproj-o-f16.gguf", "o.gguf"]
    steps: list[Progress] = []
    with pytest.raises(OutputError, match=r"o\.gguf exists"):
        llama4_edge.convert(scout_checkpoint, target, target_bpw=4.6, progress=steps.append)
    assert steps == []


def test_parts_of_other_numbers_are_in_nobodys_way(
    scout_checkpoint: Path, four_bits: Fit, tmp_path: Path
) -> None:
    """The fewest bits, which stand for the types until these are chosen, would be one file."""
    (tmp_path / "o.gguf").write_bytes(b"precious")
    report = llama4_edge.convert(
        scout_checkpoint, tmp_path / "o.gguf", target_bpw=4.6, vision=False,
        split_size=sum(one.bytes for one in four_bits.tensors) * 9 // 10,
    )  # fmt: skip
    assert [Path(one).name for one in report.outputs] == [
        "o-00001-of-00002.gguf", "o-00002-of-00002.gguf",
    ]  # fmt: skip
    assert (tmp_path / "o.gguf").read_bytes() == b"precious"


def test_more_tokens_than_the_model_knows_are_refused_in_the_words_of_fit(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        fit(MODEL, fit="h100, 1m tokens")
    trained = json.loads((MODEL / "config.json").read_text())["text_config"]
    assert str(caught.value) == (
        f"fit asks for a longer context than {MODEL} was trained for, found 1048576 tokens in "
        f"'h100, 1m tokens', expected at most {trained['max_position_embeddings']} tokens"
    )


def test_room_is_kept_for_the_vision_tower() -> None:
    """A GPU that is as much larger as the tower takes has the same room for weights."""
    text = fit(MODEL, fit="1033mb vram, 512 tokens", vision=False)
    planned = llama4_edge.plan(MODEL, n_ctx=512).images
    assert planned is not None
    kept = planned.weights_bytes + planned.compute_bytes
    machine = f"{1033 + kept / 2**20:.3f}mb vram, 512 tokens"
    both = fit(MODEL, fit=machine)
    assert both.budget == pytest.approx(text.budget, abs=2**16)
    assert both.plan is not None and both.plan.images is not None and both.plan.fits
    assert (both.plan.images.device, both.plan.images.path) == ("GPU", "")
    assert any("kept for pictures" in note for note in both.notes)
    # Bits that the tower's matrices do not take are left to the model's.
    smaller = fit(MODEL, fit=machine, vision_type="q8_0")
    assert both.budget + planned.weights_bytes // 4 < smaller.budget
    assert text.plan is not None and text.plan.images is None
    assert not any("kept for pictures" in note for note in text.notes)
    with pytest.raises(RecipeError, match="unknown vision_type"):
        fit(MODEL, fit=machine, vision_type="q9")


def test_plans_that_are_tried_are_told() -> None:
    steps: list[Progress] = []
    fit(MODEL, fit="1033mb vram, 512 tokens", vision=False, progress=steps.append)
    measured = [step for step in steps if not step.activity]
    tried = steps[len(measured) :]
    assert tried and all(step.bytes_done == step.bytes_total for step in tried)
    assert all(step.activity.startswith("planning for ") for step in tried)


def test_what_fits_in_bf16_stays_and_is_said(scout_checkpoint: Path) -> None:
    found = fit(scout_checkpoint, target_bpw=16.5)
    assert {one.type for one in found.tensors} == {"BF16"}
    assert found.cost == found.price == 0
    assert "everything fits as it is: no tensor in the budget is rounded" in found.notes


def test_what_cannot_fit_is_refused_before_anything_is_read(scout_checkpoint: Path) -> None:
    steps: list[Progress] = []
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"target_bpw": 2.0}, "target_bpw is less than the fewest bits take.*at least"),
        ({"target_size": 1000}, "target_size is less than the fewest bits take"),
        ({"fit": "1kb ram"}, "no GPU called '1kb ram'"),
        ({"fit": "16mb ram, 65536 tokens"}, "without room for the model.*16mb ram, 65536 tokens"),
        ({}, "what the model is to fit, found none"),
        ({"target_bpw": 4, "target_size": "1GB"}, "what the model is to fit, found 2"),
        ({"target_bpw": 0}, "target_bpw is outside its range"),
    )
    for settings, error in refused:
        with pytest.raises(SettingError, match=error):
            fit(scout_checkpoint, progress=steps.append, **settings)
    assert steps == []


def test_a_recipe_and_a_budget_exclude_each_other(scout_checkpoint: Path) -> None:
    with pytest.raises(SettingError, match="fit is of no effect, found a recipe"):
        llama4_edge.convert(scout_checkpoint, recipe="int4", fit="h100", dry_run=True)
    with pytest.raises(SettingError, match="target_bpw is of no effect, found text=False"):
        llama4_edge.convert(scout_checkpoint, text=False, target_bpw=4, dry_run=True)


def test_given_types_decide_first(scout_checkpoint: Path) -> None:
    given = [("attn_v", "q8_0"), ("blk.0.attn_q", "bf16"), ("blk.1.ffn_up_exps", "q5_1")]
    found = {one.name: one for one in fit(scout_checkpoint, target_bpw=5, types=given).tensors}
    assert all(one.type == "Q8_0" and one.fixed for it, one in found.items() if "attn_v" in it)
    assert found["blk.0.attn_q.weight"].type == "BF16" and found["blk.0.attn_q.weight"].fixed
    assert found["blk.1.ffn_up_exps.weight"].type == "Q5_1"
    assert not found["blk.0.attn_k.weight"].fixed
    with pytest.raises(RecipeError, match="matches no tensor"):
        fit(scout_checkpoint, target_bpw=5, types=[("nothing", "q8_0")])


def test_a_gguf_is_fitted_as_its_checkpoint_is(
    scout_checkpoint: Path, scout_bf16: Path, four_bits: Fit
) -> None:
    found = fit(scout_bf16, target_bpw=4.6)
    assert found.recipe.text == four_bits.recipe.text
    assert found.tensors == four_bits.tensors


def test_a_machine_with_room_gets_everything_and_its_plan(scout_checkpoint: Path) -> None:
    found = fit(scout_checkpoint, fit="rtx 4090, 64gb ram, 1024 tokens")
    assert found.plan is not None and found.plan.fits
    assert found.plan.settings.n_ctx == 1024
    assert found.plan.path == str(scout_checkpoint)
    types = {one.name: one.type for one in found.tensors}
    assert types.pop("token_embd.weight") == "Q8_0"
    assert set(types.values()) == {"BF16"}
    assert "outside the budget" in found.notes[0]


def test_a_machine_with_little_room_is_filled() -> None:
    # A GPU with 9 MiB beside the one GiB that is kept free.
    found = fit(MODEL, fit="1033mb vram, 512 tokens")
    assert found.plan is not None and found.plan.fits
    (gpu,) = found.plan.gpus
    weights = sum(one.bytes for one in found.tensors if one.name != "token_embd.weight")
    assert weights <= gpu.load.weights_bytes <= found.budget
    assert gpu.left_bytes < 2**18
    assert len({one.type for one in found.tensors}) > 3


def with_statistics(path: Path, target: Path, change: Callable[[str], int]) -> Path:
    """Activation statistics in which experts are used by their number."""
    import numpy as np

    tensors = {}
    for one in read_gguf(path).tensors:
        if len(one.shape) > 1 and one.name != "token_embd.weight":
            count = one.shape[2] if len(one.shape) > 2 else 1
            sums = np.full((count, one.shape[0]), change(one.name), np.float32)
            tensors[one.name] = Activations(sums, np.full(count, 1, np.int64))
    target.write_bytes(importance_bytes(Importance(tensors)))
    return target


def test_statistics_of_activations_decide(
    scout_checkpoint: Path, scout_bf16: Path, tmp_path: Path
) -> None:
    loud = with_statistics(scout_bf16, tmp_path / "loud.gguf", lambda it: 99 if "down" in it else 1)
    quiet = with_statistics(scout_bf16, tmp_path / "quiet.gguf", lambda _: 1)
    bits = {}
    for path in (loud, quiet):
        found = fit(scout_checkpoint, target_bpw=4.6, imatrix=path)
        bits[path] = {one.kind: one.bits_per_weight for one in found.reasons}
        notes = json.loads(str(found.recipe.text))["notes"]
        assert notes["imatrix"] == path.name and len(notes["imatrix_sha256"]) == 64
    # Feed-forward blocks that add more to the stream get more bits, attention fewer.
    assert bits[loud]["ffn_down_shexp"] > bits[quiet]["ffn_down_shexp"]
    assert bits[loud]["attn_q"] < bits[quiet]["attn_q"]


def test_statistics_of_another_model_are_refused(
    scout_checkpoint: Path, tiny_path: Path, tmp_path: Path
) -> None:
    other = with_statistics(tiny_path, tmp_path / "other.gguf", lambda _: 1)
    with pytest.raises(ModelFileError, match="another model"):
        fit(scout_checkpoint, target_bpw=5, imatrix=other)


def test_the_cost_is_less_than_of_any_one_type_of_that_size(
    scout_checkpoint: Path, four_bits: Fit
) -> None:
    """Of all tensors in one type: what its errors are estimated to cost."""
    for name in ("Q4_0", "IQ4_NL"):
        types = [(".", name.lower())]
        uniform = fit(scout_checkpoint, target_bpw=16, types=types)
        assert {one.type for one in uniform.tensors} == {name}
        assert uniform.bits_per_weight <= 4.6
        assert four_bits.cost < uniform.cost
