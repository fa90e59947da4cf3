"""A picture of a comparison: how far each candidate is from the reference, against its size.

Draws, and computes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..figures import saved_figure

if TYPE_CHECKING:
    from .results import Comparison

# Where a name may stand, in points from what it names: the first place that is free is taken.
_PLACES = [(right, up) for up in (9, -9, 21, -21, 33, -33) for right in (7, -7)]
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
            axes.errorbar(
                size / unit, mean.value, yerr=1.96 * mean.error, fmt="o", color="#0072B2", capsize=3
            )
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
    """Name the points, (label, x, y), each beside its own where no other name is."""
    inside = axes.get_window_extent()
    taken: list[Any] = []
    for label, *point in points:
        for right, up in _PLACES:
            text = axes.annotate(
                label, point, xytext=(right, up), textcoords="offset points",
                ha="left" if right > 0 else "right", va="center",
            )  # fmt: skip
            box = text.get_window_extent()
            if box.x0 >= inside.x0 and box.x1 <= inside.x1 and not box.count_overlaps(taken):
                break
            text.remove()
        else:  # there is no room for it
            text = axes.annotate(label, point, xytext=(7, 9), textcoords="offset points")
            box = text.get_window_extent()
        taken.append(box)
