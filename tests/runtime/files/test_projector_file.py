"""Projector files: what is read of a sound one, and that mtmd never sees any other."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from demo.checkpoint import SCOUT_LIKE, Vision
from llama4_edge import Model, convert, inspect
from llama4_edge.errors import ModelFileError, OutputError
from llama4_edge.runtime.bindings.vision import mtmd
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.runtime.files.projector_file import (
    check_projector_file,
    mended_name,
    misnamed_tensors,
)
from tests.fixtures import MakeCheckpoint, MakeGGUF, MakeProjector
from tests.gguf_maker import BOOL, EMBD, F32, I32, STR, U32, TinyModel, Value, tiny_projector
from tests.mtmd import mtmd_features, opened


def test_a_sound_file_is_read(tiny_projector_path: Path) -> None:
    info = check_projector_file(tiny_projector_path, n_embd=EMBD)
    shape = info.shape
    assert (shape.n_layer, shape.width, shape.n_head, shape.n_ff) == (3, 16, 2, 64)
    assert (shape.image_size, shape.patch_size, shape.merge) == (16, 4, 2)
    assert (shape.side, shape.tokens, shape.n_embd) == (2, 4, EMBD)
    assert (info.image_mean, info.image_std) == ((0.5,) * 3, (0.5,) * 3)
    assert info.bytes == tiny_projector_path.stat().st_size
    assert info.weight_bytes == sum(data.nbytes for data in tiny_projector().tensors.values())


def test_mtmd_computes_with_a_sound_file(tiny_path: Path, tiny_projector_path: Path) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    with opened(tiny_path, tiny_projector_path) as context:
        features = mtmd_features(context, tile, EMBD)
    assert features.shape == (2, 2, EMBD)
    assert np.isfinite(features).all()
    assert features.std() > 0


def test_one_for_another_width_is_refused(tiny_projector_path: Path) -> None:
    with pytest.raises(
        ModelFileError,
        match=f"is the projector of another model, found embeddings of {EMBD} numbers, expected 99",
    ):
        check_projector_file(tiny_projector_path, n_embd=99)


def test_a_text_model_is_none(tiny_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is not a projector, found architecture llama4"):
        check_projector_file(tiny_path)


VISION = "clip.vision."


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("clip.projector_type", Value("qwen2vl_merger", STR), "another kind of model.*qwen2vl"),
        ("clip.projector_type", None, "another kind of model, found no clip.projector_type"),
        ("clip.has_vision_encoder", None, "has_vision_encoder, found no such key"),
        ("clip.has_audio_encoder", Value(True, BOOL), "has_audio_encoder, found True"),
        ("clip.use_gelu", Value(False, BOOL), "use_gelu, found False"),
        ("clip.use_silu", Value(True, BOOL), "use_silu, found True"),
        (VISION + "embedding_length", Value(16, I32), "found type i32, expected type u32"),
        (VISION + "block_count", Value(129, U32), "block_count, found 129, .* between 1 and 128"),
        (VISION + "block_count", Value(2, U32), "do not: v.blk.2.ln1.weight and 15 more"),
        (VISION + "block_count", Value(4, U32), "has no tensor: v.blk.3.ln1.weight and 15 more"),
        (VISION + "attention.head_count", Value(0, U32), "head_count, found 0"),
        (VISION + "attention.head_count", Value(8, U32), "head_count, found 8, .*multiple of 4"),
        (VISION + "attention.head_dim", Value(4, U32), "head_dim, found 4, expected 8"),
        (VISION + "image_size", Value(18, U32), "image_size, found 18, .*2 patches of 4"),
        (VISION + "image_size", Value(32, U32), "misshapen tensor: v.position_embd.weight"),
        (VISION + "image_size", Value(2**20, U32), "image_size, found 1048576"),
        (VISION + "patch_size", Value(0, U32), "patch_size, found 0"),
        (VISION + "projector.scale_factor", None, "scale_factor, found no such key"),
        (VISION + "feed_forward_length", Value(32, U32), "feed_forward_length.*expected 64"),
        (VISION + "projection_dim", Value(32, U32), "misshapen tensor: mm.model.fc.weight"),
        (VISION + "image_std", None, "image_std, found no such key"),
        (VISION + "attention.layer_norm_epsilon", Value(0.0, F32), "layer_norm_epsilon, found 0.0"),
    ],
)
def test_what_mtmd_cannot_compute_is_refused_by_name(
    tmp_path: Path, key: str, value: Value | None, said: str
) -> None:
    model = tiny_projector()
    model.keys.pop(key, None)
    if value is not None:
        model.keys[key] = value
    with pytest.raises(ModelFileError, match=said):
        check_projector_file(model.write(tmp_path / "other.gguf"))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("v.post_ln.bias", None, "has no tensor: v.post_ln.bias"),
        ("v.blk.0.attn_q_norm.weight", np.ones(8, np.float32), "do not: v.blk.0.attn_q_norm"),
        ("v.class_embd", np.ones(16, np.float16), "here: v.class_embd, found F16, expected F32"),
        ("v.class_embd", np.ones((2, 8), np.float32), "misshapen tensor: v.class_embd"),
        (
            "mm.model.mlp.2.weight",
            np.ones((24, 32), np.float32),
            "matrices that do not follow each other: mm.model",
        ),
    ],
)
def test_other_tensors_are_refused_by_name(
    tmp_path: Path, name: str, data: np.ndarray | None, said: str
) -> None:
    model = tiny_projector()
    model.tensors.pop(name, None)
    if data is not None:
        model.tensors[name] = data
    with pytest.raises(ModelFileError, match=said):
        check_projector_file(model.write(tmp_path / "other.gguf"))


def test_a_truncated_file_is_refused(tmp_path: Path, tiny_projector_path: Path) -> None:
    data = tiny_projector_path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:-100])
    with pytest.raises(ModelFileError, match="is truncated: 1 of 58 tensors"):
        check_projector_file(tmp_path / "cut.gguf")


def test_the_compute_buffer_is_no_larger_than_counted(
    make_checkpoint: MakeCheckpoint,
    make_gguf: MakeGGUF,
    make_projector: MakeProjector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In llama.cpp's own words, for towers of the published width, and for narrow ones."""
    mtmd()  # from now on its log is Python's
    caplog.set_level(logging.DEBUG, logger="llama4_edge.llama_cpp")
    for vision, close in (
        (Vision(hidden=1408, layers=3, heads=16, image_size=336, projector=64), True),
        (Vision(hidden=128, layers=3, heads=4, image_size=336, projector=2560), False),
        (Vision(hidden=64, layers=3, heads=4, image_size=56, projector=96), False),
    ):
        checkpoint = make_checkpoint(replace(SCOUT_LIKE, vision=vision))
        projector = make_projector(checkpoint)
        with Model(make_gguf(checkpoint), n_ctx=64, n_threads=1) as model:
            caplog.clear()
            model.engine.open_encoder(projector)
        sizes = re.findall(r"compute buffer size = +([\d.]+) MiB", caplog.text)
        counted = check_projector_file(projector).shape.compute_bytes / 2**20
        assert float(sizes[-1]) <= counted + 0.005
        assert not close or float(sizes[-1]) > counted - 0.02


