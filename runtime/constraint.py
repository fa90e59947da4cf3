"""What may come next in an answer: an object of whoever asks, looked at before each token.

Knows nothing of grammars.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from ..errors import EngineError
from ..ranges import value_text
from .bindings.candidates import Mask

__all__ = ["Constraint", "Mask", "mask_of"]


@runtime_checkable
class Constraint(Protocol):
    """What may come next in one answer.

    It is called in the engine's thread alone, and must not call the engine. What it raises ends its
    answer with that error.
    """

    def mask(self) -> Mask | None:
        """The tokens that may come next; None is any. Not changed by who gets it."""

    def accept(self, token: int) -> None:
        """Take the token that was chosen, which may be one that ends the answer."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may come any more: the answer ends here by itself."""


def mask_of(constraint: Constraint, n_vocab: int) -> Mask | None:
    """What may come next, checked.

    Raises:
        EngineError: it is not a mask for so many tokens.
    """
    mask = constraint.mask()
    if mask is None:
        return None
    size = (n_vocab + 31) // 32
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint32 or mask.shape != (size,):
        raise EngineError(
            "the mask of a constraint is not one",
            found=value_text(mask),
            expected=f"uint32 of [{size}], a bit for each of {n_vocab} tokens, or None",
        )
    return np.ascontiguousarray(mask)
