"""Draws docs/concepts/feature-order.png: a picture, and where the model finds its shapes in it.

    python -m tools.feature_order MODEL.gguf [PICTURE]

MODEL.gguf needs its projector beside it. Each of the 12 by 12 features of the tile is a square, the
brighter the less it is like the features of the background (by the cosine with their median): once
in reading order, as the model was trained, and once in the order in which llama.cpp returns them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from demo.training.lessons.picture import Picture
from llama4_edge import Model

PICTURE = Path(__file__).parents[1] / "docs" / "concepts" / "feature-order.png"

_SIDE = 12
_PIXELS = 252  # of a panel's side
_GAP = 12


def unlikeness(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """How unlike the most usual feature each is, from 0 to 1; [144]."""
    usual = np.median(features, axis=0)
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(usual)
    distance: npt.NDArray[np.float64] = 1.0 - (features @ usual) / lengths
    scaled: npt.NDArray[np.float64] = np.clip(distance / distance.max(), 0.0, 1.0)
    return scaled


def panel(values: npt.NDArray[np.float64]) -> Image.Image:
    """One square for each of 144 values, row by row."""
    levels = (255 * values.reshape(_SIDE, _SIDE)).astype(np.uint8)
    return Image.fromarray(levels).resize((_PIXELS, _PIXELS), Image.Resampling.NEAREST)


def draw(pixels: npt.NDArray[np.uint8], features: npt.NDArray[np.float32]) -> Image.Image:
    """The picture, its features in reading order, and as llama.cpp returns them."""
    values = unlikeness(features)
    as_returned = values.reshape(_SIDE, _SIDE).T.ravel()
    panels: list[Any] = [
        Image.fromarray(pixels).resize((_PIXELS, _PIXELS)),
        panel(values),
        panel(as_returned),
    ]
    whole = Image.new("RGB", (3 * _PIXELS + 2 * _GAP, _PIXELS), "white")
    for number, one in enumerate(panels):
        whole.paste(one, (number * (_PIXELS + _GAP), 0))
    return whole


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path, nargs="?", default=PICTURE)
    arguments = parser.parse_args()
    pixels = Picture("blue", "star", 3, seed=11).pixels()
    with Model(arguments.model, n_ctx=512) as model:
        (features,) = model.image_features(pixels)
    draw(pixels, features).save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
