"""Features that stand in a prompt where tokens would: what the scheduler knows of pictures.

A position of a sequence holds the id of a token or, below zero, the name of a row of features. The
same features have the same names everywhere, so that what was read is told by its names alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SeenPicture:
    """What is kept of a picture with a session: its place in a prompt, without its pixels.

    Args:
        file: SHA-256 of the picture's file, as it is in a message.
        size: columns and rows of pixels.
        digest: of its tiles.
    """

    file: bytes
    size: tuple[int, int]
    digest: bytes


class Features(Protocol):
    """Makes rows of features when they are needed, in the thread that calls llama.cpp."""

    def is_ready(self, names: Sequence[int]) -> bool:
        """Whether the rows of these names are there."""

    def step(self, names: Sequence[int]) -> None:
        """Make some of the rows that are not there, in one call that others wait for."""

    def rows(self, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        """The rows of these names, which are there, and the embeddings of the tokens among them;
        float32 of [n_positions, n_embd]."""


def names_in(positions: Sequence[int]) -> list[int]:
    """The names of features among positions of a prompt."""
    return [one for one in positions if one < 0]
