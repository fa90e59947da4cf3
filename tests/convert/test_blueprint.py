"""A blueprint is the header of the file that a conversion writes, without the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from gguf import GGUFReader

from demo.checkpoint import MAVERICK_LIKE, SCOUT_BASE_LIKE, Geometry, write_checkpoint
from llama4_edge import convert
from llama4_edge.convert.blueprint import Blueprint, blueprint
from llama4_edge.convert.presets import PRESETS
from llama4_edge.errors import CheckpointError, OutputError, RecipeError, UnsupportedError
from llama4_edge.quant import RECIPES
from tests.fixtures import MakeCheckpoint
from tests.hub_server import HubServer

from .conftest import SMALL
from .on_hub import NAME, SHARDS

GIB = 2**30
TINY_MAVERICK = replace(
    MAVERICK_LIKE, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=64, dense_ffn=64
)


def described(drawn: Blueprint) -> dict[str, tuple[tuple[int, ...], str, int]]:
    return {
        tensor.name: (tensor.shape, tensor.type.name, tensor.nbytes) for tensor in drawn.tensors
    }


def active(drawn: Blueprint) -> int:
    """Parameters that one token passes: everything, but one expert of each layer's."""
    experts = sum(tensor.parameters for tensor in drawn.tensors if tensor.role == "expert")
    return drawn.parameters - experts + experts // drawn.config.hparams.n_expert


@pytest.mark.parametrize("geometry", [SMALL, SCOUT_BASE_LIKE, TINY_MAVERICK])
def test_a_checkpoint_s_blueprint_is_the_header_that_converting_it_writes(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, geometry: Geometry
) -> None:
    checkpoint = make_checkpoint(geometry)
    convert(checkpoint, tmp_path / "converted.gguf", recipe="int4")
    drawn = blueprint(checkpoint, recipe="int4")
    converted = (tmp_path / "converted.gguf").read_bytes()
    assert converted[: len(drawn.header)] == drawn.header
    assert len(converted) == drawn.nbytes


