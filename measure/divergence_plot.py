"""A picture of a comparison: how far each candidate is from the reference, against its size.

Draws, and computes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from ..figures import saved_figure

if TYPE_CHECKING:
    from .results import Comparison

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
        for size, mean, label in points:
            axes.errorbar(
                size / unit, mean.value, yerr=1.96 * mean.error, fmt="o", color="#0072B2", capsize=3
            )
            axes.annotate(
                label, (size / unit, mean.value), xytext=(7, 5), textcoords="offset points"
            )
        axes.set_yscale("log")
        axes.set_xlabel(f"size of the file, {name}")
        axes.set_ylabel("mean KL divergence, nats a token")
        axes.set_title(
            f"Distance from {Path(found.reference.model).name}, {found.n_tokens:,} predictions"
        )
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.margins(0.18)
