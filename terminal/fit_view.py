"""What `convert --fit` shows before it converts: which kinds of tensors got which types, and why.

Promises that every number comes from the fit. Chooses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from ..units import bytes_text
from .tables import facts_grid, table_of

if TYPE_CHECKING:
    from ..measure.choice import Fit


def fit_view(fit: Fit) -> RenderableType:
    """The kinds of tensors, from the one where a byte is worth most on; then what it comes to."""
    table = table_of("tensors", ">bits/w", ">size", ">KL", ">worth", ">stream", "*types")
    for reason in fit.reasons:
        low, high = (f"{share:.0%}" for share in reason.shares)
        table.add_row(
            reason.kind,
            f"{reason.bits_per_weight:.2f}",
            bytes_text(reason.bytes),
            f"{reason.cost:.1e}" if reason.cost else "0",
            f"{reason.worth:.2g}",
            low if low == high else f"{low}-{high}",
            reason.types,
        )
    unit, name = (10**9, "GB") if fit.bytes > 10**9 else (10**6, "MB")
    facts = [
        ("worth", "what a byte costs there, were all of one type, as a multiple of the average"),
        ("stream", "the share of the residual stream that an error there is passed on with"),
        ("fits", fit.asked),
        ("size", f"{bytes_text(fit.bytes, digits=2)}, {fit.bits_per_weight:.3f} bits a weight"),
        ("expected KL", f"{fit.cost:.2g} nats: an estimate, which `llama4 compare` measures"),
    ]
    if fit.price:
        facts.append((f"a {name} less", f"costs about {fit.price * unit:.2g} nats more"))
    facts += [("note", note) for note in fit.notes]
    return Group(table, "", facts_grid(facts))
