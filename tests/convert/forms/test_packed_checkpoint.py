"""A w4a16 checkpoint, whole: what recipe keep keeps, what it says, and what is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file, save_file

from demo.checkpoint import SCOUT_LIKE
from llama4_edge import convert
from llama4_edge.convert import hub as hub_shards
from llama4_edge.convert import slabs
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.checkpoint import open_checkpoint
from llama4_edge.convert.converter import inspect_checkpoint
from llama4_edge.convert.text_model import read_text_model
from llama4_edge.errors import CheckpointError, DamagedTensorError, RecipeError, UnsupportedError
from tests.adapters import halves, write_peft
from tests.convert.conftest import edit_json, shards_of
from tests.fixtures import MakeCheckpoint
from tests.hub_server import running_hub

from .whole import QuantizedCheckpoint, quantize_experts
from .writing import scheme_of

SMALL = replace(
    SCOUT_LIKE, hidden=128, heads=2, kv_heads=1, head_dim=64, expert_ffn=256, dense_ffn=256,
    experts=4, shards=2, vision=None,
)  # fmt: skip
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@pytest.fixture
def plain(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(SMALL)


@pytest.fixture
def w4a16(plain: Path, tmp_path: Path) -> QuantizedCheckpoint:
    return quantize_experts(plain, tmp_path / "w4a16", scheme_of(bits=4, group=128))


def numbers_of(file: Path) -> dict[str, np.ndarray]:
    """What gguf decodes of each tensor."""
    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type)
        for tensor in GGUFReader(file).tensors
    }


def types_of(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}


def assert_equal(file: Path, expected: Mapping[str, np.ndarray]) -> None:
    """Each expert's numbers are those that the package decompresses to, in float32."""
    numbers = numbers_of(file)
    for name, theirs in expected.items():
        assert np.array_equal(numbers[name], theirs), name


def test_keep_is_the_default_and_keeps_every_number(
    w4a16: QuantizedCheckpoint, tmp_path: Path
) -> None:
    report = convert(w4a16.path, tmp_path / "out.gguf")
    assert report.recipe == "keep"
    assert_equal(tmp_path / "out.gguf", w4a16.exact)
    types = types_of(tmp_path / "out.gguf")
    assert {types[name] for name in w4a16.exact} == {"Q4_0"}
    assert {types[f"blk.0.attn_{kind}.weight"] for kind in "qkv"} == {"BF16"}
    assert types["token_embd.weight"] == types["output.weight"] == "BF16"
    assert types["blk.0.attn_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == "F32"
    (kept,) = [note for note in report.notes if "keep their numbers" in note]
    assert "60 matrices of integers of 4 bits with groups of 128, symmetric" in kept
    assert "in Q4_0" in kept
    assert any(note.startswith("kept exactly: ") for note in report.notes)


def test_what_is_left_in_bf16_is_what_it_was(
    plain: Path, w4a16: QuantizedCheckpoint, tmp_path: Path
) -> None:
    convert(plain, tmp_path / "plain.gguf", recipe="bf16")
    convert(w4a16.path, tmp_path / "out.gguf")
    plainly, ours = numbers_of(tmp_path / "plain.gguf"), numbers_of(tmp_path / "out.gguf")
    assert plainly.keys() == ours.keys()
    for name in plainly.keys() - w4a16.exact.keys():
        assert np.array_equal(plainly[name], ours[name]), name


@pytest.mark.parametrize(
    ("bits", "group", "kept"),
    [(4, 32, "Q4_0"), (4, 64, "Q4_0"), (4, None, "Q4_0"), (8, 128, "Q8_0"), (8, None, "Q8_0")],
)
def test_other_groups_and_bits_are_kept(
    bits: int, group: int | None, kept: str, plain: Path, tmp_path: Path
) -> None:
    made = quantize_experts(plain, tmp_path / "other", scheme_of(bits=bits, group=group))
    convert(made.path, tmp_path / "out.gguf")
    assert_equal(tmp_path / "out.gguf", made.exact)
    assert {types_of(tmp_path / "out.gguf")[name] for name in made.exact} == {kept}


def test_bytes_of_w8a8_are_kept_in_q8_0(plain: Path, tmp_path: Path) -> None:
    scheme = scheme_of(bits=8, group=None, packed=False)
    made = quantize_experts(plain, tmp_path / "w8a8", scheme)
    convert(made.path, tmp_path / "out.gguf")
    assert_equal(tmp_path / "out.gguf", made.exact)


def test_asymmetric_groups_become_q4_1_and_what_it_rounds_is_counted(
    plain: Path, tmp_path: Path
) -> None:
    made = quantize_experts(
        plain, tmp_path / "asymmetric", scheme_of(bits=4, group=32, symmetric=False)
    )
    report = convert(made.path, tmp_path / "out.gguf")
    assert {types_of(tmp_path / "out.gguf")[name] for name in made.exact} == {"Q4_1"}
    ours = numbers_of(tmp_path / "out.gguf")
    wrong = groups = 0
    for name, theirs in made.exact.items():
        difference = (ours[name] != theirs).reshape(-1, 32).any(1)
        wrong, groups = wrong + int(difference.sum()), groups + len(difference)
        assert np.abs(ours[name] - theirs).max() < 1e-3 * np.abs(theirs).max()
    assert 0 < wrong < groups // 2
    (note,) = [note for note in report.notes if note.startswith("not kept exactly")]
    assert f"{wrong:,} of {groups:,} groups" in note


@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "order", "name"),
    [
        (4, 128, True, True, "Q4_K"),
        (4, 16, True, False, "Q4_K"),
        (8, 128, False, False, "Q8_0"),
    ],
)
def test_what_no_type_holds_is_encoded_anew_and_said(
    bits: int, group: int, symmetric: bool, order: bool, name: str,
    make_checkpoint: MakeCheckpoint, tmp_path: Path,
) -> None:  # fmt: skip
    wide = make_checkpoint(replace(SMALL, hidden=256))
    scheme = scheme_of(bits=bits, group=group, symmetric=symmetric)
    made = quantize_experts(wide, tmp_path / "other", scheme, order=order)
    report = convert(made.path, tmp_path / "out.gguf")
    assert report.recipe == "keep"
    assert {types_of(tmp_path / "out.gguf")[name] for name in made.exact} == {name}
    assert any(f"are decoded, and encoded anew in {name}" in note for note in report.notes)
    assert not any("keep their numbers" in note for note in report.notes)
    convert(made.path, tmp_path / "bf16.gguf", recipe="bf16")
    ours = numbers_of(tmp_path / "bf16.gguf")
    for target, theirs in made.exact.items():
        rounded = torch.from_numpy(theirs).to(torch.bfloat16).float().numpy()
        assert np.array_equal(ours[target], rounded), target


