"""A plot of the table: memory against context for each quantization, with a line for each GPU.

Promises that every point is a cell of the table. Draws, and computes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..figures import saved_figure
from ..units import context_text
from .gpus import GPUS
from .machine import KEPT_FREE
from .table import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The GPUs whose memory is drawn as a line: enough to find others between them.
_LINES = ("RTX 4090", "RTX 5090", "L40S", "H100", "H200", "B200")
_SETS = (("H100", 4), ("H100", 8), ("B200", 8))
# Told apart with any kind of colour vision (Okabe and Ito).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_GIB = 2**30


def plot(cells: Sequence[Cell], path: str | os.PathLike[str]) -> None:
    """Draw one panel for each model of the cells, and save it in the format of the name.

    Raises:
        OutputError: matplotlib is not installed, or the file cannot be written.
    """
    models = list(dict.fromkeys(cell.model for cell in cells))
    across = min(len(models), 2)
    down = -(-len(models) // across)
    size = (0.6 + 7.4 * across, 5.8 * down)
    with saved_figure(path, down, across, size) as (_, panels):
        for axes in panels.flat[len(models) :]:
            axes.remove()
        for model, axes in zip(models, panels.flat, strict=False):
            _draw(axes, [cell for cell in cells if cell.model == model], model)


def _draw(axes: Axes, cells: Sequence[Cell], model: str) -> None:
    largest = max(cell.gpu_bytes for cell in cells) / _GIB
    smallest = min(cell.gpu_bytes for cell in cells) / _GIB
    low, high = smallest / 2.2, largest * 1.35
    recipes = list(dict.fromkeys(cell.recipe for cell in cells))
    for colour, recipe in zip(_COLOURS, recipes, strict=False):
        own = [cell for cell in cells if cell.recipe == recipe]
        axes.plot(
            [cell.n_ctx for cell in own],
            [cell.gpu_bytes / _GIB for cell in own],
            marker="o",
            markersize=4,
            linewidth=2,
            color=colour,
            label=recipe,
        )
    _gpu_lines(axes, low, high)
    contexts = sorted({cell.n_ctx for cell in cells})
    axes.set(xscale="log", yscale="log", ylim=(low, high))
    axes.set_title(model, pad=26)
    # Room at the right for the names of the GPUs.
    axes.set_xlim(contexts[0] / 1.3, contexts[-1] * (contexts[-1] / contexts[0]) ** 0.16)
    axes.set_xticks(contexts, [context_text(n_ctx) for n_ctx in contexts])
    ticks = [
        size for size in (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
                          3072, 4096) if low <= size <= high
    ]  # fmt: skip
    axes.set_yticks(ticks, [str(size) for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("GPU memory, GiB")
    axes.spines[["top", "right"]].set_visible(False)
    # Above the panel, where it hides no line.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(recipes), frameon=False)


def _gpu_lines(axes: Axes, low: float, high: float) -> None:
    """What each GPU has to give, named at its right end."""
    by_name = {gpu.name: gpu for gpu in GPUS}
    lines: list[tuple[float, str]] = [
        ((by_name[name].memory - KEPT_FREE) / _GIB, name) for name in _LINES
    ]
    lines += [
        ((by_name[name].memory - KEPT_FREE) * count / _GIB, f"{count}x {name}")
        for name, count in _SETS
    ]
    style: dict[str, Any] = {
        "color": "0.6",
        "linewidth": 0.8,
        "linestyle": (0, (4, 3)),
        "zorder": 0,
    }
    for size, name in lines:
        if low < size < high:
            axes.axhline(size, **style)
            axes.text(
                0.995, size * 1.012, name, transform=axes.get_yaxis_transform(),
                ha="right", va="bottom", fontsize=8, color="0.35",
            )  # fmt: skip
