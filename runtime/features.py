"""Features that stand in a prompt where tokens would: what the scheduler knows of pictures.

A position of a sequence holds the id of a token or, below zero, the name of a row of features. The
same features have the same names everywhere, so that what was read is told by its names alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Features(Protocol):
    """Makes rows of features when they are needed, in the thread that calls llama.cpp."""

    def is_ready(self, names: Sequence[int]) -> bool:
        """Whether the rows of these names are there."""

    def step(self, names: Sequence[int]) -> None:
        """Make some of the rows that are not there, in one call that others wait for."""

    def rows(self, names: Sequence[int]) -> npt.NDArray[np.float32]:
        """The rows of these names, which are there; float32 of [n_names, n_embd]."""


def run_length(positions: Sequence[int], begin: int, end: int) -> int:
    """How many positions from ``begin`` on, before ``end``, are of one kind: tokens or names."""
    is_name = positions[begin] < 0
    for index in range(begin + 1, end):
        if (positions[index] < 0) != is_name:
            return index - begin
    return end - begin