def misnamed() -> TinyModel:
    """As convert_hf_to_gguf.py of llama.cpp's release of 2026 names them."""
    model = tiny_projector()
    renamed = {
        name.replace(".ln2.", ".attn_post_norm."): data for name, data in model.tensors.items()
    }
    model.tensors.clear()
    model.tensors.update(renamed)
    return model


def test_a_file_that_llama_cpp_s_converter_misnamed_is_told_and_refused_with_the_cure(
    tmp_path: Path,
) -> None:
    path = misnamed().write(tmp_path / "misnamed.gguf")
    assert misnamed_tensors(read_gguf(path)) == [
        f"v.blk.{layer}.attn_post_norm.{kind}" for layer in range(3) for kind in ("bias", "weight")
    ]
    assert mended_name("v.blk.33.attn_post_norm.weight") == "v.blk.33.ln2.weight"
    with pytest.raises(ModelFileError, match=r"6 tensors have names .*attn_post_norm.*is v\.blk"):
        check_projector_file(path)
    (damage,) = inspect(path, check=True).damage or ()
    assert damage.certain
    assert "llama4 convert" in damage.what


def test_a_misnamed_file_is_written_again_with_the_right_names(
    tmp_path: Path, tiny_projector_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = misnamed().write(tmp_path / "misnamed.gguf")
    before = path.read_bytes()
    assert convert(path, dry_run=True).output == "misnamed-mended.gguf"
    assert not Path("misnamed-mended.gguf").exists()
    report = convert(path)
    assert report.outputs == ("misnamed-mended.gguf",)
    mended = Path(report.output)
    # The file that it should have been from the beginning.
    assert mended.read_bytes() == tiny_projector_path.read_bytes()
    assert path.read_bytes() == before
    assert check_projector_file(mended).shape.n_layer == 3
    with pytest.raises(OutputError, match="exists"):
        convert(path)
    with pytest.raises(OutputError, match="exists"):
        convert(path, path, force=True)
    assert convert(path, mended, force=True).bytes == len(tiny_projector_path.read_bytes())
    assert sorted(it.name for it in tmp_path.iterdir()) == [
        "misnamed-mended.gguf",
        "misnamed.gguf",
    ]


def test_what_is_wrong_beside_names_is_not_mended(tmp_path: Path) -> None:
    model = misnamed()
    del model.tensors["v.blk.1.attn_k.bias"]
    path = model.write(tmp_path / "misnamed.gguf")
    with pytest.raises(ModelFileError, match="has no tensor"):
        convert(path, tmp_path / "mended.gguf")
    assert [it.name for it in tmp_path.iterdir()] == ["misnamed.gguf"]


def test_another_model_s_projector_may_have_such_names(tmp_path: Path) -> None:
    model = misnamed()
    model.keys["clip.projector_type"] = Value("gemma4v", STR)
    path = model.write(tmp_path / "gemma.gguf")
    assert misnamed_tensors(read_gguf(path)) == []


def test_inspect_check_finds_what_is_missing(tmp_path: Path, tiny_projector_path: Path) -> None:
    assert inspect(tiny_projector_path, check=True).damage == ()
    model = tiny_projector()
    del model.tensors["v.blk.1.attn_k.bias"]
    (damage,) = inspect(model.write(tmp_path / "other.gguf"), check=True).damage or ()
    assert "has no tensor: v.blk.1.attn_k.bias" in damage.what


def test_quantized_matrices_are_computed_with(tmp_path: Path, tiny_path: Path) -> None:
    from gguf.quants import quantize

    model = tiny_projector()
    for name, data in list(model.tensors.items()):
        if data.ndim == 2 and data.shape[1] % 32 == 0:
            model.tensors[name] = quantize(data, GGMLQuantizationType.Q8_0)
            model.types[name] = GGMLQuantizationType.Q8_0
    path = model.write(tmp_path / "q8_0.gguf")
    info = check_projector_file(path)
    assert sum(tensor.type == "Q8_0" for tensor in info.gguf.tensors) == 4
    with opened(tiny_path, path) as context:
        features = mtmd_features(context, np.zeros((16, 16, 3), np.uint8), EMBD)
    assert np.isfinite(features).all()
