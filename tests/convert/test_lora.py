"""Adapters of PEFT: what becomes of their tensors, and which are refused, by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from demo.checkpoint import TIED
from llama4_edge import convert, convert_lora
from llama4_edge.convert import output, slabs
from llama4_edge.errors import (
    CheckpointError,
    DamagedTensorError,
    Llama4EdgeError,
    OutputError,
    RecipeError,
    SettingError,
    UnsupportedError,
)
from llama4_edge.runtime.files.adapter_file import check_adapter_file
from llama4_edge.runtime.files.model_file import check_model_file
from tests.adapters import halves, write_peft
from tests.convert.conftest import SMALL
from tests.fixtures import MakeCheckpoint, MakeGGUF, MakeProjector
from tests.hub_server import HubServer

Arrays = Mapping[str, npt.NDArray[Any]]

QUERY, VALUE = "model.layers.0.self_attn.q_proj", "model.layers.3.self_attn.v_proj"
EXPERTS = "model.layers.1.feed_forward.experts"
PAIR = halves(QUERY, 64, 64)
A, B = PAIR


@pytest.fixture(scope="module")
def base(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(SMALL)


def metadata(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


def written(file: Path) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: tensor.data for tensor in GGUFReader(file).tensors}


def test_the_file_says_what_it_is_and_holds_the_halves_as_they_are(
    base: Path, tmp_path: Path
) -> None:
    adapter = write_peft(
        tmp_path / "poems", {**PAIR, **halves(VALUE, 64, 32)}, base_model_name_or_path=str(base)
    )
    report = convert_lora(adapter, tmp_path / "out.gguf")
    keys = metadata(tmp_path / "out.gguf")
    assert keys["general.architecture"] == "llama4"
    assert (keys["general.type"], keys["adapter.type"]) == ("adapter", "lora")
    assert (keys["general.name"], keys["general.base_model.0.name"]) == ("poems", str(base))
    assert keys["adapter.lora.alpha"] == 4.0
    found = written(tmp_path / "out.gguf")
    assert list(found) == [
        *("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"),
        *("blk.3.attn_v.weight.lora_a", "blk.3.attn_v.weight.lora_b"),
    ]
    assert np.array_equal(found["blk.0.attn_q.weight.lora_a"], PAIR[A])
    assert np.array_equal(found["blk.0.attn_q.weight.lora_b"], PAIR[B])
    assert report.recipe == "f32" and report.bytes == (tmp_path / "out.gguf").stat().st_size
    assert report.notes == (f"held against {base}; rank 2, alpha 4",)
    assert [role.role for role in report.roles] == ["attention"]


def test_another_scale_than_the_others_is_multiplied_into_the_outputs(
    base: Path, tmp_path: Path
) -> None:
    tensors = {**PAIR, **halves(VALUE, 64, 32), **halves(VALUE.replace("3", "2"), 64, 32)}
    adapter = write_peft(tmp_path / "a", tensors, alpha_pattern={"q_proj": 12}, use_rslora=True)
    convert_lora(adapter, tmp_path / "out.gguf", base=base)
    assert metadata(tmp_path / "out.gguf")["adapter.lora.alpha"] == np.float32(4 * 2**0.5)
    found = written(tmp_path / "out.gguf")
    assert np.allclose(found["blk.0.attn_q.weight.lora_b"], 3 * PAIR[B], rtol=1e-6)
    assert np.array_equal(
        found["blk.3.attn_v.weight.lora_b"],
        halves(VALUE, 64, 32)[f"base_model.model.{VALUE}.lora_B.weight"],
    )


@pytest.mark.parametrize(
    "before",
    [
        "base_model.model.", "base_model.model.language_model.",
        "base_model.model.model.language_model.", "_orig_mod.base_model.model.", "module.", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("after", ["weight", "default.weight"])
def test_names_are_found_behind_every_prefix(
    base: Path, tmp_path: Path, before: str, after: str
) -> None:
    names = {letter: f"{before}{QUERY}.lora_{letter}.{after}" for letter in "AB"}
    adapter = write_peft(tmp_path / "a", {names["A"]: PAIR[A], names["B"]: PAIR[B]})
    convert_lora(adapter, tmp_path / "out.gguf", base=base)
    assert np.array_equal(written(tmp_path / "out.gguf")["blk.0.attn_q.weight.lora_a"], PAIR[A])


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16"])
def test_each_type_is_what_the_file_holds(base: Path, tmp_path: Path, outtype: str) -> None:
    adapter = write_peft(tmp_path / "a", PAIR)
    convert_lora(adapter, tmp_path / "out.gguf", base=base, outtype=outtype)
    types = {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert types == {outtype.upper()}


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_halves_of_each_dtype_are_read(base: Path, tmp_path: Path, dtype: str) -> None:
    stored = {name: half.astype(dtype) for name, half in PAIR.items()}
    convert_lora(write_peft(tmp_path / "a", stored), tmp_path / "out.gguf", base=base)
    found = written(tmp_path / "out.gguf")["blk.0.attn_q.weight.lora_b"]
    assert np.array_equal(found, stored[B].astype("f4"))


def test_every_form_of_a_base_gives_the_same_file(
    base: Path, make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    gguf = make_gguf(base)
    adapter = write_peft(tmp_path / "a", PAIR)
    shapes = [base, base / "config.json", gguf]
    for number, one in enumerate(shapes):
        convert_lora(adapter, tmp_path / f"{number}.gguf", base=one)
    files = [written(tmp_path / f"{number}.gguf") for number in range(len(shapes))]
    assert all(list(it) == list(files[0]) for it in files)
    check_adapter_file(tmp_path / "0.gguf", check_model_file(gguf))


def test_a_preset_is_a_base_without_any_network(tmp_path: Path) -> None:
    adapter = write_peft(
        tmp_path / "a", halves(QUERY, 5120, 5120),
        base_model_name_or_path="meta-llama/Llama-4-Scout-17B-16E-Instruct",
    )  # fmt: skip
    report = convert_lora(adapter, tmp_path / "out.gguf")
    assert report.notes[0].startswith("held against meta-llama/Llama-4-Scout-17B-16E-Instruct;")
    assert convert_lora(adapter, base="maverick", dry_run=True).parameters == report.parameters


# --- refused settings and tensors

EXPERT_PAIR = halves(EXPERTS, 128, 64, rank=8)
FULL = {"base_model.model.lm_head.weight": np.ones((1024, 64), np.float32)}
TOWER = halves("vision_model.model.layers.0.self_attn.q_proj", 64, 64)
REFUSED: dict[str, tuple[Arrays, dict[str, object], str]] = {
    "DoRA": (PAIR, {"use_dora": True}, "use_dora (DoRA"),
    "DoRA's vectors": (
        {**PAIR, f"base_model.model.{QUERY}.lora_magnitude_vector": np.ones(64, "f4")},
        {},
        "lora_magnitude_vector, found DoRA",
    ),
    "several": (
        PAIR,
        {"use_qalora": True, "lora_bias": True, "layer_replication": [[0, 4]]},
        "use_qalora (QALoRA, which pools its inputs); lora_bias (a bias behind lora_B); layer_rep",
    ),
    "PiSSA": (PAIR, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
    "LoHa": (PAIR, {"peft_type": "LOHA"}, "of another kind, found peft_type LOHA, expected LORA"),
    "no kind": (PAIR, {"peft_type": None}, "has no peft_type"),
    "rank as text": (PAIR, {"r": "2"}, "has an invalid r, found '2', expected a whole number"),
    "rank of another": (PAIR, {"r": 3}, "found rank 2, expected 3, as adapter_config.json has it"),
    "no alpha": (PAIR, {"lora_alpha": 0}, "has an invalid lora_alpha, found 0"),
    "alpha without end": (PAIR, {"lora_alpha": 1e300}, "has an invalid lora_alpha"),
    "slow pattern": (PAIR, {"rank_pattern": {"(a+)+b": 2}}, "simpler patterns than '(a+)+b'"),
    "no pattern": (PAIR, {"alpha_pattern": {"[": 2}}, "regular expressions, unlike '['"),
    "half a pair": ({A: PAIR[A]}, {}, "q_proj.lora_A.weight in .*, found no lora_B beside it"),
    "two ranks": ({A: np.ones((3, 64), "f4"), B: PAIR[B]}, {}, "as many rows as lora_B has col"),
    "one axis": ({A: np.ones(64, "f4"), B: PAIR[B]}, {}, "expected two axes"),
    "nothing": ({}, {}, "holds no LoRA, expected lora_A and lora_B"),
    "integers": ({A: np.ones((2, 64), "i4"), B: PAIR[B]}, {}, "unsupported dtype, found I32"),
    "whole tensors": (
        {**PAIR, **FULL},
        {},
        "found 1 of them (modules_to_save), first base_model.model.lm_head.weight. Merge it",
    ),
    "bias": (
        {**PAIR, f"base_model.model.{QUERY}.bias": np.ones(64, "f4")},
        {},
        "q_proj.bias in .*, found a bias",
    ),
    "bias of lora_B": (
        {**PAIR, f"base_model.model.{QUERY}.lora_B.bias": np.ones(64, "f4")},
        {},
        "lora_B.bias, found a bias behind lora_B",
    ),
    "tower": ({**PAIR, **TOWER}, {}, "changes the vision tower, to which llama.cpp applies no ada"),
    "norm": (halves("model.norm", 64, 64), {}, "model.norm.lora_A.weight in .*, found no matrix"),
    "nobody's": (halves("transformer.h.0.attn", 64, 64), {}, "found no matrix of a Llama 4"),
    "wider": (halves(QUERY, 80, 64), {}, r"found [2, 80] and lora_B [64, 2], expected [2, 64] and"),
    "a layer more": (
        halves("model.layers.4.self_attn.q_proj", 64, 64),
        {},
        "found layer 4, expected 4 layers and 4 experts",
    ),
    "dense": (
        halves("model.layers.0.feed_forward.up_proj", 64, 64),
        {},
        "expected experts in layer 0",
    ),
    "an expert more": (
        halves(f"{EXPERTS}.4.up_proj", 64, 64),
        {},
        "found layer 1, expert 4, expected 4 layers and 4 experts",
    ),
    "experts of another": (
        halves(EXPERTS, 96, 64, rank=8),
        {},
        "expected the rank times 4 experts, between 64 and 128, or 64",
    ),
    "fewer experts": (halves(EXPERTS, 128, 64, rank=6), {}, "expected the rank times 4 experts"),
    "twice": (
        {**EXPERT_PAIR, **halves(f"{EXPERTS}.0.up_proj", 64, 64)},
        {},
        "ffn_up_exps.weight is changed by another pair too",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(base: Path, tmp_path: Path, name: str) -> None:
    tensors, settings, message = REFUSED[name]
    adapter = write_peft(tmp_path / "a", tensors, **settings)
    with pytest.raises(CheckpointError, match=re.escape(message).replace(r"\.\*", ".*")):
        convert_lora(adapter, tmp_path / "out.gguf", base=base)
    assert list(tmp_path.iterdir()) == [adapter]


def test_pairs_of_the_tower_that_are_zero_are_left_out(base: Path, tmp_path: Path) -> None:
    idle = {name: half * ("lora_A" in name) for name, half in TOWER.items()}
    adapter = write_peft(tmp_path / "a", {**PAIR, **idle})
    report = convert_lora(adapter, tmp_path / "out.gguf", base=base)
    assert "1 pairs of the vision tower were left out: they are zero" in report.notes
    assert report.left_out == tuple(sorted(idle))


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_tied_tensors_cannot_be_changed_alone(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, module: str
) -> None:
    tied = make_checkpoint(TIED)
    tensors: dict[str, Any] = halves(module, 256, 1024)
    if module != "lm_head":
        tensors = {
            f"base_model.model.{module}.lora_embedding_A": np.ones((2, 1024), "f4"),
            f"base_model.model.{module}.lora_embedding_B": np.ones((256, 2), "f4"),
        }
    adapter = write_peft(tmp_path / "a", tensors)
    with pytest.raises(UnsupportedError, match=r"cannot be changed alone: .* ties its output to"):
        convert_lora(adapter, tmp_path / "out.gguf", base=tied)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_and_nothing_is_left(base: Path, tmp_path: Path, value: float) -> None:
    damaged = {**PAIR, B: PAIR[B].copy()}
    damaged[B][3, 1] = value
    adapter = write_peft(tmp_path / "a", damaged)
    with pytest.raises(DamagedTensorError, match=r"lora_B\.weight in adapter_model\.safetensors"):
        convert_lora(adapter, tmp_path / "out.gguf", base=base)
    assert list(tmp_path.iterdir()) == [adapter]


def test_a_number_too_large_for_f16_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", {**PAIR, B: PAIR[B] * 1e6})
    with pytest.raises(DamagedTensorError, match=r"Choose a type of a larger range: outtype=f32"):
        convert_lora(adapter, tmp_path / "out.gguf", base=base, outtype="f16")
    assert list(tmp_path.iterdir()) == [adapter]


# --- no base, no adapter, no target


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (None, "does not say which model it is of, .*Give its base"),
        ("/nowhere/model", "cannot be had, found /nowhere/model: .* Give it: base=MODEL"),
        ("org/absent", "cannot be had, found org/absent: .* Give it: base=MODEL"),
    ],
)
def test_an_adapter_without_its_base_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    adapter = write_peft(tmp_path / "a", PAIR, base_model_name_or_path=named)
    with pytest.raises(CheckpointError, match=message):
        convert_lora(adapter, tmp_path / "out.gguf")


def test_a_base_that_is_no_llama_4_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "llama3"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    adapter = write_peft(tmp_path / "a", PAIR, base_model_name_or_path=str(other))
    with pytest.raises(UnsupportedError, match=r"config\.json is not of a Llama 4 model"):
        convert_lora(adapter, tmp_path / "out.gguf")


def remove_weights(adapter: Path) -> Path:
    (adapter / "adapter_model.safetensors").unlink()
    return adapter


def pickle(adapter: Path) -> Path:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    return adapter


def truncate(adapter: Path) -> Path:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    return adapter


def break_json(adapter: Path) -> Path:
    (adapter / "adapter_config.json").write_text("{")
    return adapter


def pipe(adapter: Path) -> Path:
    (adapter / "adapter_config.json").unlink()
    os.mkfifo(adapter / "adapter_config.json")
    return adapter


FORMS = {
    "no weights": (remove_weights, "has no adapter_model.safetensors"),
    "pickled": (pickle, "found adapter_model.bin, PyTorch's own format"),
    "truncated": (truncate, "is truncated"),
    "no JSON": (break_json, "adapter_config.json is not JSON"),
    "a pipe": (pipe, "adapter_config.json is not a regular file"),
    "a file": (lambda it: it / "adapter_model.safetensors", "is a file, .* Give .* instead"),
    "above": (lambda it: it.parent, "holds no adapter, .*Give one of the directories in it"),
    "nowhere": (lambda it: it / "absent", "does not exist"),
}


@pytest.mark.parametrize("name", FORMS)
def test_another_directory_is_refused_with_what_it_is(
    base: Path, tmp_path: Path, name: str
) -> None:
    change, message = FORMS[name]
    source = change(write_peft(tmp_path / "a", PAIR))
    with pytest.raises(CheckpointError, match=message):
        convert_lora(source, tmp_path / "out.gguf", base=base)


def test_a_model_is_no_adapter(base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no adapter, .*Of a model.*llama4 convert"):
        convert_lora(base)


def test_an_existing_file_is_replaced_only_with_force(base: Path, tmp_path: Path) -> None:
    adapter, target = write_peft(tmp_path / "a", PAIR), tmp_path / "out.gguf"
    target.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        convert_lora(adapter, target, base=base)
    assert target.read_text() == "mine"
    convert_lora(adapter, target, base=base, force=True)
    assert "adapter.type" in metadata(target)
    with pytest.raises(OutputError, match="is a file of the checkpoint"):
        convert_lora(adapter, adapter / "adapter_config.json", base=base, force=True)


def test_a_dry_run_writes_nothing(base: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", PAIR)
    planned = convert_lora(adapter, tmp_path / "out.gguf", base=base, dry_run=True)
    assert planned.dry_run and list(tmp_path.iterdir()) == [adapter]
    assert planned.bytes == convert_lora(adapter, tmp_path / "out.gguf", base=base).bytes


def test_an_unknown_type_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", PAIR)
    with pytest.raises(SettingError, match="outtype is unknown, found 'q4_0', expected f32, f16"):
        convert_lora(adapter, base=base, outtype="q4_0")


def test_adapter_and_base_come_from_the_hub(hub: HubServer, base: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", PAIR, base_model_name_or_path="org/base")
    hub.add("org/poems", adapter)
    hub.add("org/base", base)
    report = convert_lora("org/poems", tmp_path / "out.gguf")
    assert report.notes[0].startswith("held against org/base;")
    assert metadata(tmp_path / "out.gguf")["general.name"] == "poems"
    with pytest.raises(Llama4EdgeError, match="org/base holds no adapter"):
        convert_lora("org/base", tmp_path / "other.gguf")


# --- merged while converting


def test_a_merge_goes_on_where_it_stopped_unless_the_adapter_changed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs, "SLAB_BYTES", 20_000)
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 20_000)
    monkeypatch.setattr(output, "COMMIT_SECONDS", 0.0)
    adapter = write_peft(tmp_path / "a", {**PAIR, **EXPERT_PAIR})
    convert(base, tmp_path / "whole.gguf", merge_lora=[adapter], recipe="int8")

    def stop(step: Any) -> None:
        if step.bytes_done * 2 > step.bytes_total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(base, tmp_path / "b.gguf", merge_lora=[adapter], recipe="int8", progress=stop)
    for changed in ([], [(adapter, 0.5)]):
        with pytest.raises(OutputError, match="changed since: merged adapter 1"):
            convert(base, tmp_path / "b.gguf", merge_lora=changed, recipe="int8")
    report = convert(base, tmp_path / "b.gguf", merge_lora=[adapter], recipe="int8")
    assert report.resumed_at > 0.3
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    plain = convert(base, tmp_path / "plain.gguf", recipe="int8")
    assert plain.bytes == report.bytes
    assert (tmp_path / "plain.gguf").read_bytes() != (tmp_path / "whole.gguf").read_bytes()


def test_an_adapter_of_another_model_is_not_merged(base: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", halves(QUERY, 80, 64))
    with pytest.raises(CheckpointError, match="is an adapter of another model than"):
        convert(base, tmp_path / "out.gguf", merge_lora=[adapter])
    assert list(tmp_path.iterdir()) == [adapter]


@pytest.mark.parametrize("scale", [0.0, float("nan"), "half", 1e9])
def test_a_scale_that_cannot_be_one_is_refused(base: Path, tmp_path: Path, scale: Any) -> None:
    adapter = write_peft(tmp_path / "a", PAIR)
    with pytest.raises(SettingError, match="an adapter's scale is outside its range"):
        convert(base, tmp_path / "out.gguf", merge_lora=[(adapter, scale)])


def test_an_adapter_is_merged_once(base: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", PAIR)
    with pytest.raises(CheckpointError, match="is to be merged twice"):
        convert(base, tmp_path / "out.gguf", merge_lora=[adapter, (adapter, 2.0)])


def test_a_resized_vocabulary_is_refused(base: Path, tmp_path: Path) -> None:
    more = {"base_model.model.lm_head.base_layer.weight": np.ones((1030, 64), np.float32)}
    adapter = write_peft(tmp_path / "a", {**PAIR, **more})
    with pytest.raises(CheckpointError, match=r"lm_head.base_layer.weight.*found \[1030, 64\]"):
        convert_lora(adapter, tmp_path / "out.gguf", base=base)
    shutil.rmtree(adapter)
    same = {"base_model.model.lm_head.base_layer.weight": np.ones((1024, 64), np.float32)}
    adapter = write_peft(tmp_path / "a", {**PAIR, **same})
    assert "was left out" in convert_lora(adapter, tmp_path / "out.gguf", base=base).notes[1]


def test_neither_the_base_nor_a_merged_adapter_is_replaced(
    base: Path, make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    """Also with force: each is a file that somebody still needs."""
    gguf, weights = tmp_path / "base.gguf", tmp_path / "a" / "adapter_model.safetensors"
    shutil.copy(make_gguf(base), gguf)
    adapter = write_peft(tmp_path / "a", PAIR)
    before = [gguf.read_bytes(), weights.read_bytes()]
    with pytest.raises(OutputError, match=r"base.gguf is a file that is read"):
        convert_lora(adapter, gguf, base=gguf, force=True)
    with pytest.raises(OutputError, match=r"adapter_model.safetensors is a file that is read"):
        convert(base, weights, recipe="bf16", merge_lora=[adapter], force=True)
    assert [gguf.read_bytes(), weights.read_bytes()] == before


def test_a_pipe_in_place_of_the_weights_is_refused_and_not_waited_for(
    base: Path, tmp_path: Path
) -> None:
    adapter = write_peft(tmp_path / "a", PAIR)
    (adapter / "adapter_model.safetensors").unlink()
    os.mkfifo(adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is a pipe"):
        convert_lora(adapter, tmp_path / "out.gguf", base=base)


@pytest.mark.parametrize("signs", [(1, 1), (1, -1)])
def test_a_product_beyond_float32_is_an_error_and_no_warning(
    base: Path, tmp_path: Path, signs: tuple[int, int]
) -> None:
    """Infinite, and where signs differ NaN."""
    a = np.full_like(PAIR[A], 3e38)
    b = np.full_like(PAIR[B], 3e38) * np.array(signs, "f4")
    adapter = write_peft(tmp_path / "a", {A: a, B: b})
    with pytest.raises(DamagedTensorError, match=r"lora_B.* too large for float32"):
        convert(base, tmp_path / "out.gguf", recipe="bf16", merge_lora=[adapter])


def test_what_f16_does_not_hold_is_said_once(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And not by ggml too, which would print it."""
    adapter = write_peft(tmp_path / "a", {A: np.full_like(PAIR[A], 65520), B: PAIR[B]})
    with pytest.raises(DamagedTensorError, match="too large for F16"):
        convert_lora(adapter, tmp_path / "out.gguf", base=base, outtype="f16")
    assert capfd.readouterr() == ("", "")


