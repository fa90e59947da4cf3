"""A picture of a comparison: how far each candidate is from the reference, against its size.

Draws, and computes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..figures import saved_figure

if TYPE_CHECKING:
    from .results import Comparison

# Where a name may stand, in points from what it names: the first place that is free is taken.
_PLACES = sorted(
    (
        (right, up)
        for right in (9, -9, 24, -24, 48, -48)
        for up in (0, 10, -10, 20, -20, 32, -32, 46, -46, 62, -62, 80, -80)
        if up or abs(right) == 9
    ),
    key=lambda place: hypot(*place),
)
_NEAR = 20  # points: a name farther away has a line to what it names
_LINE = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
_POINT = 4  # pixels around a point that no name covers
_GIB = 2**30
_MIB = 2**20


def plot(found: Comparison, path: str | os.PathLike[str]) -> None:
    """Draw it, and save it in the format of the name.

    Raises:
        OutputError: matplotlib is not installed, nothing was compared on a text, or the file cannot
            be written.
    """
    points = [
        (one.bytes, one.statistics.kl_mean, one.label.replace(".gguf", ""))
        for one in found.candidates
        if one.bytes is not None and one.statistics is not None
    ]
    if not points:
        raise OutputError("there is nothing to draw", expected="a text, and a candidate")
    unit, name = (_GIB, "GiB") if max(size for size, *_ in points) >= _GIB else (_MIB, "MiB")
    with saved_figure(path, 1, 1, (7.4, 4.8)) as (_, ((axes,),)):
        for size, mean, _ in points:
            low, high = mean.interval
            axes.errorbar(
                size / unit, mean.value, yerr=[[mean.value - low], [high - mean.value]],
                fmt="o", markersize=5, color="#0072B2", capsize=3,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlabel(f"size of the file, {name}")
        axes.set_ylabel("mean KL divergence, nats a token")
        axes.set_title(
            f"Distance from {Path(found.reference.model).name}, {found.n_tokens:,} predictions"
        )
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.margins(0.18)
        _label(axes, [(label, size / unit, mean.value) for size, mean, label in points])


def _label(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Name the points, (label, x, y), each near its own where no name and no point is."""
    from matplotlib.transforms import Bbox

    axes.figure.tight_layout()
    axes.figure.canvas.draw()  # from here on it stays as it is laid out
    inside = axes.get_window_extent()
    taken = [
        Bbox.from_bounds(x, y, 0, 0).padded(_POINT)
        for x, y in axes.transData.transform([point for _, *point in points])
    ]
    for label, *point in sorted(points, key=lambda one: one[1:]):
        for right, up in _PLACES:
            text = axes.annotate(
                label, point, xytext=(right, up), textcoords="offset points", fontsize=9,
                ha="left" if right > 0 else "right", va="center",
            )  # fmt: skip
            box = text.get_window_extent()
            free = not box.count_overlaps(taken)
            if free and inside.contains(*box.min) and inside.contains(*box.max):
                if hypot(right, up) > _NEAR:
                    axes.annotate(
                        "", point, xytext=(right, up), textcoords="offset points", arrowprops=_LINE
                    )
                break
            text.remove()
        else:  # there is no room for it
            text = axes.annotate(label, point, xytext=(9, 9), textcoords="offset points")
            box = text.get_window_extent()
        taken.append(box.padded(3))
