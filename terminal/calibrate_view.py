"""What `calibrate` shows: how far it is, and then how many tokens the experts of each layer saw.

Does not measure anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from .progress import step_bar

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..calibration import CalibrationProgress
    from ..measure.calibrated import Calibration


@contextmanager
def calibrate_progress() -> Iterator[Callable[[CalibrationProgress], None] | None]:
    """Draw a bar on stderr; yields what to give to ``calibrate(progress=…)``."""
    with step_bar() as drawn:
        if drawn is None:
            yield None
            return
        bar, task = drawn
        begun: float | None = None
        first_tokens = 0

        def show(at: CalibrationProgress) -> None:
            nonlocal begun, first_tokens
            if begun is None:
                # The first step is over; what an interrupted run had done says nothing of the rate.
                begun, first_tokens = monotonic(), at.n_tokens
                bar.reset(task, total=at.total, completed=at.done)
            seconds = monotonic() - begun
            rate = (at.n_tokens - first_tokens) / seconds if seconds > 0.1 else 0.0
            text = "reading" if at.perplexity is None else f"perplexity {at.perplexity:.4f}"
            bar.update(
                task,
                description=text,
                completed=at.done,
                total=at.total,
                rate=f"{rate:,.0f} tokens/s" if rate else "",
            )

        yield show


def calibrate_view(found: Calibration) -> RenderableType:
    """What was found, experts last."""
    from rich.console import Group

    from .importance_view import experts_table
    from .tables import facts_grid

    read = [f"{found.n_tokens:,} tokens"]
    if found.n_chunks:
        read.append(f"{found.n_chunks:,} chunks of {found.n_ctx:,}")
    if found.n_conversations:
        read.append(f"{found.n_conversations:,} conversations")
    facts = [("read", ", ".join(read))]
    if found.perplexity is not None:
        facts.append(("perplexity", "{:.4f} ± {:.4f}".format(*found.perplexity)))
    facts.append(("statistics", f"of {found.n_tensors:,} tensors"))
    if found.layers:
        facts.append(("experts", _coverage(found)))
    facts.append(("wrote", found.output))
    if not found.layers:
        return facts_grid(facts)
    return Group(facts_grid(facts), "", experts_table(found.layers))


def _coverage(found: Calibration) -> str:
    unseen = sum(not any(layer.counts) for layer in found.layers)
    if unseen:
        return f"those of {unseen:,} layers saw no token, and have no statistics"
    starved = sum(len(layer.starved) for layer in found.layers)
    if not starved:
        return f"all saw {found.fewest} tokens or more"
    return (
        f"{starved:,} saw fewer than {found.fewest} tokens, and get what others of their layer saw"
    )