@pytest.mark.parametrize("recipe", ["bf16", "int4", "int8", "q4_0"])
def test_other_recipes_take_what_the_package_decompresses_to(
    recipe: str, w4a16: QuantizedCheckpoint, tmp_path: Path
) -> None:
    report = convert(w4a16.path, tmp_path / "ours.gguf", recipe=recipe)
    convert(w4a16.decompressed, tmp_path / "theirs.gguf", recipe=recipe)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert any("are decoded, and encoded anew in" in note for note in report.notes)


def test_a_type_chosen_by_hand_is_encoded_from_exact_numbers(
    w4a16: QuantizedCheckpoint, tmp_path: Path
) -> None:
    types = [("ffn_up_exps", "f32"), ("attn_", "q8_0")]
    convert(w4a16.path, tmp_path / "out.gguf", types=types)
    assert_equal(tmp_path / "out.gguf", w4a16.exact)
    written = types_of(tmp_path / "out.gguf")
    assert written["blk.0.ffn_up_exps.weight"] == "F32"
    assert written["blk.0.ffn_gate_exps.weight"] == "Q4_0"
    assert written["blk.0.attn_q.weight"] == "Q8_0"


def test_small_slabs_give_the_same_bytes(
    w4a16: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(w4a16.path, tmp_path / "whole.gguf")
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 13 * 2 * 128)
    convert(w4a16.path, tmp_path / "slabs.gguf")
    assert (tmp_path / "slabs.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_the_plan_is_the_file_to_the_byte(w4a16: QuantizedCheckpoint, tmp_path: Path) -> None:
    for recipe in (None, "keep", "int8"):
        drawn = blueprint(w4a16.path, recipe=recipe)
        planned = convert(w4a16.path, tmp_path / "out.gguf", recipe=recipe, dry_run=True)
        done = convert(w4a16.path, tmp_path / "out.gguf", recipe=recipe, force=True)
        written = (tmp_path / "out.gguf").read_bytes()
        assert planned.bytes == done.bytes == drawn.nbytes == len(written)
        assert written[: len(drawn.header)] == drawn.header
        assert planned.source_bytes == done.source_bytes == w4a16.text_bytes


def test_progress_counts_stored_bytes(w4a16: QuantizedCheckpoint, tmp_path: Path) -> None:
    seen: list[Any] = []
    convert(w4a16.path, tmp_path / "out.gguf", progress=seen.append)
    assert seen[-1].bytes_done == seen[-1].bytes_total == w4a16.text_bytes
    assert all(one.bytes_done <= two.bytes_done for one, two in pairwise(seen))


def test_inspect_counts_parts_and_calls_them_int4(w4a16: QuantizedCheckpoint) -> None:
    summary = inspect_checkpoint(w4a16.path)
    up = next(one for one in summary.tensors if one.name == "blk.0.ffn_up_exps.weight")
    assert (up.type, up.shape) == ("INT4", (4, 256, 128))
    # Half a byte a number, a bf16 scale a group, and two int64 for the shape.
    assert up.bytes == 4 * (256 * 64 + 256 * 2 + 16)


def test_the_hub_sends_each_shard_once_and_scales_from_another(
    w4a16: QuantizedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "RedHatAI/Llama-4-Small-w4a16"
    with running_hub(monkeypatch, tmp_path / "home") as hub:
        monkeypatch.setattr(hub_shards, "_HEAD_BYTES", 16 << 10)
        hub.add(name, w4a16.path)
        hub.requests.clear()
        report = convert(name, tmp_path / "hub.gguf")
        whole = sum(path.stat().st_size for path in shards_of(w4a16.path))
        assert whole < hub.sent(r"\.safetensors") < 1.5 * whole
    assert report.recipe == "keep"
    assert_equal(tmp_path / "hub.gguf", w4a16.exact)


def test_scales_beyond_f16_are_counted_by_tensor(
    w4a16: QuantizedCheckpoint, tmp_path: Path
) -> None:
    edit_part(w4a16.path, "layers.1.feed_forward.experts.2.up_proj.weight_scale", 2.0**-20 * 1.25)
    report = convert(w4a16.path, tmp_path / "out.gguf")
    assert not any(note.startswith("not kept") for note in report.notes)
    tiny = 2.0**-20 * (1 + 2**-7)
    edit_part(w4a16.path, "layers.1.feed_forward.experts.2.up_proj.weight_scale", tiny)
    report = convert(w4a16.path, tmp_path / "out.gguf", force=True)
    (note,) = [note for note in report.notes if note.startswith("not kept exactly: 1 of ")]
    assert "blk.1.ffn_up_exps.weight 1" in note


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_cannot_be_one_is_named(
    value: float, w4a16: QuantizedCheckpoint, tmp_path: Path
) -> None:
    edit_part(w4a16.path, "layers.1.feed_forward.experts.2.up_proj.weight_scale", value)
    for recipe in ("keep", "int4"):
        with pytest.raises(
            DamagedTensorError,
            match=r"experts\.2\.up_proj\.weight_scale in .*not a positive .*row 0",
        ):
            convert(w4a16.path, tmp_path / "out.gguf", recipe=recipe, force=True)
    assert not list(tmp_path.glob("out.gguf*"))


def test_an_expert_left_in_bf16_makes_its_target_bf16(
    w4a16: QuantizedCheckpoint, plain: Path, tmp_path: Path
) -> None:
    mixed = quantize_experts(
        plain, tmp_path / "mixed", scheme_of(bits=4, group=128), leave=r"layers\.1\..*experts\.3\."
    )
    report = convert(mixed.path, tmp_path / "out.gguf")
    types = types_of(tmp_path / "out.gguf")
    assert types["blk.0.ffn_up_exps.weight"] == "Q4_0"
    assert types["blk.1.ffn_up_exps.weight"] == "BF16"
    assert any("encoded anew in BF16" in note for note in report.notes)


def test_two_groups_of_settings_are_told_apart_by_their_parts(plain: Path, tmp_path: Path) -> None:
    four, eight = scheme_of(bits=4, group=128), scheme_of(bits=8, group=None)
    made = quantize_experts(plain, tmp_path / "both", four, second=(r"layers\.2\.", eight))
    convert(made.path, tmp_path / "out.gguf")
    assert_equal(tmp_path / "out.gguf", made.exact)
    types = types_of(tmp_path / "out.gguf")
    assert [types[f"blk.{layer}.ffn_up_exps.weight"] for layer in (1, 2)] == ["Q4_0", "Q8_0"]


# Settings that do not match, or are of another layout ---------------------------------------------


def set_config(checkpoint: Path, change: Any) -> None:
    edit_json(checkpoint / "config.json", lambda config: change(config["quantization_config"]))


def group_of(settings: dict[str, Any]) -> dict[str, Any]:
    weights: dict[str, Any] = settings["config_groups"]["group_0"]["weights"]
    return weights


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("group_size", 64, r"cannot be the scales of"),
        ("num_bits", 8, r"cannot be the codes of"),
        ("symmetric", False, r"weight_zero_point is missing"),
    ],
)
def test_settings_that_do_not_match_the_tensors_are_refused(
    field: str, value: Any, said: str, w4a16: QuantizedCheckpoint
) -> None:
    set_config(w4a16.path, lambda one: group_of(one).update({field: value}))
    with pytest.raises(CheckpointError, match=said):
        convert(w4a16.path, dry_run=True)


