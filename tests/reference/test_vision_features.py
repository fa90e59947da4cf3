"""Features of pictures, from a converted projector through llama.cpp, against transformers'.

On the CPU, what a matrix of f16 is multiplied with is rounded to f16 too, and with one of bf16 to
bf16, which has 3 bits fewer: hence the type that a projector gets unless it is asked for another.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demo.checkpoint import SCOUT_LIKE, Vision
from tests.fixtures import MakeCheckpoint, MakeGGUF, MakeProjector
from tests.mtmd import Bytes, Floats, mtmd_features, opened

from .vision_reference import reference_features

DEMO = Path(__file__).parents[2] / "demo" / "Llama-4-Tiny"


def tile_of(side: int) -> Bytes:
    """Noise, and darker to the left, so that neither axis can stand for the other."""
    tile = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    tile[:, : side // 2] //= 3
    return tile


def cosine(one: Floats, other: Floats) -> float:
    return float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize(
    ("vision_type", "error"), [("f32", 1e-3), ("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 3e-2)]
)
@pytest.mark.parametrize("name", ["demo", "scout", "one layer"])
def test_features_are_those_of_transformers(
    make_checkpoint: MakeCheckpoint,
    make_gguf: MakeGGUF,
    make_projector: MakeProjector,
    name: str,
    vision_type: str,
    error: float,
) -> None:
    layers = 1 if name == "one layer" else 3
    made = replace(SCOUT_LIKE, vision=Vision(layers=layers))
    checkpoint, side = (DEMO, 336) if name == "demo" else (make_checkpoint(made), 56)
    projector = make_projector(checkpoint, vision_type)
    tile = tile_of(side)
    expected = reference_features(checkpoint, tile)
    with opened(make_gguf(checkpoint), projector) as context:
        features = mtmd_features(context, tile, expected.shape[-1])
    assert features.shape == expected.shape == (side // 28, side // 28, 256)
    assert np.linalg.norm(features - expected) / np.linalg.norm(expected) < error
    assert cosine(features, expected) >= 1 - error**2
    # In the other order they are something else.
    assert cosine(features.transpose(1, 0, 2), expected) < 0.95