def test_an_adapter_without_effect_is_not_merged(base: Path, tmp_path: Path) -> None:
    """Of the vision tower alone, where there is none."""
    adapter = write_peft(tmp_path / "a", TOWER)
    with pytest.raises(UnsupportedError, match=r"changes nothing of what is converted"):
        convert(base, tmp_path / "out.gguf", recipe="bf16", merge_lora=[adapter])
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_adapters_may_replace_a_tensor_each(base: Path, tmp_path: Path) -> None:
    """Their files have the same name."""
    numbers = {
        name: np.random.default_rng(seed).normal(0, 1, (1024, 64)).astype(np.float32)
        for seed, name in enumerate(("lm_head", "model.embed_tokens"))
    }
    adapters = [
        write_peft(tmp_path / name, {**PAIR, f"base_model.model.{name}.weight": one})
        for name, one in numbers.items()
    ]
    every = [(".", "f32")]
    report = convert(base, tmp_path / "out.gguf", merge_lora=adapters, recipe="bf16", types=every)
    assert all("added to 1 tensors, replaced 1" in note for note in report.notes[-2:])
    tensors = written(tmp_path / "out.gguf")
    assert np.array_equal(tensors["output.weight"], numbers["lm_head"])
    assert np.array_equal(tensors["token_embd.weight"], numbers["model.embed_tokens"])
    with pytest.raises(UnsupportedError, match=r"replaces lm_head.weight, as an adapter before"):
        convert(base, tmp_path / "b.gguf", merge_lora=[adapters[0], copied(adapters[0])])


