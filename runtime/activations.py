"""What the matrices of a model were multiplied with in all texts so far: sums for each tensor.

Promises that a text counts once, and only as a whole. Used in the thread that calls llama.cpp,
where an engine has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import DamagedTensorError
from .bindings.observer import Observer


class Total(NamedTuple):
    """Of one tensor: sums of squares, float64 of [n_matrices, row_length], and how many rows these
    were, int64 of [n_matrices]."""

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


class ActivationSums:
    """Adds up what an engine multiplies with; see `Engine.observe`. Close it after the engine.

    ``totals`` are of the ``n_added`` texts that were added, by the tensors' names.

    Args:
        output: whether the output's matrix counts too.
        logits: whether logits are wanted beside; without them they are not computed.

    Raises:
        EngineError: the C++ of this package was not built.
    """

    def __init__(self, *, output: bool, logits: bool) -> None:
        self.native = Observer(output=output, stops=not (output or logits))
        self.totals: dict[str, Total] = {}
        self.n_added = 0
        self._spoiled = False

    def close(self) -> None:
        """Free what C++ has; the totals stay."""
        self.native.close()

    def restore(self, totals: Mapping[str, Total], n_added: int) -> None:
        """Go on from what was added before."""
        self.totals, self.n_added = dict(totals), n_added

    def begin(self) -> None:
        """A text begins; what was seen since the last one was added is forgotten."""
        self._spoiled = False
        self.native.begin()

    def spoil(self) -> None:
        """A batch was given up in the middle, of which a part may have been seen."""
        self._spoiled = True

    def check(self) -> None:
        """Whether what was seen since the last text was added are numbers.

        Raises:
            DamagedTensorError: what a matrix was multiplied with is NaN or infinite.
            EngineError: llama.cpp's graph was not understood.
        """
        for name, sums, _ in self.native.observations():
            if not np.isfinite(sums).all():
                raise DamagedTensorError(f"{name} is multiplied with NaN or infinite numbers")

    def add(self) -> bool:
        """The text was read: it counts. False where a batch of it was given up, and it does not.

        Raises:
            DamagedTensorError: what a matrix was multiplied with is NaN or infinite.
            EngineError: llama.cpp's graph was not understood.
        """
        observations = list(self.native.observations())
        if self._spoiled:
            return False
        self.check()
        for name, sums, counts in observations:
            total = self.totals.get(name)
            if total is None:
                self.totals[name] = Total(sums.copy(), counts.copy())
            else:
                total.sums[:] += sums
                total.counts[:] += counts
        self.n_added += 1
        return True
