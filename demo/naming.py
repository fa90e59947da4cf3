"""Tells from a picture's features what is in it and where: how the vision tower is first taught.

Promises a loss that is small only where the features know colour, shape, count, and what is at each
place. Is thrown away after the training: the language model learns to read the features itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from .encoding import PICTURE_TOKENS
from .world.picture import COLOURS, COUNTS, SHAPES, Picture

# A picture's features are so many rows of so many.
_PLACES = math.isqrt(PICTURE_TOKENS)
# Few places are the centre of a shape: one that is none weighs a tenth.
_CENTRE_WEIGHTS = (0.1, 1.0)


class Naming(torch.nn.Module):
    """Linear names: of a picture by its mean feature, and of a place by its own."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.picture = torch.nn.Linear(hidden, len(COLOURS) + len(SHAPES) + len(COUNTS))
        self.place = torch.nn.Linear(hidden, 1 + len(SHAPES) + 2)

    def forward(self, pictures: Sequence[Picture], features: torch.Tensor) -> torch.Tensor:
        """The mean cross entropy of the right names.

        Args:
            pictures: what was seen.
            features: what the tower made of them, [pictures, 144, hidden].
        """
        named = self.picture(features.mean(1))
        colours, shapes, counts = named.split((len(COLOURS), len(SHAPES), len(COUNTS)), dim=1)
        whole = (
            _loss(colours, [tuple(COLOURS).index(one.colour) for one in pictures])
            + _loss(shapes, [SHAPES.index(one.shape) for one in pictures])
            + _loss(counts, [one.count - 1 for one in pictures])
        )
        there, centre = self.place(features).flatten(0, 1).split((1 + len(SHAPES), 2), dim=1)
        found = np.array([one.found(_PLACES) for one in pictures])
        return (
            whole / 3
            + _loss(there, found[..., 0].ravel().tolist())
            + _loss(centre, found[..., 1].ravel().tolist(), _CENTRE_WEIGHTS) / 2
        )


def _loss(
    scores: torch.Tensor, right: list[int], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """The mean cross entropy; ``scores`` are [things, names], ``right`` a name for each thing."""
    wanted = torch.tensor(right, device=scores.device)
    weight = None if weights is None else torch.tensor(weights, device=scores.device)
    return cross_entropy(scores, wanted, weight=weight)