def test_packed_weights_without_settings_are_refused(w4a16: QuantizedCheckpoint) -> None:
    edit_json(w4a16.path / "config.json", lambda config: config.pop("quantization_config"))
    with pytest.raises(CheckpointError, match=r"weight_packed.*no quantization_config"):
        convert(w4a16.path, dry_run=True)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_bits", 3, "weights.num_bits 3"),
        ("strategy", "tensor", "weights.strategy 'tensor'"),
        ("group_size", -7, "group_size -7"),
        ("type", "float", "weights.type 'float'"),
        ("actorder", "random", "weights.actorder 'random'"),
    ],
)
def test_settings_that_are_not_known_are_refused(
    field: str, value: Any, said: str, w4a16: QuantizedCheckpoint
) -> None:
    set_config(w4a16.path, lambda one: group_of(one).update({field: value}))
    with pytest.raises(UnsupportedError, match=said):
        convert(w4a16.path, dry_run=True)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ"),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "AWQ"),
    "auto-round": ({"quant_method": "auto-round", "bits": 4}, "auto-round"),
    "hqq": ({"quant_method": "hqq"}, "hqq"),
    "mlx": ({"quant_method": None, "bits": 4, "group_size": 64}, "None: MLX"),
    "2:4": ({"format": "marlin-24"}, "2:4"),
    "sparse": ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
    "unknown": ({"format": "hexa-quantized"}, "hexa-quantized"),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_other_layouts_are_refused_with_what_to_do(kind: str, w4a16: QuantizedCheckpoint) -> None:
    settings, said = REFUSED[kind]
    set_config(w4a16.path, lambda one: one.update(settings))
    with pytest.raises(UnsupportedError, match=rf"{said}.*Use the repository without"):
        convert(w4a16.path, dry_run=True)


