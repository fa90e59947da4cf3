"""A GGUF becomes another one: of other types, with all that it said."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.quants import dequantize

from demo.checkpoint import TIED
from llama4_edge import Model, Progress, convert, diff, split
from llama4_edge.convert import output, slabs
from llama4_edge.errors import (
    DamagedTensorError,
    ModelFileError,
    OutputError,
    RecipeError,
    SettingError,
)
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeCheckpoint, MakeGGUF, MakeProjector
from tests.gguf_maker import STR, U32, TinyModel, Value, tiny_model, tiny_projector

from .conftest import SMALL

Q8_0 = GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def source(make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF) -> Path:
    """A small model in bf16."""
    return make_gguf(make_checkpoint(SMALL), "bf16")


def types_of(path: str | Path) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in read_gguf(path).tensors}


@pytest.mark.parametrize("recipe", ["bf16", "f16", "q8_0"])
def test_keep_keeps_the_types_and_the_bytes_of_every_tensor(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF, tmp_path: Path, recipe: str
) -> None:
    file = make_gguf(make_checkpoint(SMALL), recipe)
    report = convert(file, tmp_path / "out.gguf", recipe="keep")
    ours, theirs = (
        {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in reader.tensors}
        for reader in map(GGUFReader, (report.output, file))
    )
    assert ours == theirs
    assert report.recipe == "keep"


@pytest.mark.parametrize("recipe", ["int4", "int8", "q4_k_m", "f16"])
def test_from_bf16_the_file_is_that_of_the_checkpoint(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF, source: Path, tmp_path: Path, recipe: str
) -> None:
    expected = make_gguf(make_checkpoint(SMALL), recipe)
    report = convert(source, tmp_path / "out.gguf", recipe=recipe)
    assert Path(report.output).read_bytes() == expected.read_bytes()
    assert (report.recipe, report.projector, report.left_out) == (recipe, None, ())


def test_a_tied_output_stays_one(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(replace(TIED, vision=None))
    report = convert(make_gguf(checkpoint, "bf16"), tmp_path / "out.gguf", recipe="q4_k_m")
    assert "output.weight" not in types_of(report.output)
    assert Path(report.output).read_bytes() == make_gguf(checkpoint, "q4_k_m").read_bytes()


def test_any_part_of_a_split_model_is_the_model(source: Path, tmp_path: Path) -> None:
    whole = convert(source, tmp_path / "whole.gguf")
    parts = split(source, tmp_path / "parts", parts=3).outputs
    for part in parts:
        report = convert(part, tmp_path / "out.gguf", force=True)
        assert Path(report.output).read_bytes() == Path(whole.output).read_bytes()
    again = convert(parts[1], tmp_path / "small.gguf", split_size=300_000)
    assert len(again.outputs) > 1 and diff(again.output, whole.output).equal
    with Model(again.output, n_ctx=64, n_threads=1) as model:
        assert model.tokenize("A")


def test_metadata_go_over_as_they_stand_and_say_the_new_types(tmp_path: Path) -> None:
    model = tiny_model()
    model.keys["custom.unknown"] = Value(
        [0.5, math.nan], GGUFValueType.ARRAY, GGUFValueType.FLOAT32
    )
    model.keys["general.file_type"] = Value(0, U32)
    model.keys["general.author"] = Value("Somebody", STR)
    first = model.write(tmp_path / "a.gguf")
    report = convert(first, tmp_path / "b.gguf", recipe="q8_0")
    before, after = read_gguf(first), read_gguf(report.output)
    assert [*before.metadata, "general.quantization_version", "llama4_edge.recipe"] == [
        *after.metadata
    ]
    changed = {entry.key: entry for entry in diff(first, report.output, numbers=False).metadata}
    assert set(changed) == {
        "general.file_type", "general.quantization_version", "llama4_edge.recipe",
    }  # fmt: skip
    assert after.metadata["general.file_type"] == 7
    assert after.metadata["tokenizer.chat_template"] == "{{ messages[0].content }}"
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]


def test_tensors_lie_as_the_alignment_that_goes_over_says(tmp_path: Path) -> None:
    model = tiny_model()
    model.keys["general.alignment"] = Value(128, U32)
    first = model.write(tmp_path / "a.gguf")
    after = read_gguf(convert(first, tmp_path / "b.gguf", recipe="q8_0").output)
    assert after.alignment == 128
    assert all(tensor.offset % 128 == 0 for tensor in after.tensors)


def test_a_file_without_a_tokenizer_that_says_so_is_converted(tmp_path: Path) -> None:
    model = tiny_model()
    for key in [key for key in model.keys if key.startswith("tokenizer.")]:
        del model.keys[key]
    model.keys["tokenizer.ggml.model"] = Value("none", STR)
    model.keys["llama4.vocab_size"] = Value(263, U32)
    report = convert(model.write(tmp_path / "a.gguf"), tmp_path / "b.gguf", recipe="q4_0")
    assert types_of(report.output)["blk.0.attn_q.weight"] == "Q4_0"


def test_what_is_never_quantized_keeps_its_type(tmp_path: Path) -> None:
    model = tiny_model()
    router = "blk.0.ffn_gate_inp.weight"
    model.tensors[router] = model.tensors[router].astype(np.float16)
    model.types[router] = GGMLQuantizationType.F16
    report = convert(model.write(tmp_path / "a.gguf"), tmp_path / "b.gguf", recipe="q8_0")
    types = types_of(report.output)
    assert (types[router], types["blk.1.ffn_gate_inp.weight"]) == ("F16", "F32")


def test_overrides_choose_types_before_the_recipe(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "b.gguf", types=[("ffn_down_exps", "q5_0")])
    assert types_of(report.output)["blk.0.ffn_down_exps.weight"] == "Q5_0"


# --- rounding twice


def test_tensors_of_few_bits_are_encoded_anew_on_demand_alone(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    small = make_gguf(make_checkpoint(replace(SMALL, hidden=256, expert_ffn=256)), "int4")
    with pytest.raises(RecipeError) as refused:
        convert(small, tmp_path / "b.gguf", recipe="q4_0")
    assert "of Q4_K (blk." in str(refused.value) and "requantize=True" in str(refused.value)
    assert "Q8_0 (" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    report = convert(small, tmp_path / "b.gguf", recipe="q4_0", requantize=True)
    twice = [note for note in report.notes if note.startswith("rounded a second time")]
    assert len(twice) == 1 and "of Q4_K" in twice[0]


def test_tensors_that_have_their_type_already_are_copied(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    small = make_gguf(make_checkpoint(SMALL), "int4")
    report = convert(small, tmp_path / "b.gguf", recipe="int4")
    assert Path(report.output).read_bytes() == small.read_bytes()
    assert report.notes == ()


@pytest.mark.parametrize("kind", ["MXFP4", "NVFP4", "IQ4_NL", "Q5_1"])
def test_a_type_that_recipes_do_not_write_is_decoded_as_ggml_does(
    tmp_path: Path, kind: str
) -> None:
    model = tiny_model()
    name, encoding = "token_embd.weight", GGMLQuantizationType[kind]
    block, nbytes = GGML_QUANT_SIZES[encoding]
    model.tensors[name] = np.full((263, 64 // block * nbytes), 60, np.uint8)
    model.types[name] = encoding
    first = model.write(tmp_path / "a.gguf")
    report = convert(
        first, tmp_path / "b.gguf", recipe="bf16", types=[(name, "f32")], requantize=True
    )
    tensors = {tensor.name: tensor for tensor in GGUFReader(report.output).tensors}
    assert np.array_equal(tensors[name].data, dequantize(model.tensors[name], encoding))


def test_infinite_scales_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = tiny_model()
    name = "blk.0.attn_q.weight"
    model.tensors[name] = np.full((64, 2 * 34), 0x7C, np.uint8)
    model.types[name] = Q8_0
    first = model.write(tmp_path / "a.gguf")
    for recipe in ("q8_0", "q4_0"):
        with pytest.raises(DamagedTensorError, match=name):
            convert(first, tmp_path / "b.gguf", recipe=recipe)
    assert list(tmp_path.iterdir()) == [first]


# --- what is written, and what is not


def test_a_source_is_never_replaced(source: Path, tmp_path: Path) -> None:
    copy = shutil.copy(source, tmp_path / "model.gguf")
    (tmp_path / "link.gguf").symlink_to(copy)
    for name in ("model.gguf", "link.gguf"):
        with pytest.raises(OutputError, match="is a file of the model that is read"):
            convert(copy, tmp_path / name, recipe="int8", force=True)
    assert Path(copy).read_bytes() == source.read_bytes()


def test_the_default_name_has_the_new_recipe_in_place_of_the_old_type(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, expected in {
        "Scout-BF16.gguf": "Scout-int4.gguf",
        "scout.q8_0.gguf": "scout-int4.gguf",
        "scout.gguf": "scout-int4.gguf",
        "bf16.gguf": "bf16-int4.gguf",
    }.items():
        shutil.copyfile(source, name)
        assert convert(name, dry_run=True).output == expected


def test_a_dry_run_writes_nothing_and_an_existing_target_stays(
    source: Path, tmp_path: Path
) -> None:
    report = convert(source, tmp_path / "b.gguf", dry_run=True)
    assert report.dry_run and list(tmp_path.iterdir()) == []
    (tmp_path / "b.gguf").write_text("mine")
    with pytest.raises(OutputError, match=r"b\.gguf exists"):
        convert(source, tmp_path / "b.gguf")
    assert convert(source, tmp_path / "b.gguf", force=True).bytes == report.bytes


def test_an_interrupted_conversion_goes_on_to_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 40_000)
    monkeypatch.setattr(output, "COMMIT_SECONDS", 0.0)
    whole = convert(source, tmp_path / "whole.gguf")

    def stop(step: Progress) -> None:
        if step.bytes_done > step.bytes_total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "b.gguf", progress=stop)
    assert not (tmp_path / "b.gguf").exists()
    report = convert(source, tmp_path / "b.gguf")
    assert 0 < report.resumed_at < 1
    assert Path(report.output).read_bytes() == Path(whole.output).read_bytes()


# --- what is no source


def without(model: TinyModel, *names: str) -> TinyModel:
    for name in names:
        model.tensors.pop(name)
    return model


def test_other_files_are_refused_as_elsewhere(tmp_path: Path) -> None:
    other = tiny_model()
    other.keys["general.architecture"] = Value("llama", STR)
    vocabulary = without(tiny_model(), *tiny_model().tensors)
    combined = tiny_model()
    combined.tensors["v.class_embd"] = np.ones(16, np.float32)
    (tmp_path / "text.gguf").write_text("{}")
    for name, model, problem in [
        ("other", other, "is not a Llama 4 model"),
        ("vocabulary", vocabulary, "has no tensor token_embd.weight"),
        ("combined", combined, "a text model and its vision tower in one file"),
    ]:
        path = model.write(tmp_path / f"{name}.gguf")
        with pytest.raises(ModelFileError, match=problem):
            convert(path, tmp_path / "out.gguf", recipe="q8_0")
    with pytest.raises(ModelFileError, match="is not a GGUF file"):
        convert(tmp_path / "text.gguf")
    with pytest.raises(ModelFileError, match="does not exist"):
        convert(tmp_path / "none.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_model().write(tmp_path / "a.gguf").read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="is truncated"):
        convert(cut)


def test_a_file_without_an_ending_that_begins_like_a_gguf_is_one(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "sha256-0123")
    assert (
        types_of(convert(path, tmp_path / "b.gguf", recipe="q8_0").output)["output.weight"]
        == "Q8_0"
    )


def test_settings_of_no_effect_are_refused(source: Path, tiny_path: Path, tmp_path: Path) -> None:
    projector = tiny_projector().write(tmp_path / "mmproj.gguf")
    for settings in ({"vision_type": "f16"}, {"revision": "main"}):
        with pytest.raises(SettingError, match="is of no effect"):
            convert(source, tmp_path / "b.gguf", **settings)  # type: ignore[arg-type]
    for others in ({"recipe": "int4"}, {"split_size": 10}, {"types": [("a", "q8_0")]}):
        with pytest.raises(SettingError, match="is of no effect"):
            convert(projector, tmp_path / "b.gguf", **others)
    with pytest.raises(ModelFileError, match="is not what is to be converted"):
        convert(source, tmp_path / "b.gguf", text=False)
    with pytest.raises(ModelFileError, match="is not what is to be converted"):
        convert(projector, tmp_path / "b.gguf", vision=False)


def test_requantize_is_of_no_effect_on_a_checkpoint(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="requantize is of no effect"):
        convert(make_checkpoint(SMALL), tmp_path / "b.gguf", requantize=True)


# --- projectors


@pytest.mark.parametrize("kind", ["f16", "q8_0", "bf16"])
def test_a_projector_in_f32_becomes_that_of_the_checkpoint(
    scout_checkpoint: Path, make_projector: MakeProjector, tmp_path: Path, kind: str
) -> None:
    source = make_projector(scout_checkpoint, "f32")
    report = convert(source, tmp_path / "out.gguf", vision_type=kind)
    expected = make_projector(scout_checkpoint, kind)
    assert Path(report.output).read_bytes() == expected.read_bytes()
    assert (report.recipe, report.projector) == (kind, report.output)


def test_a_misnamed_projector_is_encoded_under_the_right_names(tmp_path: Path) -> None:
    model = tiny_projector()
    model.tensors = {
        name.replace(".ln2.", ".attn_post_norm."): data for name, data in model.tensors.items()
    }
    report = convert(model.write(tmp_path / "a.gguf"), tmp_path / "b.gguf", vision_type="f16")
    types = types_of(report.output)
    assert types["v.blk.0.ln2.weight"] == "F32" and types["v.blk.0.attn_q.weight"] == "F16"
