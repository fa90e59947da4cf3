"""What `compare` shows: how far it is, and then a line for each model.

Promises that a column is there only where something was measured. Does not measure anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..units import bytes_text
from .progress import step_bar
from .visible import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..evaluation import CompareProgress
    from ..measure.divergence import Estimate
    from ..measure.results import Comparison, ModelResult


@contextmanager
def compare_progress() -> Iterator[Callable[[CompareProgress], None] | None]:
    """Draw a bar for each model on stderr; yields what to give to ``compare(progress=…)``."""
    with step_bar() as drawn:
        if drawn is None:
            yield None
            return
        bar, task = drawn

        def show(at: CompareProgress) -> None:
            if at.done == 1:
                bar.reset(task)
            name = one_line(Path(at.model).name)
            bar.update(task, description=name, completed=at.done, total=at.total)

        yield show


def compare_view(found: Comparison) -> RenderableType:
    """What was found, the reference first."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    headings = ["size"]
    if found.n_chunks:
        headings += ["perplexity", "KL mean", "median", "99%", "max", "same top", "RMS Δp"]
    if found.n_questions:
        headings += ["right", "same answers"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in (found.reference, *found.candidates):
        table.add_row(one.label, *_cells(one, found))
    asked = []
    if found.n_chunks:
        asked.append(
            f"{found.n_tokens:,} predictions in {found.n_chunks:,} chunks of {found.n_ctx:,} tokens"
        )
    if found.n_questions:
        asked.append(f"{found.n_questions:,} questions")
    return Group(f"{', and '.join(asked)}; ± is the standard error", "", table)


def _cells(one: ModelResult, found: Comparison) -> list[str]:
    cells = ["" if one.bytes is None else bytes_text(one.bytes)]
    if found.n_chunks:
        cells.append("" if one.perplexity is None else _number(one.perplexity))
        if one.statistics is None:
            cells += [""] * 6
        else:
            stats = one.statistics
            cells += [
                _number(stats.kl_mean, 6),
                f"{stats.kl_median:.6f}",
                f"{stats.kl_p99:.6f}",
                f"{stats.kl_max:.6f}",
                _share(stats.same_top),
                _share(stats.rms_p_difference),
            ]
    if found.n_questions:
        right = one.accuracy
        cells += (
            ["", ""]
            if right is None
            else [
                f"{right.value:.1%} ({right.interval[0]:.1%} to {right.interval[1]:.1%})",
                "" if right.same is None else f"{right.same:.1%}",
            ]
        )
    return cells


def _number(estimate: Estimate, digits: int = 4) -> str:
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.3%} ± {estimate.error:.3%}"