def test_keep_of_a_configuration_alone_asks_for_the_checkpoint(w4a16: QuantizedCheckpoint) -> None:
    with pytest.raises(RecipeError, match="does not say which weights"):
        blueprint(w4a16.path / "config.json", recipe="keep")
    assert blueprint(w4a16.path / "config.json").recipe == "int4"


def test_keep_of_plain_weights_is_bf16(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "keep.gguf", recipe="keep")
    convert(plain, tmp_path / "bf16.gguf", recipe="bf16")
    kept, bf16 = numbers_of(tmp_path / "keep.gguf"), numbers_of(tmp_path / "bf16.gguf")
    assert all(np.array_equal(kept[name], numbers) for name, numbers in bf16.items())
    assert types_of(tmp_path / "keep.gguf") == types_of(tmp_path / "bf16.gguf")


def edit_part(checkpoint: Path, ending: str, value: float) -> None:
    """Set the first number of the part whose name ends so."""
    for shard in shards_of(checkpoint):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if name.endswith(ending):
                tensor.view(-1)[0] = value
                save_file(tensors, shard)
                return
    raise LookupError(ending)


def test_an_adapter_is_added_to_the_decoded_numbers(
    w4a16: QuantizedCheckpoint, tmp_path: Path
) -> None:
    pair = halves("model.layers.1.feed_forward.experts.2.up_proj", 128, 256)
    adapter = write_peft(tmp_path / "adapter", pair)
    every = [(".", "f32")]
    convert(w4a16.path, tmp_path / "f32.gguf", types=every, recipe="bf16", merge_lora=[adapter])
    name = "blk.1.ffn_up_exps.weight"
    a, b = pair.values()
    expected = w4a16.exact[name].copy()
    expected[2] += b @ a * np.float32(2)
    assert np.array_equal(numbers_of(tmp_path / "f32.gguf")[name], expected)
    report = convert(w4a16.path, tmp_path / "out.gguf", merge_lora=[adapter])
    numbers = numbers_of(tmp_path / "out.gguf")
    for other in w4a16.exact.keys() - {name}:
        assert np.array_equal(numbers[other], w4a16.exact[other]), other
    assert any("encoded anew: they are changed" in note for note in report.notes), report.notes
    # Of the changed tensor's experts, none keeps its numbers.
    kept, anew = (note for note in report.notes if "matrices of" in note)
    stored = read_text_model(open_checkpoint(w4a16.path)).tensors
    packed = sum(tensor.weight is not None for tensor in stored)
    changed = w4a16.exact[name].shape[0]
    assert kept.startswith(f"{packed - changed} matrices of") and "keep their numbers" in kept
    assert anew.startswith(f"{changed} matrices of") and "encoded anew in Q4_0" in anew