def test_a_repository_is_drawn_from_its_headers(
    published: HubServer, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    local = blueprint(make_checkpoint(replace(SMALL, shards=SHARDS)))
    assert described(blueprint(NAME)) == described(local)
    assert not list((tmp_path / "home").rglob("blobs/*.llama4-edge*"))


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_config_alone_gives_the_same_tensors_as_its_checkpoint(
    make_checkpoint: MakeCheckpoint, recipe: str
) -> None:
    checkpoint = make_checkpoint(TINY_MAVERICK)
    drawn = blueprint(checkpoint / "config.json", recipe=recipe)
    assert described(drawn) == described(blueprint(checkpoint, recipe=recipe))
    assert drawn.metadata["tokenizer.ggml.model"] == "none"


@pytest.mark.parametrize(
    ("model", "text_billions", "active_billions", "int4_gib"),
    [
        ("scout", 107.8, 17.2, 60.29),
        ("scout-base", 107.8, 17.2, 60.29),
        ("maverick", 400.7, 17.2, 214.52),
        # 2T and 288B by its card.
        ("behemoth", 1999.7, 287.4, 1102.58),
    ],
)
def test_the_presets_come_to_the_published_sizes(
    model: str, text_billions: float, active_billions: float, int4_gib: float
) -> None:
    drawn = blueprint(model)
    assert round(drawn.parameters / 1e9, 1) == text_billions
    assert round(active(drawn) / 1e9, 1) == active_billions
    assert round(drawn.nbytes / GIB, 2) == int4_gib


@pytest.mark.heavy
@pytest.mark.parametrize("preset", ["scout", "maverick"])
def test_a_preset_has_the_tensors_of_a_checkpoint_of_true_size(
    tmp_path: Path, real_tokenizer_dir: Path, preset: str
) -> None:
    from .test_published import MAVERICK, SCOUT

    geometry = {"scout": SCOUT, "maverick": MAVERICK}[preset]
    checkpoint = write_checkpoint(
        tmp_path / "m", geometry, tokenizer=real_tokenizer_dir, holes=True
    )
    whole = blueprint(checkpoint)
    assert described(blueprint(preset)) == described(whole)
    report = convert(checkpoint, tmp_path / "out.gguf", dry_run=True, vision=False)
    assert whole.nbytes == report.bytes
    # What the tokenizer adds to the preset's size.
    assert round(whole.nbytes / GIB, 2) == {"scout": 60.30, "maverick": 214.53}[preset]


def test_a_header_file_has_its_true_length_and_takes_no_room(tmp_path: Path) -> None:
    drawn = blueprint("scout", layers=4)
    path = drawn.write_header(tmp_path / "scout.gguf")
    assert path.stat().st_size == drawn.nbytes
    assert path.stat().st_blocks * 512 < 1 << 20
    read = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert list(read) == [tensor.name for tensor in drawn.tensors]
    for tensor in drawn.tensors:
        found = read[tensor.name]
        assert tuple(reversed(found.shape.tolist())) == tensor.shape
        assert (int(found.data_offset), int(found.n_bytes)) == (tensor.offset, tensor.nbytes)
        assert found.n_elements == prod(tensor.shape)


def test_llama_cpp_takes_a_header_file_of_every_preset(tmp_path: Path) -> None:
    import llama_cpp

    for preset in PRESETS:
        drawn = blueprint(preset)
        path = drawn.write_header(tmp_path / "model.gguf")
        params = llama_cpp.llama_model_default_params()
        params.no_alloc, params.load_mode = True, 0
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert model
        assert llama_cpp.llama_model_n_params(model) == drawn.parameters
        assert llama_cpp.llama_model_n_layer(model) == drawn.config.hparams.n_layer
        llama_cpp.llama_model_free(model)


def test_a_slice_keeps_the_first_layers_as_they_are() -> None:
    whole, first = blueprint("scout"), blueprint("scout", layers=4)
    kept = described(first)
    assert {name for name in kept if name.startswith("blk.")} == {
        name for name in described(whole) if name.split(".")[1] in {"0", "1", "2", "3"}
    }
    assert first.metadata["llama4.block_count"] == 4
    with pytest.raises(UnsupportedError, match="4 to 48"):
        blueprint("scout", layers=3)
    with pytest.raises(UnsupportedError, match="4 to 48"):
        blueprint("scout", layers=49)


def test_types_decide_before_the_recipe() -> None:
    drawn = blueprint("scout", recipe="int4", types=[("ffn_down_exps", "q8_0")], layers=4)
    types = {tensor.name: tensor.type.name for tensor in drawn.tensors}
    assert types["blk.0.ffn_down_exps.weight"] == "Q8_0"
    assert types["blk.0.ffn_up_exps.weight"] == "Q4_K"


def test_what_is_no_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one of scout, scout-base, maverick, behemoth"):
        blueprint("scuot")
    with pytest.raises(RecipeError):
        blueprint("scout", recipe="int5")
    shutil.copy(checkpoint / "config.json", tmp_path / "config.json")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["text_config"]["attention_chunk_size"] = 4096
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedError, match="attention_chunk_size"):
        blueprint(tmp_path / "config.json")
    with pytest.raises(OutputError, match="cannot be written"):
        blueprint("scout").write_header(tmp_path / "absent" / "scout.gguf")


def test_a_directory_called_like_a_preset_is_meant_by_a_path(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.rename(tmp_path / "scout")
    monkeypatch.chdir(tmp_path)
    assert blueprint("scout").config.hparams.n_embd == 5120
    assert blueprint("./scout").config.hparams.n_embd == SMALL.hidden
    assert blueprint(Path("scout")).config.hparams.n_embd == SMALL.hidden


def test_behemoth_says_that_its_widths_are_an_assumption() -> None:
    assert "never released" in str(blueprint("behemoth").note)
    assert blueprint("maverick").note is None
