"""What the vision tower and the projector weigh: from headers, and from a configuration alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from demo.checkpoint import SCOUT_LIKE, TEXT_ONLY, Geometry, Vision
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.checkpoint import open_checkpoint
from llama4_edge.convert.spelling import VISION_PREFIXES
from llama4_edge.convert.vision import vision_shapes, vision_weights
from llama4_edge.convert.vision_config import parse_vision
from llama4_edge.errors import UnsupportedError
from tests.fixtures import MakeCheckpoint
from tests.hub_server import HubServer

from .conftest import SMALL_WITH_TOWER
from .on_hub import NAME, SHARDS

# No two sizes alike, so that none can stand in for another.
UNLIKE = replace(
    SCOUT_LIKE,
    vision=Vision(hidden=80, layers=3, heads=5, image_size=70, patch_size=10, projector=112),
)


@pytest.mark.parametrize("geometry", [SCOUT_LIKE, UNLIKE])
def test_a_configuration_has_the_vision_tensors_of_its_checkpoint(
    make_checkpoint: MakeCheckpoint, geometry: Geometry
) -> None:
    checkpoint = open_checkpoint(make_checkpoint(geometry))
    stored = {
        name: tensor.shape
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(VISION_PREFIXES)
    }
    described = parse_vision(checkpoint.config)
    assert described is not None
    assert vision_shapes(described, geometry.hidden) == stored


def test_a_checkpoint_s_vision_tower_weighs_what_its_tensors_do(
    make_checkpoint: MakeCheckpoint,
) -> None:
    path = make_checkpoint(SCOUT_LIKE)
    # Two bytes as they are stored, but for vectors and positions: those are kept in F32.
    exact = "positional_embedding_vlm"
    tower = projector = 0
    for tensor in open_checkpoint(path).tensors.values():
        widened = 2 if len(tensor.shape) == 1 or tensor.name.endswith(exact) else 1
        if "vision_adapter" in tensor.name or "multi_modal_projector" in tensor.name:
            projector += tensor.nbytes
        elif "vision_model" in tensor.name:
            tower += widened * tensor.nbytes
    weights = blueprint(path).vision
    assert weights is not None
    assert (weights.tower, weights.projector) == (tower, projector)
    assert blueprint(path / "config.json").vision == weights
    # 256 x 96, 96 x 96 and 96 x 256 numbers.
    assert projector == 2 * (256 * 96 + 96 * 96 + 96 * 256)


def test_a_repository_s_vision_tower_is_weighed_by_its_headers(
    published: HubServer, make_checkpoint: MakeCheckpoint
) -> None:
    local = blueprint(make_checkpoint(replace(SMALL_WITH_TOWER, shards=SHARDS))).vision
    assert local is not None
    assert blueprint(NAME).vision == local


@pytest.mark.parametrize("preset", ["scout", "scout-base", "maverick"])
def test_the_published_vision_tower_takes_1_63_gib(preset: str) -> None:
    vision = blueprint(preset).vision
    width, ffn, layers = 1408, 5632, 34
    matrices = layers * (4 * width * width + 2 * width * ffn)
    matrices += width * 3 * 14 * 14
    # Biases and norms of each layer; norms around them, the class embedding; positions.
    exact = layers * (9 * width + ffn) + 5 * width + (24 * 24 + 1) * width
    assert vision is not None
    assert vision.tower == 2 * matrices + 4 * exact
    assert vision.projector == 2 * (5632 * 4096 + 4096 * 4096 + 4096 * 5120)
    assert vision.tower + vision.projector == 1_746_748_416
    assert round((vision.tower + vision.projector) / 2**30, 2) == 1.63


def test_what_has_no_vision_tower_weighs_none(
    make_checkpoint: MakeCheckpoint,
) -> None:
    text_only = make_checkpoint(TEXT_ONLY)
    assert blueprint(text_only).vision is None
    assert blueprint(text_only / "config.json").vision is None
    assert blueprint(make_checkpoint(replace(SCOUT_LIKE, vision=None))).vision is None
    # It was never released: nobody knows.
    assert blueprint("behemoth").vision is None
    assert vision_weights({"language_model.model.norm.weight": (5120,)}, None, 5120) is None


def test_a_vision_tower_of_no_size_is_refused(scout_checkpoint: Path, tmp_path: Path) -> None:
    settings = json.loads((scout_checkpoint / "config.json").read_text())
    settings["vision_config"] |= {"patch_size": 0, "hidden_size": "wide"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedError, match=r"2 setting.*hidden_size: 'wide'.*patch_size: 0"):
        blueprint(tmp_path / "config.json")
