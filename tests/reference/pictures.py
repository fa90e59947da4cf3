"""The pictures that tiles are compared on, made of whole numbers alone, and where the answers are.

Imported by the script that asks transformers, torchvision and Meta's code, so it needs NumPy only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

GOLDENS = Path(__file__).with_name("picture_goldens.json")

SIZES: tuple[tuple[int, int], ...] = (
    # Columns and rows. Tiny, and thinner than anything real.
    (1, 1), (1, 2), (2, 1), (3, 3), (13, 17), (16, 16), (1, 336), (336, 1), (1, 10000), (10000, 1),
    (2, 5376), (5376, 2), (7, 3000), (3000, 7), (100, 1), (1, 100),
    # A tile and its neighbours.
    (335, 335), (336, 336), (337, 337), (337, 336), (336, 337), (335, 336), (337, 335), (335, 337),
    (200, 336), (336, 200), (168, 168), (300, 800), (800, 300),
    # Every grid's own size, and a pixel beside some.
    *((336 * columns, 336 * rows)
      for rows in range(1, 17) for columns in range(1, 17)
      if rows * columns <= 16 and (rows, columns) != (1, 1)),
    (671, 672), (673, 672), (1345, 1344), (1343, 1345), (5377, 336), (336, 5377), (5375, 335),
    # What cameras, screens and pages have.
    (640, 480), (480, 640), (800, 600), (1024, 768), (1280, 720), (1920, 1080), (1080, 1920),
    (1080, 2340), (2560, 1440), (3840, 2160), (4032, 3024), (3024, 4032), (1654, 2339), (595, 842),
    (1000, 1000), (1500, 1000), (1000, 1500), (500, 333), (2048, 2048), (999, 777), (4000, 1000),
    (1000, 4000), (3000, 500), (100, 5000), (719, 1213), (401, 2999), (2017, 1999),
)  # fmt: skip


def noise(columns: int, rows: int) -> npt.NDArray[np.uint8]:
    """Bytes without a pattern, uint8 of [rows, columns, 3]: the hardest to resize."""
    number = np.arange(rows * columns * 3, dtype=np.uint32)
    mixed = (number + np.uint32(columns * 7919 + rows)) * np.uint32(2654435761)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(2246822519)
    levels: npt.NDArray[np.uint8] = (mixed >> np.uint32(24)).astype(np.uint8)
    return levels.reshape(rows, columns, 3)


def name_of(columns: int, rows: int) -> str:
    return f"{columns}x{rows}"


def sample_places(count: int) -> npt.NDArray[np.int64]:
    """Of that many bytes, the 64 that a golden has: enough to see what differs."""
    return np.linspace(0, count - 1, 64).astype(np.int64)


def run_lengths(tokens: list[int]) -> list[list[int]]:
    """[token, how often in a row], so that 144 patches are one entry."""
    runs: list[list[int]] = []
    for token in tokens:
        if runs and runs[-1][0] == token:
            runs[-1][1] += 1
        else:
            runs.append([token, 1])
    return runs