def test_what_an_adapter_replaces_has_nothing_of_one_before(base: Path, tmp_path: Path) -> None:
    head = np.random.default_rng(0).normal(0, 1, (1024, 64)).astype(np.float32)
    pair = halves("lm_head", 64, 1024)
    added = write_peft(tmp_path / "added", pair)
    replacing = write_peft(
        tmp_path / "replacing", {**PAIR, "base_model.model.lm_head.weight": head}
    )
    a, b = pair.values()
    for adapters, expected in (
        ([added, replacing], head),
        ([replacing, added], head + (b @ a) * np.float32(2)),
    ):
        convert(
            base, tmp_path / "out.gguf", merge_lora=adapters, types=[("output", "f32")], force=True
        )
        assert np.array_equal(written(tmp_path / "out.gguf")["output.weight"], expected)


def copied(adapter: Path) -> Path:
    """The same adapter in another directory."""
    return shutil.copytree(adapter, adapter.with_name(f"{adapter.name}-copy"))


def test_tensors_of_few_bits_are_merged_into_on_demand_alone(
    base: Path, make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    """Those that no adapter changes are copied."""
    adapter = write_peft(tmp_path / "a", PAIR)
    few, target = make_gguf(base, "q4_0"), tmp_path / "out.gguf"
    with pytest.raises(RecipeError, match=r"found 1 of Q4_0 \(blk.0.attn_q.weight\)"):
        convert(few, target, merge_lora=[adapter], recipe="keep")
    assert not target.exists()
    report = convert(few, target, merge_lora=[adapter], recipe="keep", requantize=True)
    assert report.notes == (
        f"merged {adapter}: added to 1 tensors",
        "rounded a second time: 1 of Q4_0 (blk.0.attn_q.weight)",
    )
    before, after = written(few), written(target)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["blk.0.attn_q.weight"]
    a, b = PAIR.values()
    name, kind = "blk.0.attn_q.weight", GGMLQuantizationType.Q4_0
    expected = dequantize(before[name], kind) + (b @ a) * np.float32(2)
    error = np.abs(dequantize(after[name], kind) - expected).max()
    assert error <= np.abs(expected).max() / 8 * 1.01  # a step: of 16, one side has 7
    convert(make_gguf(base, "q8_0"), target, merge_lora=[adapter], recipe="keep", force=True)


def test_an_adapter_for_the_other_half_of_a_model_is_not_merged_into_a_gguf(
    base: Path, scout_checkpoint: Path, make_gguf: MakeGGUF, make_projector: MakeProjector,
    tmp_path: Path,
) -> None:  # fmt: skip
    text, tower = write_peft(tmp_path / "a", PAIR), write_peft(tmp_path / "b", TOWER)
    projector = make_projector(scout_checkpoint, "f32")
    for source, adapter, half in (
        (make_gguf(base), tower, "text model"), (projector, text, "vision tower"),
    ):  # fmt: skip
        with pytest.raises(
            UnsupportedError, match=f"changes nothing.* expected some of the {half}"
        ):
            convert(source, tmp_path / "out.gguf", merge_lora=[adapter])
    with pytest.raises(CheckpointError, match=r"an adapter of another model than .*gguf: "):
        other = write_peft(tmp_path / "c", halves(QUERY, 80, 64))
        convert(make_gguf(base), tmp_path / "out.gguf", merge_lora=[other])
    assert not (tmp_path / "out.gguf").exists()
