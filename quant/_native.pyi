"""The module built from native/native.cpp."""

import numpy as np
import numpy.typing as npt

GOOD: int
NOT_FINITE: int
OVERFLOW: int

def encode(
    instruction_set: str, type: str, rows: npt.NDArray[np.uint16], out: npt.NDArray[np.uint8]
) -> tuple[int, float]:
    """Encode `rows` [n, length], with rows or columns side by side, into `out`.

    Returns a status, and the seconds that it took to get rows side by side.
    """

def instruction_sets() -> list[str]:
    """Those that run here, the best first."""
