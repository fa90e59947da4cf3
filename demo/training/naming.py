"""The auxiliary loss of the vision tower: linear classifiers on a picture's features.

Promises: a loss that is small only if colour, shape, count and the content of each place can be
read linearly from the features. Discarded after the training, since the language model reads the
features itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from .encoding import PICTURE_TOKENS
from .lessons.picture import COLOURS, COUNTS, SHAPES, Picture

# A picture's features are a grid of this many rows and columns.
_PLACES = math.isqrt(PICTURE_TOKENS)
# Class weights: few places are the centre of a shape.
_CENTRE_WEIGHTS = (0.1, 1.0)


class Naming(torch.nn.Module):
    """Linear classifiers: of a picture by its mean feature, and of a place by its own feature."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.picture = torch.nn.Linear(hidden, len(COLOURS) + len(SHAPES) + len(COUNTS))
        self.place = torch.nn.Linear(hidden, 1 + len(SHAPES) + 2)

    def forward(self, pictures: Sequence[Picture], features: torch.Tensor) -> torch.Tensor:
        """The mean cross entropy of the true labels.

        Args:
            pictures: of the batch.
            features: the tower's outputs for them, [pictures, 144, hidden].
        """
        scores = self.picture(features.mean(1))
        sizes = [len(COLOURS), len(SHAPES), len(COUNTS)]
        colours, shapes, counts = torch.split(scores, sizes, dim=1)
        whole = (
            _loss(colours, [tuple(COLOURS).index(picture.colour) for picture in pictures])
            + _loss(shapes, [SHAPES.index(picture.shape) for picture in pictures])
            + _loss(counts, [picture.count - 1 for picture in pictures])
        )
        scores = self.place(features).flatten(0, 1)
        shape_here, centre_here = torch.split(scores, [1 + len(SHAPES), 2], dim=1)
        labels = np.array([picture.place_labels(_PLACES) for picture in pictures])
        return (
            whole / 3
            + _loss(shape_here, labels[..., 0].ravel().tolist())
            + _loss(centre_here, labels[..., 1].ravel().tolist(), _CENTRE_WEIGHTS) / 2
        )


def _loss(
    scores: torch.Tensor, labels: list[int], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """The mean cross entropy of ``scores``, [items, classes], with optional class weights."""
    target = torch.tensor(labels, device=scores.device)
    weight = None if weights is None else torch.tensor(weights, device=scores.device)
    return cross_entropy(scores, target, weight=weight)
